"""What was measured, entry by entry, on disk: an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lsplat_ns.data.atomic_files import is_leftover, replacing
from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.evaluation.image_folders import CONTEXT, image_file
from lsplat_ns.evaluation.metrics import METRICS
from lsplat_ns.evaluation.protocol import OURS, SPLAT, EntryScore, Kind

RESULTS, SETTINGS, SUMMARY = "results.jsonl", "settings.json", "summary.json"
PREDICTIONS, TRUTHS = Path("images/prediction"), Path("images/truth")
"""Where pictures lie in an evaluation's folder, each in the originals' layout."""
DIGEST = "_sha256"
"""Settings whose names end so stand for what is too long to be written out."""
ALL = "all"
Key = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class EntryResult:
    """One entry as it is stored: numbers only."""

    scene: str
    context: tuple[int, ...]
    target: tuple[int, ...]
    kinds: tuple[Kind, ...]  # one per target; empty where the data does not say
    distances: tuple[int, ...]  # in frames from the nearest context view, one per target
    metrics: dict[str, dict[str, list[float | None]]]  # what is scored -> metric -> one per target, None: undefined
    draw_std: dict[str, float]
    seconds: dict[str, float]  # encode: per entry; splat, decode: per view

    @staticmethod
    def of(score: EntryScore, kinds: tuple[Kind, ...], distances: tuple[int, ...]) -> EntryResult:
        """The numbers of a score."""

        def plain(values: Iterable[float]) -> list[float | None]:
            return [round(value, 6) if math.isfinite(value) else None for value in values]

        metrics = {
            what: {name: plain(values.tolist()) for name, values in scored.items()}
            for what, scored in score.metrics.items()
        }
        return EntryResult(
            score.scene, score.context, score.target, kinds, distances, metrics, score.draw_std, score.seconds
        )

    @staticmethod
    def parse(line: str) -> EntryResult:
        """From a line of the file. Raises ValueError, TypeError or KeyError where it is none."""
        values = json.loads(line)
        for name in ("context", "target", "kinds", "distances"):
            values[name] = tuple(values[name])
        return EntryResult(**values)

    @property
    def key(self) -> Key:
        """What tells entries apart."""
        return self.scene, self.context, self.target

    def mean(self, what: str, metric: str, kind: str = ALL) -> float | None:
        """Mean over the entry's targets (of one kind); None where there is none."""
        values = self.metrics.get(what, {}).get(metric)
        if values is None:
            return None
        kinds = self.kinds or ("",) * len(values)
        kept = [v for v, k in zip(values, kinds, strict=True) if v is not None and kind in (ALL, k)]
        return sum(kept) / len(kept) if kept else None

    @property
    def copied(self) -> int:
        """How many targets are context views."""
        return sum(frame in self.context for frame in self.target)


@dataclass
class EvaluationFolder:
    """A folder that an evaluation writes into as it goes.

    Raises:
        ConfigError: If the folder holds another evaluation, or something else.
    """

    root: Path
    settings: dict[str, Any]  # what the numbers depend on
    pictures: Path | None = None  # where predicted views go instead
    done: dict[Key, EntryResult] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        path = self.root / SETTINGS
        if path.is_file():
            self._resume(path)
            return
        if self.root.exists() and not self._is_free():
            raise ConfigError(f"{self.root} exists and is not an evaluation; choose another folder with --output")
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.settings, indent=2) + "\n")

    def _is_free(self) -> bool:
        """Whether nothing is there, or only what a call that was killed left of its first file."""
        return self.root.is_dir() and all(map(is_leftover, self.root.iterdir()))

    def _resume(self, path: Path) -> None:
        stored = read_json(path)
        changed = [name for name in self.settings if stored.get(name) != self.settings[name]]
        if changed:
            held = f"{self.root} holds an evaluation {_difference(changed[0], stored, self.settings)}"
            raise ConfigError(f"{held}; choose another folder with --output, or remove it")
        self.done = {result.key: result for result in read_results(self.root)}

    @property
    def predictions(self) -> Path:
        """Predicted views, with the original's benchmark.json."""
        return self.pictures or self.root / PREDICTIONS

    @property
    def truths(self) -> Path:
        """True views, and context views."""
        return self.root / TRUTHS

    def holds(self, key: Key, metrics: Collection[str], truths: bool = True) -> bool:
        """Whether an entry is there with these metrics, and its pictures (``truths``: true ones, too)."""
        if key not in self.done or not set(metrics) <= self.done[key].metrics[OURS].keys():
            return False
        scene, context, target = key
        files = [image_file(self.predictions, scene, context, frame) for frame in target]
        if truths:
            files += [image_file(self.truths, scene, context, frame) for frame in target]
            files += [image_file(self.truths, scene, context, frame, CONTEXT) for frame in context]
        return all(file.is_file() for file in files)

    def add(self, result: EntryResult) -> None:
        """Append one entry; what an interruption leaves of a line is ignored when it is read.

        Raises:
            LsplatError: If the disk is full or the folder cannot be written.
        """
        path = self.root / RESULTS
        try:
            torn = path.is_file() and not _ends_with_newline(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(("\n" if torn else "") + json.dumps(asdict(result)) + "\n")
        except OSError as error:
            raise LsplatError(f"cannot write {path}: {error.strerror or error}") from None
        self.done[result.key] = result


def _difference(name: str, stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What an evaluation is of that has another setting than the wanted one."""
    what = name.removesuffix(DIGEST)
    if name not in stored:
        return f"that does not note its {what.replace('_', ' ')} (by an earlier version, or of another system)"
    if what != name:
        return f"of other {what}"
    return f"with {name} {stored[name]!r}, not {wanted[name]!r}"


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_results(folder: Path) -> list[EntryResult]:
    """The whole lines of an evaluation's results, in the order they were written; the last one of each entry."""
    path = folder / RESULTS
    if not path.is_file():
        return []
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            result = EntryResult.parse(line)
        except (ValueError, TypeError, KeyError):
            continue  # torn by an interruption; that entry is evaluated again
        found[result.key] = result
    return list(found.values())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigError where the file is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no JSON object")
    return content


# --------------------------------------------------------------------------------------------------- summaries


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (population) and number."""
    return {"mean": statistics.fmean(values), "std": statistics.pstdev(values), "count": len(values)}


def summarise(results: list[EntryResult]) -> dict[str, Any]:
    """Means over entries of each metric's mean over an entry's targets: the original's average.

    Returns:
        ``metrics``: kind of target (``all``, ``interpolation``, ``extrapolation``) -> what is scored -> metric ->
        mean, std, count; ``scenes``: scene -> metric of the prediction -> mean over its entries, and ``entries``;
        ``seconds``: part -> median, mean, count; and counts.
    """
    kinds = sorted({kind for result in results for kind in result.kinds}, reverse=True)
    scored: dict[str, list[str]] = {}
    for result in results:
        for what, values in result.metrics.items():
            known = scored.setdefault(what, [])
            known += [name for name in values if name not in known]
    metrics: dict[str, Any] = {}
    for kind in [ALL, *kinds]:
        metrics[kind] = {
            what: _spreads(lambda result, name, what=what, kind=kind: result.mean(what, name, kind), results, names)
            for what, names in scored.items()
        }
    by_scene: dict[str, list[EntryResult]] = {}
    for result in results:
        by_scene.setdefault(result.scene, []).append(result)
    names = scored.get(OURS, [])
    scenes = {}
    for scene, own in by_scene.items():
        values = _spreads(lambda result, name: result.mean(OURS, name), own, names)
        scenes[scene] = {"entries": len(own), **{name: value["mean"] for name, value in values.items()}}
    draws = _spreads(lambda result, name: result.draw_std.get(name), results, list(METRICS))
    return {
        "entries": len(results),
        "targets": sum(len(result.target) for result in results),
        "targets_that_are_context_views": sum(result.copied for result in results),
        "metrics": metrics,
        "std_over_draws": {name: value["mean"] for name, value in draws.items()},
        "seconds": {part: _times([r.seconds[part] for r in results]) for part in ("encode", "splat", "decode")}
        if results
        else {},
        "scenes": scenes,
    }


def _spreads(
    value_of: Callable[[EntryResult, str], float | None], results: list[EntryResult], names: list[str]
) -> dict[str, dict[str, float]]:
    found = {name: [v for result in results if (v := value_of(result, name)) is not None] for name in names}
    return {name: spread(values) for name, values in found.items() if values}


def _times(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "mean": statistics.fmean(seconds), "count": len(seconds)}


def write_benchmark(folder: Path, results: list[EntryResult], peak_bytes: int | None) -> None:
    """The original's benchmark.json (a list of seconds per part and view) and peak_memory.json beside predictions."""
    views = [(result, len(result.target)) for result in results]
    benchmark = {
        "encoder": [result.seconds["encode"] for result in results],
        "decoder": [result.seconds["splat"] for result, count in views for _ in range(count)],
        "autoencoder_decoder": [result.seconds["decode"] for result, count in views for _ in range(count)],
    }
    with replacing(folder / "benchmark.json") as partial:
        partial.write_text(json.dumps(benchmark) + "\n")
    if peak_bytes is not None:
        with replacing(folder / "peak_memory.json") as partial:
            partial.write_text(json.dumps(peak_bytes) + "\n")


def flat_results(summary: dict[str, Any], everything: bool) -> dict[str, Any]:
    """A summary with the prediction's means by their bare names, as ns-eval writes it.

    Args:
        summary: Of ``evaluate.finish``.
        everything: Also ``<metric>_std``, FID and KID, and the parts of the summary that are no plain numbers.

    Returns:
        ``psnr`` and so on; ``psnr_splat`` and so on of the splatted colour; ``entries``; and what is asked for.
    """
    scored = summary["metrics"][ALL]
    flat: dict[str, Any] = {"entries": float(summary["entries"])}
    for name, value in scored[OURS].items():
        flat[name] = value["mean"]
        if everything:
            flat[f"{name}_std"] = value["std"]
    flat |= {f"{name}_splat": value["mean"] for name, value in scored[SPLAT].items()}
    if everything:
        flat |= {name: summary["distances"][name] for name in ("fid", "kid") if name in summary["distances"]}
        kept = ("targets", "targets_that_are_context_views", "metrics", "seconds", "scenes", "skipped", "unavailable")
        flat |= {name: summary[name] for name in kept}
    return flat
