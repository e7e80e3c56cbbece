"""Where the evaluation index of a dataset is looked for: the user's own, else the files of the papers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

OWN_NAME = "evaluation_index.json"
"""The index of a dataset folder: what is made here, and what wins over published files."""
PUBLISHED_NAMES = ("{set}_extra.json", "{set}_intra.json", "evaluation_index_{set}.json")
"""latentSplat's files (extrapolation, interpolation) and pixelSplat's; set is re10k, co3d_hydrant or co3d_teddybear."""
PLACES = (".", "evaluation_index", "assets", "assets/evaluation_index")
"""Folders that are searched, in the dataset folder first, then where the command runs, as the originals are run."""


def find_evaluation_indices(data: Path, sets: Iterable[str]) -> list[Path]:
    """The evaluation indices that belong to a dataset folder.

    ``data/evaluation_index.json`` wins. Else, for each set, the first published file: of the folders ``PLACES`` below
    ``data``, then below the working directory, the first that holds one of ``PUBLISHED_NAMES``, in their order.

    Args:
        data: Dataset folder.
        sets: ``re10k``, or ``co3d_<category>`` for each category that is read.

    Returns:
        One path, one per set, or none.
    """
    own = data / OWN_NAME
    if own.is_file():
        return [own]
    folders = [root / place for root in (data, Path()) for place in PLACES]
    found = []
    for name in sets:
        files = (folder / pattern.format(set=name) for folder in folders for pattern in PUBLISHED_NAMES)
        found += [path for path in files if path.is_file()][:1]
    return found
