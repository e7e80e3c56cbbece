"""A picture of a dataset: for each scene some frames, and its cameras seen from above and from the side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import z_up_rotation
from lsplat_ns.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTEXT, TARGET, OTHER, INK, FAINT = "#d9480f", "#1971c2", "#adb5bd", "#212529", "#868e96"
"""Colours of context views, target views, other cameras, text and side notes."""
WIDTH, MARGIN, GAP = 16.0, 0.4, 0.08
"""Inches: of the sheet, around it, between tiles."""
HEADER, ROW, ROW_GAP = 0.95, 2.2, 0.35
"""Inches: height of the title, of a scene, and between scenes."""
LABELS, PLOT = 2.2, 2.2
"""Inches: width of a scene's label and of each of its two plots."""
PORTRAIT = 0.7
"""Frames narrower than this (width over height) stand in one line, others in two."""
FRUSTUM = 0.14
"""Depth of a drawn frustum, as a share of the plot."""
FEWEST_FRUSTA, MOST_FRUSTA = 4, 24
"""Cameras that are drawn as frusta beside those of context and targets, as many as stand side by side along the path;
the path itself shows the others."""
DOTS_PER_INCH = 110
GLYPHS_SAFE = 26
"""Characters of a scene id that fit beside its frames."""


@dataclass(frozen=True)
class SheetRow:
    """One scene of the sheet."""

    video: PosedVideo
    split: str
    choice: FrameChoice | None = None  # an evaluation entry, whose views are coloured
    numbers: tuple[int, ...] | None = None  # what frames are called; by default their positions in the video

    def shown(self, count: int) -> list[int]:
        """``count`` frames in order: those of the entry, filled up evenly from the rest."""
        count = min(count, len(self.video))
        named = sorted({*self.choice.context, *self.choice.target}) if self.choice else []
        named = [frame for frame in named if frame < len(self.video)]
        if len(named) > count:
            context = [frame for frame in named if frame in self.choice.context]
            rest = [frame for frame in named if frame not in context]
            named = context + [rest[i] for i in _evenly(len(rest), count - len(context))]
        others = [frame for frame in range(len(self.video)) if frame not in named]
        return sorted(named + [others[i] for i in _evenly(len(others), count - len(named))])

    def number(self, frame: int) -> int:
        """What a frame is called."""
        return frame if self.numbers is None else self.numbers[frame]

    def color(self, frame: int) -> str:
        """Colour of a frame's part in the entry."""
        if self.choice and frame in self.choice.context:
            return CONTEXT
        return TARGET if self.choice and frame in self.choice.target else OTHER


def _evenly(length: int, count: int) -> list[int]:
    """``count`` distinct positions spread over ``length``, the ends included where there are two or more."""
    count = min(count, length)
    if count < 2:
        return list(range(count))
    return [round(i * (length - 1) / (count - 1)) for i in range(count)]


def draw_contact_sheet(rows: list[SheetRow], path: Path, title: str, note: str = "") -> None:
    """Draw scenes below each other into a PNG.

    Args:
        rows: The scenes. A frame that cannot be decoded is left blank and says so.
        path: File to write, whole or not at all.
        title: Heading of the sheet.
        note: A line under it.

    Raises:
        SceneDataError: If there is no scene, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise SceneDataError("no scene to draw")
    height = HEADER + len(rows) * (ROW + ROW_GAP) + MARGIN - ROW_GAP
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    sheet = _Sheet(figure, height)
    sheet.text(MARGIN, 0.30, title, size=17, weight="bold")
    sheet.text(MARGIN, 0.62, note, size=10.5, color=FAINT)
    if any(row.choice for row in rows):
        _draw_legend(sheet)
    for number, row in enumerate(rows):
        _draw_row(sheet, row, HEADER + number * (ROW + ROW_GAP))
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


@dataclass(frozen=True)
class _Sheet:
    """A figure measured in inches from its top left corner."""

    figure: Figure
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Bare axes in a box."""
        bottom = self.height - top - height
        axes = self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def text(self, left: float, middle: float, text: str, **style) -> None:
        """One line of text, centred vertically; ``$`` is no mathematics."""
        style = {"color": INK, "va": "center", **style}
        self.figure.text(left / WIDTH, 1 - middle / self.height, text, parse_math=False, **style)


def _draw_legend(sheet: _Sheet) -> None:
    right = WIDTH - MARGIN
    for name, color in (("other camera", OTHER), ("target view", TARGET), ("context view", CONTEXT)):
        right -= 1.35
        sheet.text(right, 0.62, "■", size=12, color=color)
        sheet.text(right + 0.2, 0.62, name, size=10.5)


def _draw_row(sheet: _Sheet, row: SheetRow, top: float) -> None:
    video = row.video
    name = video.scene if len(video.scene) <= GLYPHS_SAFE else video.scene[: GLYPHS_SAFE - 1] + "…"
    span = float(torch.cdist(video.world_from_camera[None, :, :3, 3], video.world_from_camera[None, :, :3, 3]).max())
    lines = [f"{counted(len(video), 'frame')}{', turntable' if video.circular else ''}"]
    size = _size(video)
    lines.append(f"{size[1]} x {size[0]} px" if size else "first frame unreadable")
    lines += [f"field of view {video.largest_fov_degrees():.0f}°", f"path {span:.3g} units across"]
    if row.choice:
        lines.append(f"context {', '.join(str(row.number(frame)) for frame in row.choice.context)}")
    sheet.text(MARGIN, top + 0.12, name, size=11, weight="bold")
    for number, line in enumerate([row.split, *lines]):
        sheet.text(MARGIN, top + 0.42 + 0.24 * number, line, size=9.5, color=FAINT if number == 0 else INK)
    frames_left = MARGIN + LABELS
    plots_left = WIDTH - MARGIN - 2 * PLOT - 2 * GAP
    _draw_frames(sheet, row, (frames_left, top, plots_left - frames_left - 3 * GAP, ROW))
    places = _upright(video.world_from_camera)
    for number, (heading, vertical) in enumerate((("from above", 1), ("from the side", 2))):
        axes = sheet.axes(plots_left + number * (PLOT + 2 * GAP), top, PLOT, ROW)
        _draw_cameras(axes, row, places, vertical)
        axes.text(0.03, 0.97, heading, transform=axes.transAxes, size=9, color=FAINT, va="top")


def _size(video: PosedVideo) -> tuple[int, int] | None:
    """(height, width) of the first frame; None where it cannot be read."""
    try:
        return video.read_size(0)
    except SceneDataError:
        return None


def _draw_frames(sheet: _Sheet, row: SheetRow, box: tuple[float, float, float, float]) -> None:
    """Frames as tiles of one size; as many as fit."""
    left, top, width, height = box
    frame_height, frame_width = _size(row.video) or (1, 1)
    aspect = frame_width / frame_height
    lines = 1 if aspect < PORTRAIT else 2
    tall = (height - GAP * (lines - 1)) / lines
    columns = max(1, int((width + GAP) / (tall * aspect + GAP)))
    wide = min(tall * aspect, width)
    for number, frame in enumerate(row.shown(lines * columns)):
        line, column = divmod(number, columns)
        axes = sheet.axes(left + column * (wide + GAP), top + line * (tall + GAP), wide, tall)
        tile = _read_tile(row.video, frame)
        if tile is None:
            axes.set_facecolor("#f1f3f5")
            axes.text(0.5, 0.5, "unreadable", transform=axes.transAxes, ha="center", va="center", size=9, color=FAINT)
        else:
            axes.imshow(tile, aspect="equal", interpolation="antialiased")
        color = row.color(frame)
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=1.0 if color == OTHER else 3.0)
        label = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5}
        corner = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (5, -5), "textcoords": "offset points"}
        axes.annotate(str(row.number(frame)), **corner, va="top", size=8, color=INK, bbox=label)


def _read_tile(video: PosedVideo, frame: int) -> np.ndarray | None:
    """A frame at the size of a tile; None where it does not decode."""
    try:
        image = Image.fromarray(video.read_image(frame))
    except SceneDataError:
        return None
    image.thumbnail((int(ROW * DOTS_PER_INCH * 2), int(ROW * DOTS_PER_INCH)), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _upright(world_from_camera: Tensor) -> Tensor:
    """Poses [n, 4, 4] turned so that +z is up and the cameras spread most along +x, centred on the cameras."""
    poses = world_from_camera.double()
    up = z_up_rotation(world_from_camera).double()
    centres = (poses[:, :3, 3] - poses[:, :3, 3].mean(0)) @ up.T
    _, _, axes = torch.linalg.svd(centres[:, :2], full_matrices=True)
    x, y = axes[0].tolist()
    level = torch.tensor([[x, y, 0.0], [-y, x, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    turned = torch.eye(4, dtype=torch.float64).repeat(len(poses), 1, 1)
    turned[:, :3, :3] = level @ up @ poses[:, :3, :3]
    turned[:, :3, 3] = centres @ level.T
    return turned


def _draw_cameras(axes: Axes, row: SheetRow, places: Tensor, vertical: int) -> None:
    """The path and the frusta in the plane of x and the ``vertical`` axis (1: from above, 2: from the side)."""
    from matplotlib.collections import LineCollection

    plane = [0, vertical]
    centres = places[:, :3, 3]
    extent = float(max((centres.max(0).values - centres.min(0).values).max(), 1e-6))
    corners = _frustum_corners(row.video.intrinsics_norm, places, FRUSTUM * extent)
    path = centres[:, plane].tolist()
    line = [*path, path[0]] if row.video.circular else path
    axes.plot(*zip(*line, strict=True), color="#ced4da", linewidth=1.2, zorder=1)
    named = [frame for frame in range(len(path)) if row.color(frame) != OTHER]
    quiet = [frame for frame in _side_by_side(centres, corners) if frame not in named]
    for frames, width, order in ((quiet, 0.8, 2), (named, 1.6, 3)):
        lines, colors = [], []
        for frame in frames:
            tip, ring = path[frame], corners[frame][:, plane].tolist()
            lines += [[tip, corner] for corner in ring] + [[*ring, ring[0]]]
            colors += [row.color(frame)] * 5
        axes.add_collection(LineCollection(lines, colors=colors, linewidths=width, zorder=order, capstyle="round"))
    points = torch.cat([centres[:, None], corners], 1)[:, :, plane].reshape(-1, 2)
    low, high = points.min(0).values, points.max(0).values
    middle, half = (low + high) / 2, 0.6 * float((high - low).max())
    axes.set_xlim(float(middle[0]) - half, float(middle[0]) + half)
    axes.set_ylim(float(middle[1]) - half, float(middle[1]) + half)
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_color("#dee2e6")
    _draw_scale(axes, half)


def _side_by_side(centres: Tensor, corners: Tensor) -> list[int]:
    """Evenly chosen cameras, as many as their frusta find room along the path of all centres [n, 3]."""
    across = float((corners[:, 1] - corners[:, 0]).norm(dim=-1).median())
    length = float((centres[1:] - centres[:-1]).norm(dim=-1).sum())
    return _evenly(len(centres), min(max(round(length / across), FEWEST_FRUSTA), MOST_FRUSTA))


def _frustum_corners(intrinsics_norm: Tensor, places: Tensor, depth_z: float) -> Tensor:
    """World corners [n, 4, 3] of each camera's image at ``depth_z``."""
    image = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    rays = image @ torch.linalg.inv(intrinsics_norm.double()).transpose(-1, -2)
    return depth_z * rays @ places[:, :3, :3].transpose(-1, -2) + places[:, None, :3, 3]


def _draw_scale(axes: Axes, half: float) -> None:
    """A bar of a round length, in the dataset's units."""
    power = 10.0 ** math.floor(math.log10(half / 2))
    length = max(step * power for step in (1, 2, 5) if step * power <= half / 2)
    (left, _), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    start, level = left + 0.1 * half, bottom + 0.12 * half
    axes.plot([start, start + length], [level, level], color=FAINT, linewidth=1.5, solid_capstyle="butt")
    axes.text(start + length + 0.05 * half, level, f"{length:g}", size=8, color=FAINT, va="center")
