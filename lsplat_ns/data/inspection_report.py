"""What an inspection tells people: tables, one line per bad item, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from lsplat_ns.data.contact_sheet import SheetRow, draw_contact_sheet
from lsplat_ns.data.inspection import SplitInspection
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import SceneDataError
from lsplat_ns.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

SIZES_LISTED = 3


def print_report(splits: Sequence[SplitInspection], console: Console, most_items: int | None = 20) -> int:
    """Print what was found.

    Args:
        splits: Inspected splits.
        console: Where to.
        most_items: Bad items that are listed; all when None.

    Returns:
        The number of bad items.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table("split", "scenes", "frames", "per scene", "width x height", "field of view", "bad items")
    for split in splits:
        table.add_row(
            escape(split.name), str(len(split.scenes)), str(split.frames), *_ranges(split), str(len(split.problems))
        )
    console.print(table)
    for note in dict.fromkeys(note for split in splits for note in split.notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    problems = [(split.name, problem) for split in splits for problem in split.problems]
    if not problems:
        console.print("Nothing is wrong.")
        return 0
    counts = Table("reason", "items")
    for reason, count in Counter(problem.reason for _, problem in problems).most_common():
        counts.add_row(reason, str(count))
    console.print(counts)
    for split, problem in problems[:most_items]:
        line = f"{split}: {problem.reason}: {problem.detail}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if most_items is not None and len(problems) > most_items:
        console.print(f"... and {len(problems) - most_items} more; list them with --all")
    return len(problems)


def _ranges(split: SplitInspection) -> tuple[str, str, str]:
    """Frames per scene, sizes and fields of view as short text."""
    if not split.scenes:
        return "-", "-", "-"
    frames = [facts.frames for facts in split.scenes]
    sizes = [f"{width}x{height}" for (height, width), _ in split.sizes.most_common(SIZES_LISTED)]
    more = f" and {len(split.sizes) - SIZES_LISTED} more" if len(split.sizes) > SIZES_LISTED else ""
    fov = sorted(facts.fov_degrees for facts in split.scenes)
    per_scene = str(frames[0]) if min(frames) == max(frames) else f"{min(frames)}-{median(frames):.0f}-{max(frames)}"
    return per_scene, ", ".join(sizes) + more, f"{fov[0]:.0f}°" if fov[0] == fov[-1] else f"{fov[0]:.0f}-{fov[-1]:.0f}°"


def write_contact_sheet(splits: Sequence[SplitInspection], path: Path, title: str, most_scenes: int = 8) -> int:
    """Draw scenes of a dataset: those with evaluation entries first, then evenly spread over the splits.

    Returns:
        The number of scenes drawn; none, and no file, where no scene can be read.

    Raises:
        SceneDataError: If the file cannot be written.
    """
    readable = [(split, facts.scene) for split in splits for facts in split.scenes]
    listed = [item for item in readable if item[1] in item[0].entries]
    others = [item for item in readable if item not in listed]
    half = max(most_scenes // 2, most_scenes - len(others))
    chosen = _spread(listed, half)
    chosen += _spread(others, most_scenes - len(chosen))
    rows = [row for split, scene in chosen if (row := _row(split, scene)) is not None]
    if not rows:
        return 0
    scenes, frames = len(readable), sum(split.frames for split in splits)
    note = f"{counted(scenes, 'scene')}, {counted(frames, 'frame')}; {len(rows)} shown"
    draw_contact_sheet(rows, path, title, note)
    return len(rows)


def _spread(items: list, count: int) -> list:
    """``count`` items at even distances."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _row(split: SplitInspection, scene: str) -> SheetRow | None:
    """A scene with all targets of the entries that share its first entry's context."""
    try:
        video = split.source.read_scene(scene)
    except SceneDataError:
        return None
    entries = split.entries.get(scene)
    if not entries:
        return SheetRow(video, split.name)
    context = entries[0].context
    targets = {frame for entry in entries if entry.context == context for frame in entry.target}
    return SheetRow(video, split.name, FrameChoice(context, tuple(sorted(targets))))
