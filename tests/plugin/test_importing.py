"""Checkpoints of the original become runs that nerfstudio opens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import call
from nerfstudio.utils.eval_utils import eval_setup

from lsplat_ns.autoencoder import AutoencoderConfig
from lsplat_ns.checkpoints.exports import read_npz, read_ply
from lsplat_ns.encoder.depth_head import DepthHeadConfig
from lsplat_ns.encoder.gaussian_head import GaussianHeadConfig
from lsplat_ns.errors import CheckpointMismatch, ConfigError, SceneDataError
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig
from lsplat_ns.plugin.exporting import export_scene
from lsplat_ns.plugin.importing import FINISHED_STEPS, ImportedRun, import_checkpoint
from lsplat_ns.plugin.recipes import tiny_networks


def small_network(seed: int = 0) -> LatentSplat:
    torch.manual_seed(seed)
    return LatentSplat(tiny_networks())


def lightning(path: Path, state: dict[str, torch.Tensor], steps: int = 40) -> Path:
    """A checkpoint file as Lightning writes it."""
    parts = {"loops": {}, "callbacks": {}, "optimizer_states": [], "lr_schedulers": []}
    torch.save({"epoch": 0, "global_step": steps, "state_dict": state, **parts}, path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lightning(tmp_path_factory.mktemp("source") / "small.ckpt", small_network().state_dict())


@pytest.fixture(scope="module")
def run(source: Path, rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> ImportedRun:
    return import_checkpoint(source, tmp_path_factory.mktemp("runs") / "any" / "where", data=rooms)


def test_the_run_holds_exactly_the_file_s_weights_as_a_trained_run_would(run: ImportedRun) -> None:
    (path,) = (run.folder / "nerfstudio_models").iterdir()
    assert path.name == "step-000000039.ckpt"  # 40 steps done, the last one is number 39
    content = torch.load(path, weights_only=True)
    assert set(content) == {"step", "pipeline", "optimizers", "schedulers", "scalers"} and content["step"] == 39
    weights = small_network().state_dict()
    assert set(content["pipeline"]) == {"_model.device_indicator_param", *(f"_model.network.{key}" for key in weights)}
    assert content["pipeline"]["_model.device_indicator_param"].shape == (0,)
    for key, value in weights.items():
        assert torch.equal(content["pipeline"][f"_model.network.{key}"], value)


def test_nerfstudio_opens_the_run_where_it_is_and_shows_the_network_s_picture(run: ImportedRun) -> None:
    config, pipeline, path, step = eval_setup(run.config, test_mode="inference")
    assert config.get_base_dir() == run.folder and path.parent == run.folder / "nerfstudio_models" and step == 39
    assert config.method_name == run.method == "latentsplat-tiny"
    scene = pipeline.datamanager.scene
    with torch.no_grad():
        picture = pipeline.model.get_outputs_for_camera(scene.nerfstudio_cameras((5,)))["rgb"]
        network = small_network().eval()
        expected = network.encode(scene.context, step=39, deterministic=True)
    assert picture.shape == (64, 64, 3) and picture.std() > 0
    torch.testing.assert_close(pipeline.model.prediction().distribution.means, expected.means)


def test_provenance_tells_file_digest_method_and_converter(run: ImportedRun, source: Path) -> None:
    note = json.loads((run.folder / "provenance.json").read_text())
    assert note["source"] == "small.ckpt" and note["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert note["method"] == "latentsplat-tiny" and note["steps_done"] == 40
    assert note["converter"].startswith("lsplat-ns ") and note["imported"].startswith("20")
    assert sorted(file.name for file in run.folder.iterdir()) == [
        "config.yml", "nerfstudio_models", "provenance.json"
    ]  # fmt: skip
    assert [file.name for file in run.folder.parent.iterdir()] == [run.folder.name]


def test_a_bare_state_dict_counts_as_finished_and_old_attention_names_are_accepted(rooms: Path, tmp_path: Path) -> None:
    state = {
        f"module.{key}".replace("to_q", "query").replace("to_out.0", "proj_attn") if "attentions" in key else key: value
        for key, value in small_network().state_dict().items()
    }
    torch.save(state, tmp_path / "bare.pt")
    imported = import_checkpoint(tmp_path / "bare.pt", tmp_path / "run", data=rooms)
    assert imported.steps_done == FINISHED_STEPS and imported.method == "latentsplat-tiny"


def test_steps_that_cannot_be_are_refused_or_passed_over(source: Path, rooms: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--steps must be 0 or more, but is -3"):
        import_checkpoint(source, tmp_path / "run", data=rooms, steps_done=-3)
    file = lightning(tmp_path / "negative.ckpt", small_network().state_dict(), steps=-5)
    assert import_checkpoint(file, tmp_path / "run", data=rooms).steps_done == FINISHED_STEPS


def test_half_precision_weights_become_float32(rooms: Path, tmp_path: Path) -> None:
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in small_network().state_dict().items()
    }
    imported = import_checkpoint(lightning(tmp_path / "half.ckpt", state), tmp_path / "run", data=rooms)
    (path,) = (imported.folder / "nerfstudio_models").iterdir()
    content = torch.load(path, weights_only=True)["pipeline"]
    assert {value.dtype for value in content.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({}, "latentsplat"),
        ({"autoencoder": AutoencoderConfig(skip_connections=False)}, "latentsplat-co3d-hydrant-no-skip"),
        ({"autoencoder": AutoencoderConfig(skip_extra=False)}, "latentsplat-co3d-hydrant-no-extra"),
        ({"variational": "none"}, "latentsplat-co3d-hydrant-no-var"),
        ({"variational": "none", "discriminator": False}, "latentsplat-co3d-hydrant-det"),
        ({"discriminator": False}, "latentsplat-co3d-hydrant-no-gan"),
    ],
)
def test_every_published_variant_is_recognised(change: dict, method: str, monkeypatch, tmp_path: Path) -> None:
    from lsplat_ns.plugin import importing

    base = LatentSplatConfig(autoencoder=change.get("autoencoder", AutoencoderConfig()))
    gaussians = GaussianHeadConfig(variational=change.get("variational", "gaussians"))
    config = replace(base, encoder=replace(base.encoder, gaussians=gaussians))
    with torch.device("meta"):
        state = LatentSplat(config, discriminator=change.get("discriminator", True)).state_dict()
    source = importing.UpstreamCheckpoint(tmp_path / "x.ckpt", state, 1)
    name, architecture, also_fitting = importing._recognise(source, None)
    assert name == method
    assert architecture.network == config
    if method == "latentsplat":
        assert {"latentsplat-co3d-hydrant", "latentsplat-co3d-teddybear-kl"} <= set(also_fitting)
    for stated in also_fitting:
        assert importing._recognise(source, stated)[0] == stated


@pytest.mark.parametrize(
    ("buckets", "reason"),
    [(32, "encoder.backbone.width: 768, but the file has 128"), (64, "which no harmonic degrees give")],
)
def test_a_statement_that_contradicts_the_shapes_is_one_error(buckets: int, reason: str, tmp_path: Path) -> None:
    network = tiny_networks()
    network.encoder = replace(network.encoder, depth=DepthHeadConfig(num_depth_buckets=buckets))
    (tmp_path / "file").mkdir()
    file = lightning(tmp_path / "file" / "other.ckpt", LatentSplat(network).state_dict())
    with pytest.raises(CheckpointMismatch) as caught:
        import_checkpoint(file, tmp_path / "run", method="latentsplat-co3d-hydrant-det")
    message = str(caught.value)
    assert "is no latentsplat-co3d-hydrant-det" in message and reason in message
    assert "\n" not in message and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_and_unused_keys_are_listed_and_nothing_is_written(rooms: Path, tmp_path: Path) -> None:
    state = small_network().state_dict()
    state["encoder.surplus.weight"] = state.pop("encoder.depth_predictor.projection.1.bias")
    path = lightning(tmp_path / "broken.ckpt", state)
    with pytest.raises(CheckpointMismatch) as caught:
        import_checkpoint(path, tmp_path / "run", data=rooms)
    message = str(caught.value)
    assert "1 missing: encoder.depth_predictor.projection.1.bias" in message
    assert "1 not used: encoder.surplus.weight" in message
    assert [file.name for file in tmp_path.iterdir()] == ["broken.ckpt"]


def test_a_failed_write_leaves_nothing_behind(source: Path, rooms: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(Exception, match="disk full"):
        import_checkpoint(source, tmp_path / "run", data=rooms)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_one_line_each(source: Path, rooms: Path, run: ImportedRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not an empty folder"):
        import_checkpoint(source, run.folder, data=rooms)
    with pytest.raises(ConfigError, match="no method 'nonsense'"):
        import_checkpoint(source, tmp_path / "run", method="nonsense")
    with pytest.raises(SceneDataError, match="holds no dataset"):
        import_checkpoint(source, tmp_path / "run", data=tmp_path)
    with pytest.raises(CheckpointMismatch, match="nerfstudio run already"):
        import_checkpoint(next((run.folder / "nerfstudio_models").iterdir()), tmp_path / "run")


def test_exports_of_a_run_line_up_with_nerfstudio_s_frame(run: ImportedRun, tmp_path: Path) -> None:
    _, pipeline, _, _ = eval_setup(run.config, test_mode="inference")
    count = export_scene(run.folder, tmp_path / "x.ply", keep_faint=True)
    splats = read_ply(tmp_path / "x.ply")
    assert count == splats.count
    torch.testing.assert_close(splats.means, pipeline.model.gauss_params["means"], rtol=1e-4, atol=1e-4)
    assert export_scene(run.config, tmp_path / "x.npz") == count
    distribution, to_nerfstudio = read_npz(tmp_path / "x.npz")
    torch.testing.assert_close(to_nerfstudio.apply_to_points(distribution.means[0]), splats.means, rtol=1e-4, atol=1e-4)
    assert export_scene(run.config, tmp_path / "x.splat") > 0
    with pytest.raises(ConfigError, match="must end in"):
        export_scene(run.config, tmp_path / "x.obj")
    with pytest.raises(ConfigError, match="no run at"):
        export_scene(tmp_path / "absent", tmp_path / "x.ply")


@pytest.mark.slow
def test_ns_train_continues_and_ns_eval_measures_an_imported_run(run: ImportedRun, rooms: Path, tmp_path: Path) -> None:
    outcome = call(
        "ns-train", "latentsplat-tiny", "--data", rooms, "--load-dir", run.folder / "nerfstudio_models",
        "--max-num-iterations", 2, "--vis", "tensorboard", "--experiment-name", "on", "--timestamp", "x", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output[-2000:]
    (path,) = (tmp_path / "outputs" / "on" / "latentsplat-tiny" / "x" / "nerfstudio_models").iterdir()
    assert path.name == "step-000000041.ckpt"
    outcome = call("ns-eval", "--load-config", run.config, "--output-path", tmp_path / "x.json", cwd=tmp_path)
    assert outcome.code == 0, outcome.output[-2000:]
    assert json.loads((tmp_path / "x.json").read_text())["results"]["psnr"] > 0
