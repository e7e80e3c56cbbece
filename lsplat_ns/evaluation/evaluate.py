"""The evaluation itself: every entry of an index, one after the other, results written as they come."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.errors import LsplatError, SceneDataError
from lsplat_ns.evaluation.entries import Entry, EvaluationData, LoadedEntry
from lsplat_ns.evaluation.image_folders import CONTEXT, image_file, write_images
from lsplat_ns.evaluation.metrics import FoundMetrics
from lsplat_ns.evaluation.protocol import OURS, Draw, EntryScore, draw_views, entry_seed, score_entry
from lsplat_ns.evaluation.results import (
    ALL,
    SUMMARY,
    EntryResult,
    EvaluationFolder,
    read_json,
    summarise,
    write_benchmark,
)
from lsplat_ns.evaluation.set_distances import Inception, set_distances
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.scene import SceneBatch
from lsplat_ns.wording import counted

OnEntry = Callable[[int, EntryResult | None], None]
"""Told of each entry: how many are done or left out so far, and its result (None: it could not be used)."""


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and how."""

    network: LatentSplat  # in eval mode, on its device
    data: EvaluationData
    metrics: FoundMetrics
    draws: int = 1  # as published; 0 evaluates modes
    seed: int = 0
    yardsticks: bool = True  # also score copies of the context views
    on_draw: Callable[[Entry, LoadedEntry, Draw], None] | None = None  # for illustrations: an entry's first draw

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def score(self, entry: Entry, example: SceneBatch) -> EntryScore:
        """Score one entry that lies on the device. The same entry gives the same numbers, whatever came before."""
        return score_entry(
            self.network,
            example,
            self.metrics,
            draws=self.draws,
            seed=self._seed_of(entry),
            encode=self.data.encode(entry, self.device, self.draws == 0),
            yardsticks=self.yardsticks,
        )

    def draw(self, entry: Entry, example: SceneBatch) -> Draw:
        """The first draw of :meth:`score`, alone."""
        encode = self.data.encode(entry, self.device, self.draws == 0)
        return draw_views(
            self.network, example, seed=self._seed_of(entry), deterministic=self.draws == 0, encode=encode
        )

    def _seed_of(self, entry: Entry) -> int:
        return entry_seed(entry.scene, entry.choice.context, self.seed)


@dataclass
class EvaluationOutcome:
    """What a call did."""

    folder: EvaluationFolder
    skipped: dict[str, str] = field(default_factory=dict)  # titles of entries -> why they cannot be used
    finished: bool = False


def evaluate_entries(
    evaluation: Evaluation,
    folder: EvaluationFolder,
    *,
    truths: bool = True,
    on_entry: OnEntry | None = None,
) -> EvaluationOutcome:
    """Score every entry that the folder does not hold yet, and write its pictures and numbers.

    An entry without a metric that can be computed now, when it could not be before, is scored anew, and so is one whose
    pictures are gone. One that cannot be used is left out and named; the next call tries it again. KeyboardInterrupt
    ends the loop between two entries' results: the outcome then says that it is not finished.

    Args:
        evaluation: What to evaluate.
        folder: Where to.
        truths: Also write true views and context views.
        on_entry: For progress.

    Raises:
        LsplatError: If the disk is full or the folder cannot be written.
    """
    outcome = EvaluationOutcome(folder)
    names = evaluation.metrics.available.keys()
    wanted = [entry for entry in evaluation.data.entries if not folder.holds(entry.key, names, truths)]
    done = len(evaluation.data.entries) - len(wanted)
    warm = False
    try:
        for entry, loaded in _read_ahead(evaluation.data, wanted):
            done += 1
            if isinstance(loaded, SceneDataError):
                outcome.skipped[entry.title] = str(loaded)
                if on_entry is not None:
                    on_entry(done, None)
                continue
            example = loaded.example.to(evaluation.device)
            if not warm:
                evaluation.draw(entry, example)  # untimed: the first call chooses kernels and fills caches
                warm = True
            score = evaluation.score(entry, example)
            _write_pictures(folder, loaded.example, score, truths)
            if evaluation.on_draw is not None:
                evaluation.on_draw(entry, loaded, score.first)
            result = EntryResult.of(score, loaded.kinds, loaded.distances)
            folder.add(result)
            if on_entry is not None:
                on_entry(done, result)
        outcome.finished = True
    except KeyboardInterrupt:
        pass  # what is done is on disk; the caller reports it as partial
    return outcome


def _read_ahead(data: EvaluationData, entries: list[Entry]) -> Iterator[tuple[Entry, LoadedEntry | SceneDataError]]:
    """Entries with their images, the next one being read while one is worked on."""

    def load(entry: Entry) -> LoadedEntry | SceneDataError:
        try:
            return data.load(entry)
        except SceneDataError as error:
            return error

    with ThreadPoolExecutor(1) as reader:
        pending = None
        for entry in entries:
            following = (entry, reader.submit(load, entry))
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = following
        if pending is not None:
            yield pending[0], pending[1].result()


def _write_pictures(folder: EvaluationFolder, example: SceneBatch, score: EntryScore, truths: bool) -> None:
    write_images(folder.predictions, score.scene, score.context, score.target, score.images)
    if truths:
        place = folder.truths, score.scene, score.context
        write_images(*place, score.target, example.target.image[0])
        write_images(*place, score.context, example.context.image[0], CONTEXT)


def finish(
    evaluation: Evaluation,
    outcome: EvaluationOutcome,
    *,
    distances: bool = True,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Sum up what the folder holds and write ``summary.json``.

    Args:
        evaluation: What was evaluated.
        outcome: Of :func:`evaluate_entries`.
        distances: Whether FID and KID are wanted; an evaluation that is not finished has none.
        on_images: Called with the number of images read for them, for progress.

    Returns:
        The summary: see ``results.summarise``, and ``complete``, ``settings``, ``listed``, ``skipped`` (why, by scene
        or entry), ``unavailable`` (why, by metric), ``distances``.

    Raises:
        LsplatError: If no entry could be evaluated, or the folder cannot be written.
    """
    folder, data = outcome.folder, evaluation.data
    results = [folder.done[entry.key] for entry in data.entries if entry.key in folder.done]
    if not results:
        why = next(iter(outcome.skipped.values()), "it was interrupted before the first")
        raise LsplatError(f"no entry of the evaluation index could be evaluated: {why}")
    summed = summarise(results)
    unavailable = {n: why for n, why in evaluation.metrics.unavailable.items() if n not in summed["metrics"][ALL][OURS]}
    found: dict[str, float] = {}
    if not outcome.finished:
        unavailable |= dict.fromkeys(("fid", "kid"), "the evaluation is not finished")
    elif not distances:
        unavailable |= dict.fromkeys(("fid", "kid"), "not asked for")
    else:
        try:
            found = _distances(folder, results, evaluation.device, on_images)
        except LsplatError as error:
            unavailable |= dict.fromkeys(("fid", "kid"), str(error))
    peak = _peak_bytes(folder, evaluation.device)
    threads = counted(torch.get_num_threads(), "thread")
    device = torch.cuda.get_device_name() if peak is not None else f"CPU, {threads}"
    summary = {
        "complete": outcome.finished,
        "settings": folder.settings,
        "listed": {
            "entries": len(data.entries) + len(data.repeated),
            "scenes": len({entry.scene for entry in data.entries}) + len(data.left_out),
        },
        **summed,
        "distances": found,
        "unavailable": unavailable,
        "skipped": {**data.left_out, **data.repeated, **outcome.skipped},
        "peak_gpu_bytes": peak,
        "device": device,
    }
    write_benchmark(folder.predictions, results, peak)
    _write_json(folder.root / SUMMARY, summary)
    return summary


def _distances(
    folder: EvaluationFolder,
    results: list[EntryResult],
    device: torch.device,
    on_images: Callable[[int], None] | None,
) -> dict[str, float]:
    names = [(result.scene, result.context, frame) for result in results for frame in result.target]
    if len(names) < 2:
        raise LsplatError("they compare sets of images, and there is only one")
    inception = Inception(device)
    with tempfile.TemporaryDirectory(dir=folder.root, prefix=".features-") as scratch:
        files = [[image_file(root, *name) for name in names] for root in (folder.predictions, folder.truths)]
        measured = set_distances(*files, inception, Path(scratch), on_images)
    return {"fid": measured.fid, "kid": measured.kid, "kid_std": measured.kid_std, "images": measured.images}


def _peak_bytes(folder: EvaluationFolder, device: torch.device) -> int | None:
    """Most memory that this call or an earlier one of the evaluation needed on the GPU."""
    if device.type != "cuda":
        return None
    path = folder.root / SUMMARY
    before = read_json(path).get("peak_gpu_bytes") if path.is_file() else None
    return max(torch.cuda.max_memory_allocated(device), before or 0)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
