"""``index.json`` of RealEstate10k's split folders: which chunk file holds which scene.

Source: spec section 2.1. Chunks are mapped, not loaded: only the scene ids are read of files of 100 MB.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.data.layouts import chunk_files, layout_of, lies_in, split_folders
from lsplat_ns.data.re10k import read_chunk
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.wording import counted

INDEX = "index.json"


@dataclass
class ChunkScan:
    """What the chunks of one split folder hold."""

    folder: Path
    chunk_of_scene: dict[str, str] = field(default_factory=dict)  # the first chunk that holds it, in file order
    unreadable: dict[str, str] = field(default_factory=dict)  # chunk -> why, in one line
    repeated: dict[str, list[str]] = field(default_factory=dict)  # scene -> further chunks that hold it too
    nameless: dict[str, int] = field(default_factory=dict)  # chunk -> entries without a scene id

    @property
    def readable(self) -> list[str]:
        """Chunks with at least one scene that the index can name, sorted."""
        return sorted(set(self.chunk_of_scene.values()))


def scan_chunks(folder: Path, on_chunk: Callable[[str], None] | None = None) -> ChunkScan:
    """Read the scene ids of every chunk of a split folder. A chunk that cannot be read is noted, not raised.

    Args:
        folder: For example ``datasets/re10k/test``.
        on_chunk: Called with the name of each chunk once it is done.
    """
    scan = ChunkScan(folder)
    for path in chunk_files(folder):
        try:
            if not lies_in(folder, path):
                raise SceneDataError(f"{path} is a link to a file outside {folder}; link the folder, or copy the file")
            scenes = read_chunk(path)
        except SceneDataError as error:
            scan.unreadable[path.name] = str(error)
            scenes = []
        for scene in scenes:
            key = scene.get("key") if isinstance(scene, dict) else None
            if not isinstance(key, str) or not key:
                scan.nameless[path.name] = scan.nameless.get(path.name, 0) + 1
            elif key in scan.chunk_of_scene:
                scan.repeated.setdefault(key, []).append(path.name)
            else:
                scan.chunk_of_scene[key] = path.name
        if on_chunk is not None:
            on_chunk(path.name)
    return scan


def read_index(folder: Path) -> dict[str, str]:
    """A split folder's index as it is written; empty where there is none.

    Raises:
        SceneDataError: If the file is no JSON object of strings.
    """
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text())
        if not isinstance(index, dict) or not all(isinstance(chunk, str) for chunk in index.values()):
            raise ValueError("it is no object of scene -> chunk file")
    except OSError as error:
        raise SceneDataError(f"cannot read {path}: {error.strerror}; make it readable") from None
    except ValueError as error:
        raise SceneDataError(f"{path} is broken: {error}") from None
    return index


@dataclass(frozen=True)
class IndexedSplit:
    """How a split's index was brought in order."""

    scan: ChunkScan
    old: dict[str, str]
    index: dict[str, str]

    @property
    def changed(self) -> bool:
        """Whether the file had to be written."""
        return self.old != self.index

    @property
    def added(self) -> list[str]:
        """Scenes that the old index lacked."""
        return [scene for scene in self.index if scene not in self.old]

    @property
    def removed(self) -> list[str]:
        """Scenes that the old index named and no readable chunk holds."""
        return [scene for scene in self.old if scene not in self.index]

    @property
    def moved(self) -> list[str]:
        """Scenes that the old index looked for in another chunk."""
        return [scene for scene, chunk in self.index.items() if self.old.get(scene, chunk) != chunk]


def index_split(folder: Path, on_chunk: Callable[[str], None] | None = None) -> IndexedSplit:
    """Build or repair the ``index.json`` of one split folder; one that is right is left alone.

    Scenes of the old index keep their order, new ones follow in the order of the chunks. The file is replaced in one
    step: when the disk fills up, or at Ctrl-C, the old index is whole.

    Args:
        folder: For example ``datasets/re10k/test``.
        on_chunk: Called with the name of each chunk once it is read.

    Raises:
        SceneDataError: If no chunk holds a scene (the old index stays), or the file cannot be written.
    """
    scan = scan_chunks(folder, on_chunk)
    if not scan.chunk_of_scene:
        reasons = "; ".join(list(scan.unreadable.values())[:2]) or "its chunks hold no scene"
        raise SceneDataError(f"no index for {folder}: {reasons}")
    try:
        old = read_index(folder)
    except SceneDataError:
        old = {}
    order = [scene for scene in old if scene in scan.chunk_of_scene]
    order += [scene for scene in scan.chunk_of_scene if scene not in old]
    index = {scene: scan.chunk_of_scene[scene] for scene in order}
    result = IndexedSplit(scan, old, index)
    if result.changed:
        with replacing(folder / INDEX) as partial:
            partial.write_text(json.dumps(index) + "\n", encoding="utf-8")
    return result


def index_dataset(root: Path, on_split: Callable[[IndexedSplit], None]) -> list[str]:
    """Build or repair the index of every split folder, with a progress bar.

    Args:
        root: A RealEstate10k folder, or one split folder of it.
        on_split: Called with what was done to each split.

    Returns:
        Why splits have no index that could be trusted, one line each; their old index stays.

    Raises:
        SceneDataError: If the folder is absent, may not be read, or holds no dataset.
        ConfigError: If the dataset is of a kind that has no such index.
    """
    from rich.console import Console
    from rich.progress import Progress

    layout = layout_of(root)
    if layout != "re10k":
        kind = "CO3D" if layout == "co3d" else "a capture"
        raise ConfigError(f"{root} is {kind}, which needs no index.json; lsplat inspect {root} says what it holds")
    folders = split_folders(root)
    if not folders:
        raise SceneDataError(f"no .torch chunk in {root} or a folder of it; there is nothing to index")
    failures = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for folder in folders:
            task = progress.add_task(f"Reading {folder.name}", total=len(chunk_files(folder)))
            try:
                on_split(index_split(folder, lambda _, task=task: progress.advance(task)))
            except SceneDataError as error:
                failures.append(str(error))
    return failures


def describe(result: IndexedSplit, examples: int = 3) -> list[str]:
    """Lines for people: what the index holds now, what changed, and what was left out by name."""

    def some(names: list[str]) -> str:
        more = f" and {len(names) - examples} more" if len(names) > examples else ""
        return ", ".join(names[:examples]) + more

    scan = result.scan
    state = "written" if result.changed else "already right"
    held = f"{counted(len(result.index), 'scene')} in {counted(len(scan.readable), 'chunk')}"
    lines = [f"{scan.folder / INDEX}: {held}, {state}"]
    if result.old:
        for what, scenes in (("added", result.added), ("moved", result.moved), ("removed", result.removed)):
            if scenes:
                lines.append(f"  {what} {len(scenes)}: {some(scenes)}")
    for chunk, reason in scan.unreadable.items():
        lost = [scene for scene, where in result.old.items() if where == chunk and scene not in result.index]
        lines.append(f"  left out {chunk}: {reason}" + (f" (held {some(lost)})" if lost else ""))
    for chunk, count in scan.nameless.items():
        lines.append(f"  left out {counted(count, 'entry', 'entries')} of {chunk} without a scene id")
    for scene, chunks in scan.repeated.items():
        lines.append(f"  {scene} is also in {some(chunks)}; the index names {result.index[scene]}")
    return lines
