from __future__ import annotations

from pathlib import Path

import pytest
from re10k_chunks import scene, write

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.benchmark import print_data_benchmark, run_data_benchmark
from lsplat_ns.data.view_sampling import ViewSamplingConfig
from lsplat_ns.errors import SceneDataError

SMALL = PreparationConfig(image_size=(32, 32))


def test_both_paths_and_every_stage_are_timed_and_the_pixels_agree(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a"), scene("b"), scene("short", frames=1)]})
    sampling = ViewSamplingConfig(initial_min_gap=2, initial_max_gap=4)
    result = run_data_benchmark(root, SMALL, sampling, workers=0, seconds=0.05)
    assert list(result.stages)[:4] == ["open chunk", "cameras", "decode", "rescale and crop"]
    assert all(milliseconds > 0 for milliseconds in result.stages.values())
    for timing in (result.loader, result.straightforward):
        assert timing.examples_per_second > 0 and timing.cpu_ms_per_example > 0 and timing.seconds_to_first > 0
    assert result.largest_difference == 0


def test_the_tables_name_what_they_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a"), scene("b")], "1.torch": [scene("c"), scene("d")]})
    print_data_benchmark(root, (32, 32), workers=2, seconds=0.05)
    output = capsys.readouterr().out
    for part in ("decode", "rescale and crop", "straightforward", "examples/s", "times as fast", "at most 0/255"):
        assert part in output


def test_data_that_cannot_be_used_end_in_one_line(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("still", step=0.0), scene("short", frames=1)]})
    with pytest.raises(SceneDataError, match="no scene can be used"):
        print_data_benchmark(root, (32, 32), workers=0, seconds=0.05)
    root = write(tmp_path / "e", {"0.torch": [scene("short", frames=1)]})
    with pytest.raises(SceneDataError, match="no video of 3 frames"):
        print_data_benchmark(root, (32, 32), workers=0, seconds=0.05)
