"""Which frames of a CO3D category belong to the training and to the test split.

latentSplat publishes lists ``co3d_<category>_{train,eval}.json`` of [sequence, frame number, image path]; frame indices
of its evaluation indices are positions in them. The list for training on teddybears was never published. A split
without a list is what the other split's list leaves, and without both lists a part of the sequences is held out. Either
way the sequences of CO3D's hidden test sets, whose images are black, are left out.

Source: spec section 2.2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lsplat_ns.data.co3d_annotations import FrameTable
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.wording import counted

HELD_OUT_EVERY = 20
"""One sequence in so many is held out where no list says which; in the published hydrant lists it is 14 of 283."""


def rows_of_split(
    category: Path, split: str, table: FrameTable, present: set[str], lists: Path | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The rows of a category's table that make up a split.

    Args:
        category: The category's folder.
        split: ``train``, or ``test`` (also called ``val``).
        table: Its frames.
        present: Sequences that have images on disk; others are left out.
        lists: Folder of the published lists; by default ``dataset_splits`` or ``../assets/dataset_splits``, seen from
            the folder that holds the categories.

    Returns:
        Rows by sequence, ordered by frame number; and what a user should know about them, one line each.

    Raises:
        SceneDataError: If a list is broken, or nothing is left for the split.
        ConfigError: If there is no such split.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"no split {split!r} of CO3D; choose train or test")
    own, other = ("train", "eval") if split == "train" else ("eval", "train")
    own_list, other_list = (_find_list(category, name, lists) for name in (own, other))
    everything = table.rows_of_sequences()
    if own_list is not None:
        rows, notes = _listed_rows(table, everything, own_list)
        absent = [name for name in rows if name not in present]
        if absent:
            have = "has" if len(absent) == 1 else "have"
            notes.append(
                f"{len(absent)} of {counted(len(rows), 'sequence')} of {own_list.name} {have} no images on disk"
            )
        rows = {name: kept for name, kept in rows.items() if name in present}
    else:
        names = [name for name in everything if name in present]
        chosen, why = _derived_sequences(category, names, split, other_list)
        rows = {name: np.arange(everything[name].start, everything[name].stop) for name in chosen}
        count = counted(len(rows), "sequence")
        notes = [f"no {_list_name(category, own)}: the {split} split is {why} ({count})"]
    if not rows:
        raise SceneDataError(
            f"no sequence of {category.name} in the {split} split has images below {category}; "
            f"download them, or check {own_list or 'the split lists'}"
        )
    return rows, [f"{category.name}: {note}" for note in notes]


def _list_name(category: Path, which: str) -> str:
    return f"co3d_{category.name}_{which}.json"


def _find_list(category: Path, which: str, lists: Path | None) -> Path | None:
    root = category.parent
    folders = [lists] if lists is not None else [root / "dataset_splits", root / ".." / "assets" / "dataset_splits"]
    if lists is not None and not lists.is_dir():
        raise SceneDataError(f"no folder {lists} of split lists; correct --split-lists")
    return next((path for folder in folders if (path := folder / _list_name(category, which)).is_file()), None)


def _listed_rows(
    table: FrameTable, everything: dict[str, slice], path: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows by sequence in the list's order, and notes on what the annotations lack."""
    wanted = _read_list(_read_json(path), path)
    unknown = [name for name in wanted if name not in everything]
    if len(unknown) == len(wanted):
        raise SceneDataError(f"the annotations have no sequence of {path}, which lists {len(wanted)}; correct the list")
    rows, missing = {}, 0
    for name in wanted:
        if name in everything:
            start, stop = everything[name].start, everything[name].stop
            rows[name] = start + np.flatnonzero(np.isin(table.frame_number[start:stop], wanted[name]))
            missing += len(set(wanted[name])) - len(rows[name])
    notes = []
    if unknown:
        notes.append(
            f"{path.name} names {counted(len(unknown), 'sequence')} that the annotations lack ({unknown[0]}, ...)"
        )
    if missing:
        notes.append(f"{path.name} names {counted(missing, 'frame')} that the annotations lack")
    return rows, notes


def _derived_sequences(category: Path, names: list[str], split: str, other: Path | None) -> tuple[list[str], str]:
    """Sequences of a split that no list states, and the rule in words."""
    hidden = _sequences_of_set_lists(category.glob("set_lists/set_lists_*view_test*.json"))
    usable = [name for name in names if name not in hidden]
    if other is not None:
        taken = _read_list(_read_json(other), other)
        rule = f"all that {other.name} leaves, but for {len(names) - len(usable)} of CO3D's hidden test sets"
        return [name for name in usable if name not in taken], rule
    developed = _sequences_of_set_lists(category.glob("set_lists/set_lists_fewview_dev.json"))
    held_out, rule = [name for name in usable if name in developed], "the sequences of set_lists_fewview_dev.json"
    if not held_out or len(held_out) == len(usable):  # a list of everything holds nothing out
        held_out, rule = usable[::HELD_OUT_EVERY], f"every {HELD_OUT_EVERY}th sequence"
    training = [name for name in usable if name not in held_out]
    if not training:
        return usable, "every sequence, as there are too few to hold one out"
    return (training, f"all but {rule}") if split == "train" else (held_out, rule)


def _sequences_of_set_lists(paths: Iterable[Path]) -> set[str]:
    """Sequences that CO3D's own set lists name, whatever subset of the list they are in."""
    names: set[str] = set()
    for path in paths:
        content = _read_json(path)
        if not isinstance(content, dict):
            raise SceneDataError(f"{path} is no set list: it holds a {type(content).__name__}; download it again")
        for entries in content.values():
            names.update(_read_list(entries, path))
    return names


def _read_list(entries: object, path: Path) -> dict[str, list[int]]:
    """Frame numbers by sequence of a list of [sequence, frame number, image path]."""
    try:
        frames: dict[str, list[int]] = {}
        if not isinstance(entries, list):
            raise TypeError
        for name, number, *_ in entries:
            frames.setdefault(str(name), []).append(int(number))
    except (TypeError, ValueError):
        raise SceneDataError(f"{path} is no list of [sequence, frame number, image path]; download it again") from None
    return frames


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SceneDataError(f"{path} is no JSON: {error}; download it again") from None
    except OSError as error:
        raise SceneDataError(f"cannot read {path}: {error.strerror}; make it readable") from None
