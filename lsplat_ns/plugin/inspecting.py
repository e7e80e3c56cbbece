"""``lsplat inspect``: the health of any dataset, captures included."""

from dataclasses import replace
from pathlib import Path
from typing import Optional

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.inspection import InspectionConfig, SplitInspection, inspect_source
from lsplat_ns.data.inspection_report import print_report, write_contact_sheet
from lsplat_ns.data.layouts import layout_of
from lsplat_ns.data.sources import VideoList
from lsplat_ns.data.survey import survey
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import SceneDataError
from lsplat_ns.wording import counted


def inspect_dataset(
    data: Path,
    config: InspectionConfig,
    *,
    sheet: Optional[Path] = None,
    scenes: int = 8,
    most_items: Optional[int] = 20,
) -> int:
    """Inspect a dataset with a progress bar, print the report, and draw a contact sheet.

    Args:
        data: RealEstate10k chunks, CO3D, or a capture with a transforms.json.
        config: What scenes are held against.
        sheet: Picture to write; none when None.
        scenes: Scenes in the picture.
        most_items: Bad items that are listed; all when None.

    Returns:
        The number of bad items.

    Raises:
        SceneDataError: If there is no dataset that can be read, or the picture cannot be written.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        if layout_of(data) == "capture":
            splits = [name_context(open_capture(data), config.image_size)]
            config = replace(config, fewest_frames=2)
        else:
            splits = survey(data)
        for split in splits:
            task = progress.add_task(f"Inspecting {split.name}", total=len(split.source.scenes) if split.source else 0)
            inspect_source(split, config, lambda task=task: progress.advance(task))
    console = Console()
    count = print_report(splits, console, most_items)
    if sheet is not None and scenes > 0:
        drawn = write_contact_sheet(splits, sheet, data.resolve().name, scenes)
        what = counted(drawn, "scene")
        console.print(f"Drew {what} into {sheet}" if drawn else "No scene can be drawn.", markup=False)
    return count


def open_capture(capture: Path) -> SplitInspection:
    """A capture as the only scene of a split, read by nerfstudio's own dataparser.

    Raises:
        SceneDataError: If nerfstudio cannot read it.
    """
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    from lsplat_ns.plugin.captures import open_dataparser, video_from_dataparser

    video = video_from_dataparser(open_dataparser(NerfstudioDataParserConfig(data=capture)))
    return SplitInspection("capture", VideoList((video,)))


def name_context(split: SplitInspection, image_size: tuple[int, int]) -> SplitInspection:
    """Put the views that a network of ``image_size`` (height, width) is shown of a capture in an entry's place."""
    from lsplat_ns.plugin.captures import best_pair

    (video,) = split.source.videos
    try:
        context = best_pair(video, PreparationConfig(image_size=image_size))
    except SceneDataError:
        return split  # no two frames are readable, which the inspection reports
    split.entries = {video.scene: [FrameChoice(context, ())]}
    split.notes.append(f"the network is shown frames {context[0]} and {context[1]}, unless others are stated (context)")
    return split
