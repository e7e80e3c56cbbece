from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import camera_rows
from PIL import Image

from lsplat_ns.data.contact_sheet import (
    CONTEXT,
    TARGET,
    SheetRow,
    _frustum_corners,
    _side_by_side,
    _upright,
    draw_contact_sheet,
)
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import cameras_from_re10k_rows


def turntable(frames: int = 30, size: tuple[int, int] = (36, 64), name: str = "round") -> PosedVideo:
    angle = torch.arange(frames) * (2 * torch.pi / frames)
    rows = camera_rows(torch.stack([-angle.sin(), 0 * angle, -angle.cos()], -1) * 3, angle)
    poses, intrinsics = cameras_from_re10k_rows(rows)

    def read_image(frame: int) -> np.ndarray:
        if frame == 0:
            raise SceneDataError("frame 0 is cut short")
        return np.full((*size, 3), 200, np.uint8)

    return PosedVideo(name, poses, intrinsics, read_image, lambda _: size, circular=True)


def color_share(path: Path, color: str) -> float:
    """Share of a picture's pixels in a colour given as #rrggbb."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(pixels - wanted).max(-1) < 12).mean())


def test_views_of_an_evaluation_entry_are_coloured(tmp_path: Path) -> None:
    choice = FrameChoice((3, 9), (5, 7))
    for name, row in (("plain", SheetRow(turntable(), "test")), ("entry", SheetRow(turntable(), "test", choice))):
        draw_contact_sheet([row], tmp_path / f"{name}.png", "objects")
    for color in (CONTEXT, TARGET):
        assert color_share(tmp_path / "plain.png", color) == 0
        assert color_share(tmp_path / "entry.png", color) > 1e-3


def test_every_scene_gets_a_row_of_its_own(tmp_path: Path) -> None:
    heights = []
    for count in (1, 2, 3):
        draw_contact_sheet([SheetRow(turntable(), "test")] * count, tmp_path / "sheet.png", "objects")
        heights.append(Image.open(tmp_path / "sheet.png").height)
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0], abs=1) and heights[1] > heights[0]


@pytest.mark.parametrize("size", [(36, 64), (64, 64), (128, 40), (8, 400)])
@pytest.mark.parametrize("name", ["$_{", "x" * 200, "[red]"])
def test_odd_sizes_and_names_are_drawn(tmp_path: Path, size: tuple[int, int], name: str) -> None:
    draw_contact_sheet([SheetRow(turntable(3, size, name), "test")], tmp_path / "sheet.png", "odd")
    assert color_share(tmp_path / "sheet.png", "#c8c8c8") > 1e-3  # the frames


def test_frames_of_the_entry_are_shown_context_first() -> None:
    row = SheetRow(turntable(), "test", FrameChoice((27, 2), tuple(range(5, 25))))
    assert row.shown(30) == list(range(30))
    assert {2, 27} <= set(row.shown(8)) and len(row.shown(8)) == 8 and row.shown(8) == sorted(row.shown(8))
    few = SheetRow(turntable(), "test", FrameChoice((3, 9), (5,))).shown(6)
    assert {3, 5, 9} <= set(few) and len(few) == 6
    assert SheetRow(turntable(), "test", FrameChoice((3, 99), (5,))).shown(30) == list(range(30))
    assert SheetRow(turntable(1), "test").shown(8) == [0]


def test_seen_from_above_a_level_circle_is_round_and_from_the_side_flat() -> None:
    places = _upright(turntable().world_from_camera)
    centres = places[:, :3, 3]
    assert float(centres[:, 2].abs().max()) < 1e-5
    torch.testing.assert_close(
        centres[:, :2].norm(dim=1), torch.full((30,), 3.0, dtype=torch.float64), atol=1e-5, rtol=0
    )
    inwards = places[:, :3, 2]
    torch.testing.assert_close(inwards, -centres / 3, atol=1e-5, rtol=0)


def test_frusta_of_many_cameras_stand_side_by_side() -> None:
    along = torch.linspace(0, 1, 200, dtype=torch.float64)
    places = torch.eye(4, dtype=torch.float64).repeat(200, 1, 1)
    places[:, 0, 3] = along
    intrinsics = torch.tensor([[0.7, 0, 0.5], [0, 0.7, 0.5], [0, 0, 1]], dtype=torch.float64).expand(200, 3, 3)
    drawn = _side_by_side(places[:, :3, 3], _frustum_corners(intrinsics, places, 0.14))
    apart = along[drawn].diff()
    assert drawn[0] == 0 and drawn[-1] == 199 and float(apart.min()) > 0.14 / 0.7 and len(drawn) == 5
    round_table = turntable(200)
    places = _upright(round_table.world_from_camera)
    corners = _frustum_corners(round_table.intrinsics_norm, places, 0.14 * 6)
    assert 12 < len(_side_by_side(places[:, :3, 3], corners)) <= 24


def test_a_full_disk_leaves_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fail(_: Figure, path: Path, **__) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(SceneDataError, match="No space left on device"):
        draw_contact_sheet([SheetRow(turntable(3), "test")], tmp_path / "sheet.png", "full")
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SceneDataError, match="no scene"):
        draw_contact_sheet([], tmp_path / "sheet.png", "empty")
