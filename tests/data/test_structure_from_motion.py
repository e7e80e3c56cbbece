"""Poses of three and more photos, with pycolmap where it is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from parity import SHARED
from PIL import Image

from lsplat_ns.data.photos import Photo
from lsplat_ns.data.structure_from_motion import reconstruct_photos
from lsplat_ns.errors import MissingExtra, SceneDataError


def blank(name: str) -> Photo:
    return Photo(Path(name), np.full((64, 64, 3), 200, np.uint8), 60.0, "stated")


def test_without_pycolmap_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lsplat-ns\[colmap\]', or pass two photos"):
        reconstruct_photos((blank("a"), blank("b"), blank("c")))


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not beside this checkout")
def test_a_chain_of_photos_is_posed_and_a_stray_one_left_out() -> None:
    pytest.importorskip("pycolmap", reason="the extra lsplat-ns[colmap] is not installed")
    folder = SHARED / "data" / "fox"
    frames = sorted(json.loads((folder / "transforms.json").read_text())["frames"], key=lambda f: f["file_path"])[3:8]
    photos = [
        Photo(Path(f["file_path"]), np.asarray(Image.open(folder / f["file_path"]).convert("RGB")), 480.0, "stated")
        for f in frames
    ]
    posed = reconstruct_photos((*photos[:2], blank("stray.jpg"), *photos[2:]))
    assert [photo.path for photo in posed.photos] == [photo.path for photo in photos]
    assert "stray.jpg fits nowhere" in posed.report and "5 of 6 photos are placed" in posed.report
    truth = [np.array(f["transform_matrix"]) @ np.diag([1, -1, -1, 1]) for f in frames]
    for estimate, true in zip(posed.world_from_camera[1:], truth[1:], strict=True):
        step = np.linalg.inv(posed.world_from_camera[0]) @ estimate
        true_step = np.linalg.inv(truth[0]) @ true
        assert np.trace(step[:3, :3].T @ true_step[:3, :3]) > 1 + 2 * np.cos(np.radians(0.5))
        cosine = step[:3, 3] @ true_step[:3, 3] / np.linalg.norm(step[:3, 3]) / np.linalg.norm(true_step[:3, 3])
        assert cosine > np.cos(np.radians(1))
    assert posed.photos[0].focal_px == pytest.approx(458, rel=0.02)  # 480 was given
    assert posed.photos[0].focal_source == "refined"


def test_photos_without_anything_in_common_are_refused() -> None:
    pytest.importorskip("pycolmap", reason="the extra lsplat-ns[colmap] is not installed")
    with pytest.raises(SceneDataError, match="cannot be joined"):
        reconstruct_photos((blank("a"), blank("b"), blank("c")))
