"""The splits of a dataset folder, opened for inspection however broken they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lsplat_ns.data.co3d import Co3dSplit
from lsplat_ns.data.indexing import INDEX, ChunkScan, read_index, scan_chunks
from lsplat_ns.data.inspection import Entries, Problem, SplitInspection
from lsplat_ns.data.layouts import chunk_files, layout_of, lies_in, split_folders
from lsplat_ns.data.published_indices import find_evaluation_indices
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.view_sampling import read_evaluation_index
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.wording import counted


def survey(root: Path) -> list[SplitInspection]:
    """The splits of a RealEstate10k or CO3D folder, with the problems that show before any scene is looked at.

    Raises:
        SceneDataError: If the folder is absent, may not be read, or holds no dataset.
        ConfigError: If it is a capture, which only a dataparser can read.
    """
    layout = layout_of(root)
    if layout == "capture":
        raise ConfigError(f"{root} is a capture; it has no splits of scenes")
    if layout == "co3d":
        splits = [_open_co3d(root, split) for split in ("test", "train")]
        categories = {name for split in splits if split.source for name in split.source.tables}
        sets = [f"co3d_{name}" for name in sorted(categories)]
    else:
        folders = {*split_folders(root), *(path.parent for path in root.glob(f"*/{INDEX}"))}
        splits, sets = [survey_chunks(folder) for folder in sorted(folders)], ["re10k"]
    for split in splits:
        if split.name != "train":
            _add_entries(split, find_evaluation_indices(root, sets))
    return splits


def _open_co3d(root: Path, split: str) -> SplitInspection:
    try:
        source = Co3dSplit.open(root, split)
    except SceneDataError as error:
        return SplitInspection(split, problems=[Problem("broken split", str(error))])
    return SplitInspection(split, source, notes=list(source.notes))


def _add_entries(split: SplitInspection, indices: list[Path]) -> None:
    """Read evaluation indices; entries of scenes that the user does not have are no problem."""
    entries: dict = {}
    for path in indices:
        try:
            found: Entries = read_evaluation_index(path)
        except SceneDataError as error:
            split.problems.append(Problem("evaluation index", str(error)))
            continue
        here = set(split.source.scenes) & found.keys() if split.source else set()
        split.notes.append(
            f"evaluation index {path}: {counted(len(found), 'scene')} with entries, {len(here)} of them here"
        )
        entries.update(found)
    split.entries = entries


def survey_chunks(folder: Path) -> SplitInspection:
    """Open a split folder of RealEstate10k by its chunks, even where the index is missing or wrong.

    Args:
        folder: For example ``datasets/re10k/test``.
    """
    scan = scan_chunks(folder)
    source = Re10kSplit(folder.parent, folder.name, scan.chunk_of_scene)
    return SplitInspection(folder.name, source, problems=[*_chunk_problems(scan), *_index_problems(scan)])


def _chunk_problems(scan: ChunkScan) -> Iterator[Problem]:
    for reason in scan.unreadable.values():
        yield Problem("broken chunk", reason)
    for path in chunk_files(scan.folder):
        if path.name not in scan.unreadable and path.name not in scan.readable:
            yield Problem("broken chunk", f"{path} holds no scene of its own; download it again, or remove it")
    for scene, chunks in scan.repeated.items():
        where = ", ".join([scan.chunk_of_scene[scene], *chunks])
        yield Problem("repeated scene", f"scene {scene} is in {where} of {scan.folder}; remove all but one")


def _index_problems(scan: ChunkScan) -> Iterator[Problem]:
    """Where the index and the chunks contradict each other, one problem per chunk."""
    path = scan.folder / INDEX
    mend = f"`lsplat index {scan.folder.parent}`"
    if not path.is_file():
        yield Problem("index", f"{path} is missing; write it with {mend}")
        return
    try:
        index = read_index(scan.folder)
    except SceneDataError as error:
        yield Problem("index", f"{error}; write it anew with {mend}")
        return
    named = Counter(index.values())
    for chunk, count in sorted(named.items()):
        if not lies_in(scan.folder, scan.folder / chunk):
            yield Problem("index", f"{path} names {chunk!r}, outside the folder; write it anew with {mend}")
        elif not (scan.folder / chunk).is_file():
            yield Problem(
                "index", f"{path} names {chunk} for {counted(count, 'scene')}, but it is absent; download it, or {mend}"
            )
    absent = Counter(chunk for scene, chunk in index.items() if scan.chunk_of_scene.get(scene) != chunk)
    for chunk in scan.readable:
        if chunk not in named:
            yield Problem("index", f"{scan.folder / chunk} is not in the index; add its scenes with {mend}")
        elif absent[chunk]:
            yield Problem(
                "index",
                f"{path} puts {counted(absent[chunk], 'scene')} into {chunk} that it lacks; mend it with {mend}",
            )
    unlisted = Counter(chunk for scene, chunk in scan.chunk_of_scene.items() if scene not in index and chunk in named)
    for chunk, count in sorted(unlisted.items()):
        yield Problem(
            "index", f"{path} leaves out {counted(count, 'scene')} of {chunk}; add what is missing with {mend}"
        )
