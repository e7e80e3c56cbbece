"""Generated views become an ordinary run: by ``lsplat generate --lift`` and by ``ns-train mvldm-latentsplat``."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
from demo_captures import photo
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image
from untrained_runs import write_untrained_mvldm, write_untrained_run

from lsplat_ns.cli import Generate
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.plugin.generate_command import run_generate
from lsplat_ns.plugin.lifting_method import lift_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of both models, and views generated and lifted by one call of the command."""
    folder = tmp_path_factory.mktemp("lifting")
    Image.fromarray(photo(0)).save(folder / "room.png")
    mvldm, latentsplat = write_untrained_mvldm(folder / "mvldm"), write_untrained_run(folder / "latentsplat")
    options = {"trajectory": "truck", "limit_frames": 4, "size": "64x64", "steps": 1, "lift": latentsplat}
    run_generate(Generate(mvldm, folder / "views", image=(folder / "room.png",), **options), (64, 64))
    return folder


def check_run(config: Path, scene: str = "views") -> None:
    """nerfstudio opens it; its Gaussians come from the photo first, then from generated views."""
    _, pipeline, _, _ = eval_setup(config, test_mode="inference")
    fused = pipeline.model.prediction().fused
    assert pipeline.datamanager.scene.choice.context[0] == 0 and pipeline.datamanager.scene.video.scene == scene
    assert not fused.generated[fused.layer == 0].any() and fused.generated.any()
    camera = pipeline.datamanager.train_dataset.cameras[0:1]
    assert pipeline.model.get_outputs_for_camera(camera)["rgb"].shape[-1] == 3


def test_generate_lifts_into_its_own_folder(folder: Path) -> None:
    lifted = folder / "views" / "lifted"
    check_run(lifted / "config.yml")
    copied = sorted(str(file.relative_to(lifted / "views")) for file in (lifted / "views").rglob("*.*"))
    assert copied == [*(f"images/{frame:06d}.png" for frame in range(5)), "transforms.json"]


def test_ns_train_lifts_without_training(folder: Path, capsys: pytest.CaptureFixture) -> None:
    config = deepcopy(all_methods["mvldm-latentsplat"])
    config.data = config.pipeline.datamanager.data = folder / "views"
    config.run, config.output_dir, config.timestamp = folder / "latentsplat", folder / "outputs", "now"
    config.set_experiment_name()
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    made = folder / "outputs" / "views" / "mvldm-latentsplat" / "now" / "config.yml"
    assert f"ns-viewer --load-config {made}" in capsys.readouterr().out
    check_run(made)
    with pytest.raises(SystemExit, match="is not an empty folder"):
        config.save_config()


def test_what_generate_cannot_lift_shows_before_anything_is_generated(folder: Path, tmp_path: Path) -> None:
    given = {"image": (folder / "room.png",), "lift": folder / "latentsplat", "steps": 1}
    with pytest.raises(ConfigError, match="looks at images of 64x64, but views of 32x32"):
        run_generate(Generate(folder / "mvldm", tmp_path / "out", **given), (32, 32))
    with pytest.raises(ConfigError, match="lifted exists and is not an empty folder; choose another with --lift-out"):
        run_generate(Generate(folder / "mvldm", folder / "views", **given), (64, 64))
    with pytest.raises(ConfigError, match="shows no depth; leave out --lift"):
        run_generate(Generate(folder / "mvldm", tmp_path / "out", trajectory="pan", **given), (64, 64))
    for place in ("out", "out/images", "out/images/deeper", "out/video.mp4", "out/../out", "."):
        with pytest.raises(ConfigError, match=r"the views themselves are written to .*--lift-output"):
            wanted = Generate(folder / "mvldm", tmp_path / "out", lift_output=tmp_path / place, **given)
            run_generate(wanted, (64, 64))
    assert not (tmp_path / "out").exists()


def test_views_in_a_folder_named_like_a_part_of_a_run_are_lifted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "views", tmp_path / "nerfstudio_models", ignore=shutil.ignore_patterns("lifted"))
    config = lift_folder(folder / "latentsplat", tmp_path / "nerfstudio_models", tmp_path / "out")
    assert (config.parent / "nerfstudio_models-views" / "transforms.json").is_file()
    check_run(config, "nerfstudio_models-views")


def test_what_cannot_be_lifted_is_one_line(folder: Path, tmp_path: Path) -> None:
    config = deepcopy(all_methods["mvldm-latentsplat"])
    with pytest.raises(SystemExit, match="state the trained model with --run RUN"):
        config.save_config()
    with pytest.raises(SceneDataError, match=r"no transforms\.json in .*; pass a folder in which lsplat generate has"):
        lift_folder(folder / "latentsplat", tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="no run at"):
        lift_folder(folder / "mvldm" / "nowhere", folder / "views", tmp_path / "out")
    assert not (tmp_path / "out").exists()
