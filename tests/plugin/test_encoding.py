"""A capture as a run without training: what is written, how it is opened, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
import yaml
from conftest import Run, call
from demo_captures import World, write_capture, write_colmap_capture
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser, ColmapDataParserConfig
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.exporter import ExportGaussianSplat
from nerfstudio.scripts.render import RenderInterpolated
from nerfstudio.utils.eval_utils import eval_setup
from parity import SHARED

from lsplat_ns.checkpoints.exports import read_ply
from lsplat_ns.errors import CheckpointMismatch, ConfigError, LsplatError, SceneDataError
from lsplat_ns.losses.perceptual import WEIGHTS_FOLDER_VARIABLE
from lsplat_ns.plugin.dataparsers import Re10kDataParserConfig
from lsplat_ns.plugin.encoding import EncodingConfig, encode_capture
from lsplat_ns.plugin.runs import StoredRun


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("captures") / "room", world=World(scale=4.0, translation=(1, 2, 3)))


def test_an_encoded_capture_is_an_ordinary_run_with_the_weights_of_the_other(
    trained: Run, capture: Path, tmp_path: Path
) -> None:
    config = encode_capture(trained.folder, capture, tmp_path / "encoded", context=(2, 9, 13))
    assert config == tmp_path / "encoded" / "config.yml"
    _, pipeline, checkpoint, step = eval_setup(config, test_mode="test")
    assert step == 19 and checkpoint.parent == tmp_path / "encoded" / "nerfstudio_models"
    before, after = (StoredRun.open(folder).pipeline_state for folder in (trained.folder, tmp_path / "encoded"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert pipeline.datamanager.scene.choice.context == (2, 9, 13)
    camera = pipeline.datamanager.train_dataset.cameras[0:1]
    assert pipeline.model.get_outputs_for_camera(camera)["rgb"].std() > 0.01
    provenance = json.loads((tmp_path / "encoded" / "provenance.json").read_text())
    assert provenance["context_frames"] == [2, 9, 13] and provenance["steps_done"] == 20
    assert len(provenance["gaussians_per_layer"]) == 2
    assert sum(provenance["gaussians_per_layer"]) == len(pipeline.model.means)
    transforms = json.loads((tmp_path / "encoded" / "dataparser_transforms.json").read_text())
    assert transforms["scale"] == pytest.approx(pipeline.datamanager.train_dataparser_outputs.dataparser_scale)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoded"]
    # An encoded run can be the source of the next one.
    encode_capture(tmp_path / "encoded", capture, tmp_path / "again", context=(0, 5))


def test_nerfstudios_evaluator_renderer_and_exporter_open_a_fused_run(
    trained: Run, capture: Path, tmp_path: Path
) -> None:
    config = encode_capture(trained.folder, capture, tmp_path / "encoded", context=(2, 9, 13))
    ComputePSNR(load_config=config, output_path=tmp_path / "scores.json").main()
    assert json.loads((tmp_path / "scores.json").read_text())["results"]["psnr"] > 3
    RenderInterpolated(
        load_config=config, output_path=tmp_path / "fly.mp4", pose_source="train", interpolation_steps=2
    ).main()
    assert (tmp_path / "fly.mp4").stat().st_size > 500
    ExportGaussianSplat(load_config=config, output_dir=tmp_path / "splat").main()
    exported = read_ply(tmp_path / "splat" / "splat.ply")
    pipeline = eval_setup(config, test_mode="inference")[1]
    model = pipeline.model
    drawn = model.opacities[:, 0] > -5.5373  # logit of 1/255: nerfstudio leaves fainter ones out
    assert 0 < exported.count == int(drawn.sum())
    torch.testing.assert_close(exported.means, model.means[drawn])


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "chosen"])
def test_a_colmap_model_is_encoded_by_the_command(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_colmap_capture(tmp_path / "model", frames=range(8))
    config = deepcopy(all_methods["latentsplat-encode"])
    config.run, config.timestamp = trained.folder, "t"
    config.pipeline.datamanager.dataparser = ColmapDataParserConfig(data=model, downscale_factor=1)
    config.pipeline.datamanager.context = (1, 6) if stated else None
    config.set_experiment_name()
    config.save_config()
    config.setup(local_rank=0, world_size=1).train()
    made = tmp_path / "outputs" / "model" / "latentsplat-encode" / "t" / "config.yml"
    _, pipeline, _, _ = eval_setup(made, test_mode="test")
    assert isinstance(pipeline.datamanager.dataparser, ColmapDataParser)
    context = pipeline.datamanager.scene.choice.context
    assert context == (1, 6) if stated else len(set(context)) == 2
    outputs = pipeline.model.get_outputs_for_camera(pipeline.datamanager.train_dataset.cameras[0:1])
    assert outputs["rgb"].std() > 0.01


def test_weights_that_only_training_needs_are_not_looked_for(
    trained: Run, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    config = yaml.load(trained.config.read_text(), Loader=yaml.Loader)
    config.pipeline.model.perceptual, config.pipeline.model.pretrained = "lpips", "require"
    (run / "config.yml").write_text(yaml.dump(config))
    monkeypatch.setenv(WEIGHTS_FOLDER_VARIABLE, str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    assert encode_capture(run, capture, tmp_path / "encoded", context=(2, 9)).is_file()


def test_a_run_with_its_own_copy_of_the_capture_needs_nothing_else(trained: Run, capture: Path, tmp_path: Path) -> None:
    own = tmp_path / "photos"
    shutil.copytree(capture, own)
    config = encode_capture(trained.folder, own, tmp_path / "encoded", include_capture=True)
    shutil.rmtree(own)
    _, pipeline, _, _ = eval_setup(config, test_mode="inference")
    assert pipeline.datamanager.scene.capture.image_files[0].is_relative_to(tmp_path / "encoded" / "photos")
    assert pipeline.model.prediction() is not None


# ----------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_usable_run_is_named(trained: Run, capture: Path, tmp_path: Path) -> None:
    stock = tmp_path / "splatfacto"
    stock.mkdir()
    (stock / "config.yml").write_text(yaml.dump(all_methods["splatfacto"]))
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.yml").write_text("!!python/object:nowhere.Nothing {}\n")
    bare = tmp_path / "bare"
    bare.mkdir()
    moved = yaml.load(trained.config.read_text(), Loader=yaml.Loader)
    moved.output_dir = bare
    (bare / "config.yml").write_text(yaml.dump(moved))
    other = tmp_path / "other"
    shutil.copytree(trained.folder, other)
    changed = yaml.load(trained.config.read_text(), Loader=yaml.Loader)
    changed.output_dir = tmp_path / "nowhere"
    network = changed.pipeline.model.network
    depth = replace(network.encoder.depth, num_depth_buckets=40)
    changed.pipeline.model.network = replace(network, encoder=replace(network.encoder, depth=depth))
    (other / "config.yml").write_text(yaml.dump(changed))
    for run, kind, message in (
        (tmp_path / "absent", ConfigError, "no run at"),
        (stock, ConfigError, "is no run of a latentSplat method"),
        (text, ConfigError, "cannot be read"),
        (bare, CheckpointMismatch, "no checkpoint in"),
        (other, CheckpointMismatch, "does not fit"),
    ):
        with pytest.raises(kind, match=message):
            encode_capture(run, capture, tmp_path / "encoded")
        assert not (tmp_path / "encoded").exists()


def test_a_failure_leaves_nothing_and_a_folder_in_use_is_left_alone(
    trained: Run, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "encoded"
    with pytest.raises(SceneDataError, match="frame 99"):
        encode_capture(trained.folder, capture, target, context=(0, 99))
    with pytest.raises(SceneDataError, match="no data"):
        encode_capture(trained.folder, tmp_path / "absent", target)
    save = torch.save
    for failure, kind in (
        (OSError(errno.ENOSPC, "No space left on device"), LsplatError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        def fail(state: dict, path: Path, failure: BaseException = failure) -> None:
            save({}, path)
            raise failure

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(kind):
            encode_capture(trained.folder, capture, target)
        monkeypatch.undo()
        assert list(tmp_path.rglob("*")) in ([], [tmp_path / "out"])
    target.mkdir(parents=True)
    (target / "precious").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        encode_capture(trained.folder, capture, target)
    assert [path.name for path in target.iterdir()] == ["precious"]


# ---------------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_ns_train_latentsplat_encode_ends_by_itself_and_other_tools_open_what_it_wrote(
    trained: Run, capture: Path, tmp_path: Path
) -> None:
    outcome = call(
        "ns-train", "latentsplat-encode", "--run", trained.folder, "--data", capture, "--timestamp", "t",
        "--pipeline.datamanager.num-context-views", 3, "--experiment-name", "my room", "nerfstudio-data", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    folder = tmp_path / "outputs" / "my room" / "latentsplat-encode" / "t"
    assert f"ns-viewer --load-config '{folder / 'config.yml'}'\n" in outcome.output  # to be pasted into a shell
    assert "Encoded pair 2 of 2" in outcome.output and "in 2 layers" in outcome.output
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["config.yml", "dataparser_transforms.json", "nerfstudio_models", "provenance.json"]
    elsewhere = tmp_path / "elsewhere"  # the run states where it is: no tool has to start where it was made
    elsewhere.mkdir()
    outcome = call(
        "ns-eval", "--load-config", folder / "config.yml", "--output-path", elsewhere / "e.json", cwd=elsewhere
    )
    assert outcome.code == 0, outcome.output
    assert json.loads((elsewhere / "e.json").read_text())["results"]["psnr"] > 3


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not beside this checkout")
def test_a_real_capture_is_encoded(trained: Run, tmp_path: Path) -> None:
    config = encode_capture(trained.folder, SHARED / "data" / "fox", tmp_path / "fox")
    _, pipeline, _, _ = eval_setup(config, test_mode="inference")
    left, right = pipeline.datamanager.scene.choice.context
    assert right - left <= 4  # photos far apart see different sides of the fox
    outputs = pipeline.model.get_outputs_for_camera(pipeline.datamanager.train_dataset.cameras[0:1])
    assert outputs["rgb"].std() > 0.01


@pytest.mark.slow
def test_what_the_command_cannot_use_is_one_line_and_writes_nothing(trained: Run, tmp_path: Path) -> None:
    one = write_capture(tmp_path / "data" / "one", frames=(3,))
    work = tmp_path / "work"
    work.mkdir()
    command = ["ns-train", "latentsplat-encode", "--run", trained.folder, "--data", one, "nerfstudio-data"]
    outcome = call(*command, cwd=work)
    assert outcome.code == 1 and "Traceback" not in outcome.output, outcome.output
    (line,) = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert "photos from two places" in line
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--datamanager.context", "3"], "at least two different frames, not 3"),
        (["--datamanager.context", "3", "3"], "at least two different frames, not 3 3"),
        (["--datamanager.num-context-views", "1"], "must be at least 2, but is 1"),
    ],
)
def test_options_out_of_range_are_mistakes_on_the_command_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        tyro.cli(EncodingConfig, args=options)
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_options_that_lack_a_run_or_make_no_capture_are_refused(
    trained: Run, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = deepcopy(all_methods["latentsplat-encode"])
    config.pipeline.datamanager.data = capture
    with pytest.raises(SystemExit, match="--run RUN"):
        config.save_config()
    config.run = trained.folder
    config.save_config()
    config.pipeline.datamanager.dataparser = Re10kDataParserConfig()
    with pytest.raises(SystemExit, match="many scenes"):
        config.setup(local_rank=0, world_size=1).train()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_encoding_exits_130_and_writes_nothing(
    trained: Run, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = deepcopy(all_methods["latentsplat-encode"])
    config.run, config.pipeline.datamanager.data, config.pipeline.datamanager.context = (
        trained.folder,
        capture,
        (0, 5, 9),
    )

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lsplat_ns.fusion.fuse", interrupt)
    with pytest.raises(SystemExit) as ended:
        config.setup(local_rank=0, world_size=1).train()
    assert ended.value.code == 130
    assert list(tmp_path.iterdir()) == []
