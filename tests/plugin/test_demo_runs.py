"""Claims about where ``lsplat demo`` keeps its run, and which scene it opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsplat_ns.plugin import demo
from lsplat_ns.plugin.demo import prediction_run
from lsplat_ns.plugin.runs import StoredRun


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
