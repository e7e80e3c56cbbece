"""``lsplat generate``: what it writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BIN
from demo_captures import room
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from untrained_runs import write_untrained_mvldm

from lsplat_ns.cli import Generate
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.view_sampling import read_evaluation_index
from lsplat_ns.diffusion.sampler import GenerationProgress, SamplingConfig
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import ViewPlanConfig
from lsplat_ns.errors import ConfigError, GenerationCancelled, LsplatError, SceneDataError
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.geometry.trajectories import PathConfig
from lsplat_ns.mvldm import MultiViewDiffusion
from lsplat_ns.plugin import generating
from lsplat_ns.plugin.generate_command import run_generate
from lsplat_ns.plugin.generated_folder import GeneratedFolder
from lsplat_ns.plugin.generating import (
    GenerationOptions,
    describe_request,
    generate_frames,
    generate_into,
    image_size_of,
)
from lsplat_ns.plugin.generation_tasks import GenerationTask, PhotoRequest

SIZE = (32, 32)
QUICK = GenerationOptions(sampling=SamplingConfig(SolverConfig("ddim", 2)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_mvldm(tmp_path_factory.mktemp("mvldm") / "run")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "room.png"
    Image.fromarray(room().frame(0).image).save(file)
    return file


@pytest.fixture
def task(photo: Path) -> GenerationTask:
    """Nine views along an orbit: three groups."""
    return PhotoRequest((photo,), 60.0).task(SIZE, PathConfig("orbit", 9))[0]


def images_of(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.asarray(Image.open(file)) for file in sorted((folder / "images").iterdir())}


def command(run: Path, output: Path, **options: object) -> Generate:
    return Generate(run, output, **{"size": "32x32", "steps": 2, **options})


def generate_by(given: Generate) -> Path:
    run_generate(given, SIZE)
    return given.output


# -------------------------------------------------------------------------------------------------- what is written


def test_a_scene_is_written_as_frames_video_sheet_and_a_capture_for_nerfstudio(
    run: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    index = read_evaluation_index(rooms / "evaluation_index.json")
    scene, (entry, *_) = next(iter(index.items()))
    output = generate_by(command(run, tmp_path / "out", data=rooms, scene="0"))
    frames = sorted({entry.context[0], *entry.context, *entry.target})
    assert [int(name.removesuffix(".png")) for name in images_of(output)] == frames
    assert f"Wrote {len(frames) - 1} views" in capsys.readouterr().out
    content = json.loads((output / "transforms.json").read_text())
    generated = {frame["file_path"]: frame.get("generated", False) for frame in content["frames"]}
    assert generated == {f"images/{frame:06d}.png": frame != entry.context[0] for frame in frames}
    import av

    with av.open(str(output / "video.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == len(frames) - 1
    assert Image.open(output / "contact_sheet.png").size[0] > 1000
    scores = json.loads((output / "consistency.json").read_text())
    assert [pair["frames"] for pair in scores["pairs"]] == [list(pair) for pair in pairwise(frames)]
    assert 0.3 < scores["mean_error"] <= 1 and "met3r" not in scores

    config = NerfstudioDataParserConfig(
        data=output, orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all"
    )
    outputs = config.setup().get_dataparser_outputs("train")
    truth = Re10kSplit.open(rooms, "test").read_scene(scene)
    poses = opencv_from_opengl(outputs.cameras.camera_to_worlds)
    torch.testing.assert_close(poses, truth.world_from_camera[frames])
    fov = 2 * torch.atan(outputs.cameras.height[0] / 2 / outputs.cameras.fy[0])
    torch.testing.assert_close(fov, 2 * torch.atan(0.5 / truth.intrinsics_norm[:1, 1, 1])[0].reshape(1))
    given = images_of(output)[f"{entry.context[0]:06d}.png"]
    assert given.shape == (*SIZE, 3) and given.std() > 10


def test_a_photo_needs_no_dataset(
    run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "met3r", None)
    output = generate_by(
        command(run, tmp_path / "out", image=(photo,), trajectory="dolly", reach=0.4, limit_frames=3, met3r=True)
    )
    poses = [np.array(f["transform_matrix"]) for f in json.loads((output / "transforms.json").read_text())["frames"]]
    assert np.allclose(poses[0], np.diag([1, -1, -1, 1])) and np.allclose(poses[-1][:3, 3], [0, 0, 0.4])
    said = capsys.readouterr().out
    assert "a field of view of 65 degrees is assumed" in said and "Consistency: " in said
    assert "Not measured: MEt3R is not available" in said
    assert "not available" in json.loads((output / "consistency.json").read_text())["met3r"]["not measured"]


def test_given_views_beside_a_path_do_not_count_as_neighbours_in_its_score(
    run: Path, rooms: Path, tmp_path: Path
) -> None:
    options = {"data": rooms, "scene": "0", "context": (0, 9), "limit_frames": 3}
    output = generate_by(command(run, tmp_path / "out", trajectory="truck", **options))
    assert len(images_of(output)) == 5  # the other given view is stored as well
    assert [pair["frames"] for pair in json.loads((output / "consistency.json").read_text())["pairs"]] == [
        [0, 2], [2, 3], [3, 4],
    ]  # fmt: skip
    output = generate_by(command(run, tmp_path / "between", trajectory="between", **options))
    pairs = json.loads((output / "consistency.json").read_text())["pairs"]
    assert [pair["frames"] for pair in pairs] == [[0, 1], [1, 2], [2, 3], [3, 4]]


@pytest.mark.parametrize(
    ("kind", "steps", "instead"),
    [("ddim", 2, 10), ("ddim", 112, 111), ("ddim", 334, 333), ("ddim", 501, 500), ("ddim", 70, 0), ("unipc", 1, 0)],
)
def test_a_solver_that_starts_where_signal_is_expected_is_named_in_one_line(
    kind: str, steps: int, instead: int, run: Path, task: GenerationTask, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lines: list[str] = []
    monkeypatch.setattr(generating, "load_generator", lambda *_: StubModel())
    options = GenerationOptions(sampling=SamplingConfig(SolverConfig(kind, steps)))
    generate_into(run, task, tmp_path / "out", options, say=lines.append)
    assert len(lines) == bool(instead)
    if instead:
        assert f"ddim in {steps} steps starts at noise level" in lines[0] and f"take --steps {instead}, or" in lines[0]
        assert SolverConfig(kind, instead).first_level >= 900


def test_from_10_to_100_steps_ddim_starts_high_enough() -> None:
    assert min(SolverConfig("ddim", steps).first_level for steps in range(10, 101)) >= generating.HIGH_LEVEL


def test_paths_may_begin_with_the_home_folder(
    run: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, place in (("run", run), ("photos", photo.parent)):
        (tmp_path / name).symlink_to(place)
    monkeypatch.setenv("HOME", str(tmp_path))
    generate_by(command(Path("~/run"), Path("~/out"), image=(Path("~/photos/room.png"),), limit_frames=1))
    assert (tmp_path / "out" / "video.mp4").is_file()
    with pytest.raises(ConfigError, match="begins with ~"):
        generate_by(command(run, Path("~nobody-of-this-name/out"), image=(photo,)))


def test_the_same_seed_gives_the_same_views_and_another_one_others(
    run: Path, task: GenerationTask, tmp_path: Path
) -> None:
    other = replace(QUICK, sampling=replace(QUICK.sampling, seed=1))
    first, again, third = (
        images_of(generate_into(run, task, tmp_path / name, options, say=lambda _: None).path)
        for name, options in (("a", QUICK), ("b", QUICK), ("c", other))
    )
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.array_equal(first[name], third[name]) == (name == "000000.png") for name in first)


@pytest.mark.parametrize("mode", ["anchored", "autoregressive"])
def test_an_interrupted_sequence_goes_on_to_the_very_same_images(
    mode: str, run: Path, task: GenerationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(QUICK, plan=ViewPlanConfig(mode))
    whole = images_of(generate_into(run, task, tmp_path / "whole", options, say=lambda _: None).path)
    sample, calls, lines = MultiViewDiffusion.sample, [], []

    def interrupted(self, *args, on_step, **kwargs):
        calls.append(args)

        def step(number: int) -> None:
            on_step(number)
            if len(calls) == 2 and number == 1:
                raise KeyboardInterrupt

        return sample(self, *args, on_step=step, **kwargs)

    monkeypatch.setattr(MultiViewDiffusion, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_into(run, task, tmp_path / "out", options, say=lines.append)
    kept = images_of(tmp_path / "out")
    assert 1 < len(kept) < len(whole) and f"{len(kept) - 1} of 9 frames are kept" in lines[-1]
    assert not (tmp_path / "out" / "transforms.json").exists()
    monkeypatch.undo()

    written = []
    write = GeneratedFolder.write_image
    monkeypatch.setattr(GeneratedFolder, "write_image", lambda s, f, i: (written.append(f), write(s, f, i))[1])
    generate_into(run, task, tmp_path / "out", options, say=lines.append)
    after = images_of(tmp_path / "out")
    assert after.keys() == whole.keys() and all(np.array_equal(after[name], whole[name]) for name in whole)
    assert sorted(written) == [0, *(frame for frame in task.frames if f"{frame:06d}.png" not in kept)]
    assert f"{len(kept) - 1} of 9 frames are there already" in lines[-1]


@pytest.mark.parametrize("mode", ["anchored", "autoregressive"])
def test_frames_of_a_group_that_was_stored_in_part_are_kept(
    mode: str, run: Path, task: GenerationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(QUICK, plan=ViewPlanConfig(mode))
    whole = images_of(generate_into(run, task, tmp_path / "whole", options, say=lambda _: None).path)
    write, written, lines = GeneratedFolder.write_image, [], []

    def interrupted(folder: GeneratedFolder, frame: int, image: torch.Tensor) -> None:
        if len(written) == 6:  # the given view, a group of anchors or targets, one frame of the next
            raise KeyboardInterrupt
        written.append(frame)
        write(folder, frame, image)

    monkeypatch.setattr(GeneratedFolder, "write_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_into(run, task, tmp_path / "out", options, say=lines.append)
    kept = tuple(written[1:])
    assert len(kept) == 5 and "5 of 9 frames are kept" in lines[-1]
    for frame in kept:  # whatever is drawn again, what the user was told of stays
        os.utime(tmp_path / "out" / "images" / f"{frame:06d}.png", (1, 1))

    monkeypatch.setattr(GeneratedFolder, "write_image", write)
    after = generate_into(run, task, tmp_path / "out", options, say=lines.append)
    assert all(after.image_file(frame).stat().st_mtime == 1 for frame in kept)
    assert all(np.array_equal(image, whole[name]) for name, image in images_of(after.path).items())
    assert len(images_of(after.path)) == len(whole) == 10


def test_generation_ends_within_one_step_of_being_cancelled(run: Path, task: GenerationTask, tmp_path: Path) -> None:
    steps: list[GenerationProgress] = []
    folder = GeneratedFolder.claim(tmp_path / "out", describe_request(run, task, QUICK))
    model = StubModel()
    with pytest.raises(GenerationCancelled, match="cancelled in group 2 of 3"):
        generate_frames(
            model, task, folder, QUICK, on_step=steps.append, cancelled=lambda: steps[-1].group == 1, say=print
        )
    assert (steps[-1].group, steps[-1].step) == (1, 0) and len(images_of(tmp_path / "out")) == 4


class StubModel:
    """Grey views; knows how many views it was asked for at once, and how many fit."""

    def __init__(self, most_views: int = 5) -> None:
        self.most_views, self.asked = most_views, []

    def latent_shape(self, image_size: tuple[int, int]) -> tuple[int, int, int]:
        return 4, image_size[0] // 8, image_size[1] // 8

    def sample(self, context, targets, noise, config, *, reference, on_step):
        views = context.frame.shape[1] + targets.near.shape[1]
        self.asked.append(views)
        for step in range(config.solver.steps + 1):
            on_step(step)
            if views > self.most_views and step == 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return torch.full((1, targets.near.shape[1], 3, *context.size), 0.5)


def test_without_memory_for_a_group_smaller_ones_are_taken_and_remembered(
    run: Path, task: GenerationTask, tmp_path: Path
) -> None:
    lines: list[str] = []
    model, folder = StubModel(3), GeneratedFolder.claim(tmp_path / "out", describe_request(run, task, QUICK))
    generate_frames(model, task, folder, QUICK, say=lines.append)
    assert len(images_of(tmp_path / "out")) == 9 and model.asked[:2] == [5, 4] and max(model.asked[2:]) == 3
    assert lines == [
        "Out of memory with 5 views at once: going on with 4",
        "Out of memory with 4 views at once: going on with 3",
    ]
    again = StubModel(3)
    folder.image_file(9).unlink()
    generate_frames(again, task, GeneratedFolder.claim(tmp_path / "out", describe_request(run, task, QUICK)), QUICK)
    assert set(again.asked) == {3}
    with pytest.raises(LsplatError, match="lower --size"):
        claimed = GeneratedFolder.claim(tmp_path / "none", describe_request(run, task, QUICK))
        generate_frames(StubModel(1), task, claimed, QUICK, say=lines.append)


def test_without_memory_the_autoencoder_moves_away_first_and_the_images_are_the_same(
    run: Path, task: GenerationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = images_of(generate_into(run, task, tmp_path / "whole", QUICK, say=lambda _: None).path)
    sample, lines = MultiViewDiffusion.sample, []

    def short_of_memory(self, *args, **kwargs):
        if not self.autoencoder_waits_on_cpu:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(MultiViewDiffusion, "sample", short_of_memory)
    after = images_of(generate_into(run, task, tmp_path / "out", QUICK, say=lines.append).path)
    assert lines[1:] == ["Out of memory: going on with the autoencoder in main memory while it is not used"]
    assert after.keys() == whole.keys()
    assert all(np.abs(after[name].astype(int) - whole[name]).max() <= 1 for name in whole)


def test_a_network_that_does_not_fit_is_one_line(
    run: Path, task: GenerationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(generating, "load_mvldm", load)
    with pytest.raises(LsplatError, match=r"too small for the network, which takes 0\.0 GB"):
        generate_into(run, task, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scene": "rooms_3_0000"}, "the nearest is rooms_3_0000"),
        ({"scene": "99"}, "give a number from 0 to"),
        ({}, "state the scene of .* with --scene"),
        ({"scene": "0", "image": (Path("x.png"),)}, "either a scene .* or a photo"),
        ({"scene": "0", "num_anchors": 9, "limit_frames": 3}, "9 anchors for 3 frames"),
        ({"scene": "0", "num_anchors": 2, "sampling": "autoregressive"}, "anchors belong to anchored sampling"),
        ({"scene": "0", "limit_frames": 0}, "--limit-frames takes 1 or more"),
        ({"scene": "0", "trajectory": "dolly", "reach": 0.0}, "goes nowhere"),
        ({"scene": "0", "trajectory": "between"}, "1 are given"),
        ({"scene": "0", "context": (0, 99)}, "frames 0 to 13, but frame 99"),
        ({"scene": "0", "fov": 60.0}, "--fov belongs to photos"),
        ({"scene": "0", "scale": -1.0}, "positive factor"),
        ({"scene": "0", "index": Path("nowhere.json")}, "no evaluation index nowhere.json"),
        ({"scene": "0", "lift": Path("nowhere")}, "no run at nowhere"),
    ],
)
def test_what_a_scene_cannot_give_is_one_line(
    options: dict, message: str, run: Path, rooms: Path, tmp_path: Path
) -> None:
    with pytest.raises(LsplatError, match=message) as caught:
        generate_by(command(run, tmp_path / "out", data=rooms, **options))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_an_entry_without_context_is_named(run: Path, rooms: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"rooms_3_00003": [{"context": [], "target": [1, 2]}]}))
    with pytest.raises(LsplatError, match="gives scene rooms_3_00003 no context frame; state a --context"):
        generate_by(command(run, tmp_path / "out", data=rooms, scene="0", index=index))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": (Path("nowhere.jpg"),)}, "no photo at nowhere.jpg"),
        ({"image": (Path("a"),) * 3}, "one or two photos, but 3"),
        ({"trajectory": "scene"}, "no cameras of its own"),
        ({"trajectory": "between"}, "1 are given"),
        ({"scene": "0"}, "--scene belongs to a scene"),
        ({"fov": 400.0}, "between 5 and 140 degrees"),
    ],
)
def test_what_a_photo_cannot_give_is_one_line(
    options: dict, message: str, run: Path, photo: Path, tmp_path: Path
) -> None:
    with pytest.raises(LsplatError, match=message) as caught:
        generate_by(command(run, tmp_path / "out", **{"image": (photo,), **options}))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_pictures_smaller_than_the_views_are_refused(run: Path, rooms: Path, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(SceneDataError, match=r"room\.png has 96x64 pixels, but views of 128x128 are generated"):
        run_generate(command(run, tmp_path / "out", image=(photo,)), (128, 128))
    with pytest.raises(SceneDataError, match=r"frame 0 of scene .* has 96x64 pixels.*lower --size"):
        run_generate(command(run, tmp_path / "out", data=rooms, scene="0", context=(0,)), (128, 128))
    with pytest.raises(ConfigError, match="multiples of 8"):
        run_generate(command(run, tmp_path / "out", image=(photo,)), (36, 32))


def test_a_folder_that_is_no_mvldm_is_refused(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no MV-LDM at .*nowhere; pass a folder that lsplat import or ns-train made"):
        generate_by(command(tmp_path / "nowhere", tmp_path / "out", image=(photo,)))


def test_the_size_is_that_of_the_training_where_the_run_tells_it(run: Path, tmp_path: Path) -> None:
    import yaml

    from lsplat_ns.plugin.mvldm_recipes import tiny_mvldm_trainer

    assert image_size_of(run) == (256, 256)
    (tmp_path / "config.yml").write_text(yaml.dump(tiny_mvldm_trainer("mvldm-tiny")))
    assert image_size_of(tmp_path) == (64, 64)
    (tmp_path / "config.yml").write_text("nothing: here")
    with pytest.raises(ConfigError, match="state it with --size"):
        image_size_of(tmp_path)


def test_folders_in_use_are_left_alone(
    run: Path, task: GenerationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="in use by something else"):
        generate_into(run, task, tmp_path / "mine", QUICK)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letter.txt"]

    request = describe_request(run, task, QUICK)
    folder = GeneratedFolder.claim(tmp_path / "out", request)
    for other in (
        replace(QUICK, sampling=replace(QUICK.sampling, seed=4)),
        replace(QUICK, plan=ViewPlanConfig("autoregressive")),
    ):
        different = "seed" if other.sampling.seed else "mode"
        with pytest.raises(ConfigError, match=f"with a different {different}; choose another with --output"):
            GeneratedFolder.claim(tmp_path / "out", describe_request(run, task, other))
    with folder.locked(), pytest.raises(ConfigError, match="another process generates into"):
        with GeneratedFolder.claim(tmp_path / "out", request).locked():
            pass
    monkeypatch.setattr(generating, "load_mvldm", lambda *_: pytest.fail("loaded before the folder was looked at"))
    with pytest.raises(ConfigError, match="with a different seed"):
        generate_into(run, task, tmp_path / "out", replace(QUICK, sampling=replace(QUICK.sampling, seed=4)))
    (tmp_path / "out" / "generation.json").write_text("[]")
    with pytest.raises(ConfigError, match="cannot be read"):
        GeneratedFolder.claim(tmp_path / "out", request)


def test_what_killed_processes_left_is_in_nobody_s_way(run: Path, task: GenerationTask, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".generation.json.partial-12").write_text("{")
    request = describe_request(run, task, QUICK)
    folder = GeneratedFolder.claim(tmp_path / "out", request)
    folder.write_given(task)
    (folder.path / "images" / ".000003.png.partial-12").write_bytes(b"half")
    with folder.locked():
        left = sorted(str(file.relative_to(folder.path)) for file in folder.path.rglob("*"))
        assert left == ["generation.json", "images", "images/000000.png"]
    (tmp_path / "mine").mkdir()
    for name in (".generation.json.partial-12", ".letter.txt"):
        (tmp_path / "mine" / name).write_text("")
    with pytest.raises(ConfigError, match="in use by something else"):
        GeneratedFolder.claim(tmp_path / "mine", request)


def test_an_output_below_a_file_is_one_line(run: Path, photo: Path) -> None:
    with pytest.raises(SceneDataError, match=r"cannot write .*room\.png/x/generation\.json: Not a directory"):
        generate_by(command(run, photo / "x", image=(photo,), limit_frames=1))


def test_a_frame_that_is_damaged_in_any_way_is_named(tmp_path: Path) -> None:
    folder = GeneratedFolder(tmp_path)
    folder.write_image(0, torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0)))
    content = folder.image_file(0).read_bytes()
    first, *_, last = (place.start() for place in re.finditer(b"IDAT", content))
    assert first < last
    renamed = [content[:place] + b"T\x86\xd0&" + content[place + 4 :] for place in (first, last)]  # to no name at all
    for damaged in (*renamed, content[: len(content) // 2], b"no picture"):
        folder.image_file(0).write_bytes(damaged)
        with pytest.raises(SceneDataError, match=r"cannot read .*000000\.png: .*; delete it and call") as caught:
            folder.read_image(0)
        assert "\n" not in str(caught.value)


def test_a_stored_frame_that_is_broken_is_named(run: Path, task: GenerationTask, tmp_path: Path) -> None:
    folder = generate_into(run, task, tmp_path / "out", QUICK, say=lambda _: None)
    folder.image_file(2).write_bytes(b"no picture")
    with pytest.raises(SceneDataError, match=r"000002\.png: .*delete it and call the command again"):
        generate_into(run, task, tmp_path / "out", QUICK, say=lambda _: None)


# ----------------------------------------------------------------------------------------------- as a user calls it


@pytest.mark.slow
def test_ctrl_c_keeps_frames_and_ends_with_130_and_the_same_command_goes_on(
    run: Path, photo: Path, tmp_path: Path
) -> None:
    words = [str(BIN / "lsplat"), "generate", "--checkpoint", run, "--image", photo, "--trajectory", "orbit", "--size"]
    words = [*words, "32x32", "--limit-frames", "21", "--steps", "12", "--output", tmp_path / "out"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    # A child ignores the signal where its parent does, as a test run in the background would.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    first = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        until = time.monotonic() + 300
        while not (tmp_path / "out" / "images" / "000005.png").is_file() and first.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate(timeout=300)
    finally:
        first.kill()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "images").iterdir() if file.stem != "000000"}
    assert first.returncode == 130, output
    assert f"{len(kept)} of 21 frames are kept" in " ".join(output.split()) and "Traceback" not in output
    assert 0 < len(kept) < 21 and all(file.suffix == ".png" and Image.open(file).size == SIZE for file in kept)

    outcome = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert outcome.returncode == 0, outcome.stderr
    assert f"{len(kept)} of 21 frames are there already" in outcome.stdout and "left" in outcome.stderr
    assert all(file.stat().st_mtime_ns == modified for file, modified in kept.items())
    assert len(images_of(tmp_path / "out")) == 22 and (tmp_path / "out" / "video.mp4").is_file()
