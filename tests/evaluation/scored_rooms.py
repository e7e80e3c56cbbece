"""A tiny network of random weights and a tiny dataset with an evaluation index, for the tests of evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from re10k_chunks import scene, write

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.evaluation.entries import IndexedScenes
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.plugin.recipes import tiny_networks

SIZE = (32, 32)
NASTY = "<b>\"a&'/../b</b>"
"""A scene id that would break out of a page's text, of an attribute, or of a folder."""
INDEX = {
    "late": [{"context": [0, 4], "target": [2, 1, 3]}],
    "empty": None,
    "early": [{"context": [1, 3], "target": [2]}, {"context": [1, 3], "target": [0, 3, 5]}],
    "short": [{"context": [0, 2], "target": [1, 90]}],
    "elsewhere": [{"context": [0, 2], "target": [1]}],
    NASTY: [{"context": [5, 2], "target": [4]}],
}
ORDER = ["early", "early", NASTY, "late", "short"]
"""Scenes of the entries in the order of the data, which is not that of the index."""


def write_dataset(root: Path) -> Path:
    """Write scenes of noise, to train on and to test, and the index; returns ``root``."""
    write(root, {"0.torch": [scene("trained on")]})
    chunks = {"0.torch": [scene("early"), scene(NASTY)], "1.torch": [scene("late"), scene("short"), scene("other")]}
    write(root, chunks, "test")
    (root / "evaluation_index.json").write_text(json.dumps(INDEX))
    return root


def indexed_scenes(root: Path) -> IndexedScenes:
    """The entries of :func:`write_dataset`."""
    split = Re10kSplit.open(root, "test")
    return IndexedScenes.of("re10k", [root / "evaluation_index.json"], split, PreparationConfig(image_size=SIZE))


def random_network() -> LatentSplat:
    """Always the same, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LatentSplat(tiny_networks(), discriminator=False).eval()
