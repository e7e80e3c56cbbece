"""Generated views as layers of a scene: photos first, and every Gaussian knows what it came from."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from demo_captures import write_capture
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from untrained_runs import write_untrained_run

from lsplat_ns.data.pair_selection import extend_context
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.trajectories import PathConfig, camera_path
from lsplat_ns.plugin.captures import CaptureContextConfig, active_scene_from_dataparser, read_capture
from lsplat_ns.plugin.lifting import lift
from lsplat_ns.plugin.recipes import tiny_trainer


def mark(capture: Path, generated: set[int]) -> Path:
    """Mark frames, by their place in the file, as generated."""
    file = capture / "transforms.json"
    content = json.loads(file.read_text())
    for number, frame in enumerate(content["frames"]):
        if number in generated:
            frame["generated"] = True
    file.write_text(json.dumps(content))
    return capture


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_run(tmp_path_factory.mktemp("lifting") / "run")


def scene_of(capture: Path, context: tuple[int, ...]):
    preparation = tiny_trainer("x").pipeline.datamanager.preparation
    dataparser = NerfstudioDataParserConfig(data=capture).setup()
    return active_scene_from_dataparser(dataparser, preparation, CaptureContextConfig(context))


def test_a_capture_knows_its_generated_frames(tmp_path: Path) -> None:
    capture = mark(write_capture(tmp_path / "c", range(0, 12, 3)), {1, 3})
    _, record = read_capture(NerfstudioDataParserConfig(data=capture).setup())
    assert record.generated == {1, 3}
    _, record = read_capture(NerfstudioDataParserConfig(data=write_capture(tmp_path / "d", range(0, 12, 3))).setup())
    assert record.generated == frozenset()


def test_a_pair_of_a_photo_and_a_generated_view_makes_a_layer_of_each_kind(tmp_path: Path) -> None:
    scene = scene_of(mark(write_capture(tmp_path / "c", range(0, 12, 3)), {1, 3}), (0, 1, 2))
    kinds = [(pair.new_views, pair.generated) for pair in scene.pairs]
    assert kinds == [((0,), False), ((1,), True), ((1,), False)]
    first, second, _ = scene.pairs
    assert torch.equal(first.views.image, second.views.image) and first.scale == second.scale == 1


@pytest.mark.slow
def test_lifting_makes_an_ordinary_run_whose_photos_come_first(run: Path, tmp_path: Path) -> None:
    capture = mark(write_capture(tmp_path / "c", range(0, 14, 2)), {1, 2, 3, 4, 5, 6})
    config_file = lift(run, capture, tmp_path / "lifted", most_generated=3)
    config = yaml.load(config_file.read_text(), Loader=yaml.Loader)
    context = config.pipeline.datamanager.context
    assert context[0] == 0 and len(context) == 4
    assert config.pipeline.datamanager.data == tmp_path / "lifted" / "c"
    pipeline = config.pipeline._target(config.pipeline, device="cpu", test_mode="inference")
    fused = pipeline.eval().model.prediction().fused
    assert fused.generated.any() and not fused.generated.all()
    assert not fused.generated[fused.layer == 0].any() and fused.generated[fused.layer > 0].all()
    layers = fused.layer.unique().tolist()
    assert layers == sorted(layers) and layers[0] == 0


def test_captures_that_cannot_be_lifted_are_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SceneDataError, match="marks no frame as generated"):
        lift(run, write_capture(tmp_path / "photos", range(0, 12, 3)), tmp_path / "out")
    with pytest.raises(SceneDataError, match="generated views only"):
        lift(run, mark(write_capture(tmp_path / "views", range(0, 12, 3)), {0, 1, 2, 3}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_context_is_extended_by_what_shows_most_that_is_new() -> None:
    poses = torch.eye(4).repeat(6, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 0.05, 0.4, 0.8, 1.2, 30.0])
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).repeat(6, 1, 1)
    chosen = extend_context(poses[:5], intrinsics[:5], (0,), 3)
    assert chosen[0] == 0 and 1 not in chosen and len(chosen) == 3
    assert extend_context(poses[:5], intrinsics[:5], (2, 0), 2) == (2, 0)


def test_views_that_all_show_the_same_are_taken_from_everywhere_along_the_path() -> None:
    poses = torch.cat([torch.eye(4)[None], camera_path(torch.eye(4), PathConfig("orbit", 40))])
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).repeat(41, 1, 1)
    chosen = sorted(extend_context(poses, intrinsics, (0,), 9))
    gaps = [after - before for before, after in pairwise(chosen)]
    assert len(chosen) == 9 and min(gaps) >= 3 and max(gaps) <= 7
