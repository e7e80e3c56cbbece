from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import camera_rows, cut_in_half
from re10k_chunks import scene as stored_scene
from re10k_chunks import write as write_chunks

from lsplat_ns.cli import main
from lsplat_ns.data.evaluation_index import EvaluationIndex, draw_entries, make_evaluation_index, write_evaluation_index
from lsplat_ns.data.evaluation_rule import EvaluationIndexConfig
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.sources import VideoList
from lsplat_ns.data.view_sampling import FrameChoice, read_evaluation_index
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.conventions import cameras_from_re10k_rows
from lsplat_ns.geometry.overlap import view_overlap

BOTH = EvaluationIndexConfig()
INSIDE = EvaluationIndexConfig(kind="interpolation")
OUTSIDE = EvaluationIndexConfig(kind="extrapolation")


def video(
    frames: int, *, turn: float = 0.003, step: float = 0.02, name: str = "v", circular: bool = False, focal: float = 0.9
) -> PosedVideo:
    """Cameras that move sideways by ``step`` and turn by ``turn`` radians from frame to frame."""
    time = torch.arange(frames).float()
    rows = camera_rows(time[:, None] * torch.tensor([step, 0.0, 0.0]), time * turn, focal)
    return PosedVideo(name, *cameras_from_re10k_rows(rows), _no_image, lambda _: (360, 640), circular)


def turntable(frames: int = 102, name: str = "t") -> PosedVideo:
    angle = torch.arange(frames) * (2 * torch.pi / frames)
    rows = camera_rows(torch.stack([-angle.sin(), 0 * angle, -angle.cos()], -1) * 3, angle)
    return PosedVideo(name, *cameras_from_re10k_rows(rows), _no_image, lambda _: (480, 320), circular=True)


def _no_image(_: int) -> np.ndarray:
    raise AssertionError("no image has to be decoded for an index")


def overlap_of(scene: PosedVideo, first: int, second: int) -> float:
    """Of the squares that networks see of 640x360 frames."""
    intrinsics = scene.intrinsics_norm.clone()
    intrinsics[:, 0] = torch.tensor([intrinsics[0, 0, 0] * 455 / 256, 0, 0.5])
    poses = scene.world_from_camera
    return float(view_overlap((poses[first], poses[second]), (intrinsics[first], intrinsics[second])))


def test_open_paths_get_one_pair_that_keeps_the_published_rule() -> None:
    gaps = set()
    for seed in range(8):
        scene = video(200)
        inner, outer = draw_entries(scene, EvaluationIndexConfig(seed=seed))
        left, right = inner.context
        assert outer.context == (left, right)
        assert 45 <= right - left <= 136 and overlap_of(scene, left, right) >= 0.6
        for entry in (inner, outer):
            assert len(entry.target) == 3 and list(entry.target) == sorted(set(entry.target))
        assert all(left <= frame <= right for frame in inner.target)
        assert all(0 < left - frame <= 45 or 0 < frame - right <= 45 for frame in outer.target)
        assert all(0 <= frame < 200 for frame in outer.target)
        gaps.add(right - left)
    assert len(gaps) > 4 and max(gaps) > 60


def test_the_limits_of_gap_and_overlap_are_kept() -> None:
    scene = video(60, turn=0.02)
    assert overlap_of(scene, 0, 3) > 0.75 > overlap_of(scene, 0, 8) > 0.6  # both limits tell
    for seed in range(8):
        config = EvaluationIndexConfig(gap=(3, 30), min_overlap=0.6, max_overlap=0.75, seed=seed, num_targets=2)
        entries = draw_entries(scene, config)
        assert len(entries) == 2
        for entry in entries:
            assert 3 <= entry.context[1] - entry.context[0] <= 30
            assert 0.6 <= overlap_of(scene, *entry.context) <= 0.75
            assert len(entry.target) == 2


def test_partners_beyond_a_place_without_overlap_are_not_taken() -> None:
    """The camera looks away and comes back: the walk ends where it looks away."""
    time = torch.arange(120)
    yaw = torch.where((time >= 50) & (time < 60), 2.0, 0.0)
    rows = camera_rows(time[:, None] * torch.tensor([0.01, 0.0, 0.0]), yaw)
    scene = PosedVideo("dip", *cameras_from_re10k_rows(rows), _no_image, lambda _: (360, 640))
    assert overlap_of(scene, 40, 70) > 0.6
    for seed in range(4):
        for entry in draw_entries(scene, EvaluationIndexConfig(gap=(5, 100), seed=seed)):
            left, right = entry.context
            assert (left < 50) == (right < 50)


def test_turntables_get_twenty_pairs_across_the_seam_too() -> None:
    entries = draw_entries(turntable(), BOTH)
    assert len(entries) == 40
    wrapped, gaps = 0, set()
    for inner, outer in zip(entries[::2], entries[1::2], strict=True):
        left, right = inner.context
        gap = (right - left) % 102
        assert outer.context == inner.context and 16 <= gap <= 24
        assert all((frame - left) % 102 <= gap for frame in inner.target)
        assert all((frame - left) % 102 > gap for frame in outer.target)
        wrapped += left > right
        gaps.add(gap)
    assert wrapped > 0 and {16, 24} <= gaps


def test_extrapolated_targets_are_never_context_views() -> None:
    for seed in range(10):
        for scene in (video(100), turntable(30)):
            config = EvaluationIndexConfig(kind="extrapolation", seed=seed, gap=(16, 24))
            assert all(not set(entry.context) & set(entry.target) for entry in draw_entries(scene, config))


def test_interpolated_targets_may_be_context_views_unless_excluded() -> None:
    def copies(exclude: bool) -> int:
        config = EvaluationIndexConfig(kind="interpolation", gap=(4, 4), exclude_context=exclude)
        return sum(bool(set(e.context) & set(e.target)) for e in draw_entries(turntable(), config))

    assert copies(False) > 0
    assert copies(True) == 0


def test_the_same_seed_draws_the_same_whatever_else_is_there() -> None:
    alone = make_evaluation_index(VideoList((video(150, name="b"),)), BOTH)
    others = make_evaluation_index(VideoList(tuple(video(150, name=name) for name in "cab")), BOTH)
    assert list(others.entries) == ["c", "a", "b"]
    assert others.entries["b"] == alone.entries["b"] != others.entries["a"]
    again = make_evaluation_index(VideoList((video(150, name="b"),)), EvaluationIndexConfig(seed=4))
    assert again.entries["b"] != alone.entries["b"]


def test_processes_change_no_number(tmp_path: Path) -> None:
    chunks = {f"{i}.torch": [stored_scene(f"s{i}", frames=30, step=0.02)] for i in range(4)}
    source = Re10kSplit.open(write_chunks(tmp_path / "d", chunks, "test"), "test")
    config = EvaluationIndexConfig(gap=(4, 9))
    counted = []
    alone = make_evaluation_index(source, config, on_scenes=counted.append)
    assert make_evaluation_index(source, config, workers=2).entries == alone.entries
    assert alone.count == 8 and sum(counted) == 4


@pytest.mark.parametrize(
    "scene",
    [
        video(1),
        video(2, step=0.0, turn=0.0),  # two identical frames
        video(45),
        video(200, step=0.0),  # turns on the spot
        video(60, turn=0.02),  # looks elsewhere soon
        turntable(12),
    ],
    ids=["one frame", "identical frames", "too short", "no baseline", "no overlap", "small turntable"],
)
def test_scenes_without_a_pair_stay_in_the_index_without_entries(scene: PosedVideo, tmp_path: Path) -> None:
    index = make_evaluation_index(VideoList((scene, video(150, name="good"))), BOTH)
    assert index.entries[scene.scene] == [] and len(index.entries["good"]) == 2
    index.write(tmp_path / "index.json")
    assert json.loads((tmp_path / "index.json").read_text())[scene.scene] == []
    assert read_evaluation_index(tmp_path / "index.json") == {"good": index.entries["good"]}


def test_unusable_scenes_are_left_out_and_counted_by_reason(tmp_path: Path) -> None:
    wide, broken = stored_scene("wide", 20), stored_scene("broken", 20)
    wide["cameras"][:, 0] = 0.3
    broken["cameras"][3] = float("nan")
    root = write_chunks(
        tmp_path / "d", {"0.torch": [wide, broken, stored_scene("good", 20)], "1.torch": [wide]}, "test"
    )
    cut_in_half(root / "test" / "1.torch")
    source = Re10kSplit(root, "test", {"wide": "0.torch", "broken": "0.torch", "good": "0.torch", "lost": "1.torch"})
    index = make_evaluation_index(source, EvaluationIndexConfig(gap=(2, 5)))
    assert list(index.entries) == ["good"]
    assert index.tally.skipped == {"field of view": 1, "broken": 2}
    assert "left out 2 broken" in index.describe() and "1.torch" in index.describe()


def test_a_dataset_without_any_pair_says_what_to_change() -> None:
    with pytest.raises(SceneDataError, match=r"no pair of context views qualifies in 1 scene;.*--gap") as caught:
        make_evaluation_index(VideoList((video(20),)), BOTH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_targets": 0}, {"reach": 0}, {"pairs": 0}, {"gap": (0, 3)}, {"gap": (5, 4)},
        {"min_overlap": 0.8, "max_overlap": 0.7}, {"min_overlap": -0.1}, {"max_overlap": 1.1}, {"max_overlap": 0.5},
    ],
)  # fmt: skip
def test_impossible_rules_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        EvaluationIndexConfig(**options)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_chunks(
        tmp_path / "re10k", {"0.torch": [stored_scene("a", 60, step=0.02), stored_scene("b", 1)]}, "test"
    )


def test_the_written_index_is_what_the_loaders_read(dataset: Path) -> None:
    index = write_evaluation_index(dataset, "test", BOTH)
    read = read_evaluation_index(dataset / "evaluation_index.json")
    assert read == {"a": index.entries["a"]} and index.entries["b"] == []
    assert all(isinstance(choice, FrameChoice) for choice in read["a"])


def test_an_existing_index_is_not_overwritten(dataset: Path) -> None:
    path = dataset / "evaluation_index.json"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists; name another file with --output"):
        write_evaluation_index(dataset, "test", BOTH)
    assert path.read_text() == "precious"
    write_evaluation_index(dataset, "test", BOTH, dataset / "made" / "other.json")
    assert path.read_text() == "precious" and (dataset / "made" / "other.json").is_file()


def test_the_options_of_open_paths_are_refused_for_turntables(tmp_path: Path) -> None:
    (tmp_path / "hydrant").mkdir()
    (tmp_path / "hydrant" / "frame_annotations.jgz").write_bytes(b"")
    with pytest.raises(ConfigError, match="--min-overlap"):
        write_evaluation_index(tmp_path, "test", EvaluationIndexConfig(min_overlap=0.5))


def test_captures_have_no_evaluation_index(tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a capture"):
        write_evaluation_index(tmp_path, "test", BOTH)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, text: str, **_) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(SceneDataError, match="No space left on device"):
        EvaluationIndex({"a": [FrameChoice((0, 2), (1,))]}).write(tmp_path / "index.json")
    assert list(tmp_path.iterdir()) == []


def run_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lsplat", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_takes_the_rule_from_its_options(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ("--kind", "interpolation", "--gap", 3, 5, "--num-targets", 2, "--seed", 9)
    assert run_command(monkeypatch, "index", dataset, "--evaluation", *options) == 0
    assert "1 entry of 1 scene; 1 scene has no pair" in capsys.readouterr().out
    (entry,) = read_evaluation_index(dataset / "evaluation_index.json")["a"]
    assert len(entry.target) == 2 and 3 <= entry.context[1] - entry.context[0] <= 5
    assert run_command(monkeypatch, "index", dataset, "--evaluation", "--num-targets", 0) == 1
    assert capsys.readouterr().err.startswith("error: num-targets")


def test_ctrl_c_leaves_nothing_half_written(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from rich.progress import Progress

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", interrupt)
    before = sorted(dataset.rglob("*"))
    assert run_command(monkeypatch, "index", dataset, "--evaluation") == 130
    assert sorted(dataset.rglob("*")) == before


ENDED = """
import os, sys, time
from pathlib import Path
from rich.progress import Progress
from lsplat_ns import interrupts
from lsplat_ns.data import evaluation_index
from lsplat_ns.data.evaluation_rule import EvaluationIndexConfig
if __name__ == "__main__":
    interrupts.note_interrupts()
    data, during, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    evaluation_index.WORTH_PROCESSES, os.cpu_count = 1, lambda: workers
    owner, name = {"drawing": (Progress, "advance"), "writing": (Path, "write_text")}[during]
    work = getattr(owner, name)
    def work_and_stay(*args, **options):
        work(*args, **options)
        print(during, flush=True)
        time.sleep(60)
    setattr(owner, name, work_and_stay)
    evaluation_index.write_evaluation_index(data, "test", EvaluationIndexConfig(gap=(4, 9)))
"""


@pytest.mark.parametrize(("during", "workers"), [("drawing", 2), ("writing", 1)])
def test_sigterm_leaves_neither_a_file_nor_a_process_behind(during: str, workers: int, tmp_path: Path) -> None:
    chunks = {f"{i}.torch": [stored_scene(f"s{i}", frames=30, step=0.02)] for i in range(4)}
    dataset = write_chunks(tmp_path / "d", chunks, "test")
    before = sorted(dataset.rglob("*"))
    (tmp_path / "ended.py").write_text(ENDED)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "ended.py", dataset, during, str(workers)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline().split() == [during.encode()]
        process.terminate()
        process.terminate()  # as timeout(1) does
        process.communicate(timeout=30)  # until nobody has its output any more, so no worker either
        assert process.returncode == 143
        assert sorted(dataset.rglob("*")) == before
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
