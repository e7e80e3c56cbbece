"""Claims about where ``lsplat demo`` keeps its runs, which scene it opens, and what its viewer generates with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from untrained_runs import write_untrained_mvldm

from lsplat_ns.checkpoints import demo_weights
from lsplat_ns.checkpoints.mvldm_runs import load_mvldm
from lsplat_ns.plugin import demo
from lsplat_ns.plugin.demo import NO_GENERATOR, generator_run, prediction_run
from lsplat_ns.plugin.demo_recipes import DEMO_GUIDANCE, SIDE
from lsplat_ns.plugin.generating import guidance_of, image_size_of
from lsplat_ns.plugin.runs import StoredRun
from lsplat_ns.plugin.scene_generation import _trained_size


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a package with weights of both systems ships; those of MV-LDM are random."""
    network = load_mvldm(write_untrained_mvldm(tmp_path / "untrained"))
    provenance = {"method": "mvldm-tiny", "network": asdict(network.config)}
    shipped = demo_weights.FOLDER / "latentsplat-tiny.safetensors"
    monkeypatch.setattr(demo_weights, "FOLDER", tmp_path / "assets")
    demo_weights.write_demo_weights(tmp_path / "assets" / "mvldm-tiny.safetensors", network.state_dict(), provenance)
    (tmp_path / "assets" / shipped.name).symlink_to(shipped)
    return tmp_path / "assets"


@pytest.mark.parametrize("noted", ["NaN", "-2", "Infinity", '"much"', "null", "1" + 400 * "0"])
def test_a_guidance_that_cannot_be_is_taken_for_none(noted: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(f'{{"guidance": {noted}}}')
    assert guidance_of(tmp_path) == 3.0


def test_the_generator_is_made_once_and_knows_which_size_it_was_trained_at(assets: Path, tmp_path: Path) -> None:
    run = generator_run(tmp_path / "generator")
    weights, _ = demo_weights.read_demo_weights(assets / "mvldm-tiny.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in load_mvldm(run).state_dict().items())
    assert image_size_of(run) == _trained_size(run) == (SIDE, SIDE)
    assert (guidance_of(run), guidance_of(run, 2.5), guidance_of(assets)) == (DEMO_GUIDANCE, 2.5, 3.0)
    before = (run / "mvldm.json").stat().st_mtime_ns
    assert generator_run(tmp_path / "generator") == run and (run / "mvldm.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("ships_generator", [True, False])
def test_the_viewer_generates_with_the_shipped_generator_or_a_note_says_that_there_is_none(
    ships_generator: bool,
    assets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not ships_generator:
        (assets / "mvldm-tiny.safetensors").unlink()
    opened: list[Path] = []
    monkeypatch.setattr(demo, "is_port_free", lambda port: True)
    monkeypatch.setattr(demo, "scenes_in", lambda folder, config: folder)
    monkeypatch.setattr(demo, "open_viewer", lambda run, port: opened.append(run))
    monkeypatch.setattr(demo, "render_fly_through", lambda run, video, scene: opened.append(run))
    for video in (None, tmp_path / "fly.mp4"):  # which generates nothing: no note
        demo.run_demo(tmp_path / "demo", video, None, 7007, None)
        said = " ".join(capsys.readouterr().out.split())
        assert (NO_GENERATOR in said) == (video is None and not ships_generator)
    expected = tmp_path / "demo" / "mvldm-tiny" if ships_generator else None
    assert [StoredRun.open(run).config.pipeline.model.generator for run in opened] == [expected, expected]


def test_a_moved_demo_is_made_anew_where_it_is(tmp_path: Path) -> None:
    prediction_run(tmp_path / "run", tmp_path / "scenes")
    (tmp_path / "run.old-1").mkdir()
    config = prediction_run(tmp_path / "run", tmp_path / "elsewhere", generator=tmp_path / "generator")
    stored = StoredRun.open(config).config
    assert stored.data == tmp_path / "elsewhere" and stored.pipeline.model.generator == tmp_path / "generator"
    kept = StoredRun.open(tmp_path / "run.old-0").config
    assert kept.data == tmp_path / "scenes" and kept.pipeline.model.generator is None


@pytest.mark.parametrize("scene", ["rooms_2024_00002", None])
def test_the_viewer_opens_on_the_stated_scene(
    scene: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple] = []
    monkeypatch.setattr(demo, "is_port_free", lambda port: True)
    monkeypatch.setattr(demo, "scenes_in", lambda folder, config: folder)
    monkeypatch.setattr(demo, "prediction_run", lambda folder, scenes, generator: folder)
    monkeypatch.setattr(demo, "_opened", lambda run, scene: done.append(("remembers", scene)))
    monkeypatch.setattr(demo, "open_viewer", lambda run, port: done.append(("opens", port)))
    demo.run_demo(tmp_path, None, None, 7007, scene)
    assert done == ([("remembers", scene)] if scene else []) + [("opens", 7007)]
