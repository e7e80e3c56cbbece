"""What nerfstudio lists, and what it saves."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml
from conftest import call
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.configs.method_configs import all_methods

from lsplat_ns.errors import ConfigError
from lsplat_ns.losses import LossTerm
from lsplat_ns.plugin.dataparsers import Co3dDataParserConfig
from lsplat_ns.plugin.recipes import KL, tiny_networks, tiny_trainer, variant

METHODS = sorted(
    e.name for e in entry_points(group="nerfstudio.method_configs") if e.value.startswith("method_configs")
)


def test_entry_points_are_named_after_their_methods() -> None:
    ablations = {"det", "no-var", "no-gan", "no-skip", "no-extra", "no-zero"}
    assert set(METHODS) == {
        "latentsplat",
        "latentsplat-tiny",
        "latentsplat-encode",
        "mvldm",
        "mvldm-tiny",
        "mvldm-latentsplat",
        *(f"latentsplat-co3d-{category}{kl}" for category in ("hydrant", "teddybear") for kl in ("", "-kl")),
        *(f"latentsplat-co3d-hydrant-{name}" for name in ablations),
    }
    for entry in entry_points(group="nerfstudio.method_configs"):
        if entry.value.startswith("method_configs"):
            specification = entry.load()
            assert specification.config.method_name == entry.name
            assert specification.description


def test_the_table_in_the_docstring_names_every_method_and_dataparser() -> None:
    import method_configs

    names = METHODS + [
        e.name for e in entry_points(group="nerfstudio.dataparser_configs") if e.value.startswith("method_configs")
    ]
    for name in names:
        assert f"| {name} " in method_configs.__doc__, name


@pytest.mark.parametrize("method", METHODS)
def test_every_config_survives_yaml(method: str) -> None:
    config = all_methods[method]
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert yaml.dump(again) == yaml.dump(config)
    if method in ("latentsplat-encode", "mvldm-latentsplat"):  # their networks are those of another run
        return
    assert again.pipeline.model.network == config.pipeline.model.network
    if method.startswith("latentsplat"):  # MV-LDM has one loss, from the first step to the last
        assert again.pipeline.model.schedule == config.pipeline.model.schedule


@pytest.mark.parametrize("method", METHODS)
def test_logs_go_to_tensorboard_and_to_wandb_only_when_asked(method: str) -> None:
    config = all_methods[method]
    assert not config.is_wandb_enabled() and not config.is_comet_enabled()
    trains = method not in ("latentsplat-encode", "mvldm-latentsplat")
    assert config.is_tensorboard_enabled() or not trains


@pytest.mark.parametrize("name", [m for m in METHODS if m.startswith("latentsplat-co3d")])
def test_co3d_methods_sample_views_as_published(name: str) -> None:
    """Spec section 2.4: wide gaps and margins, in the units of the data."""
    config = all_methods[name]
    data = config.pipeline.datamanager
    sampling = data.sampling
    assert (sampling.initial_min_gap, sampling.initial_max_gap) == (8, 18)
    assert (sampling.min_gap, sampling.max_gap, sampling.num_target_views) == (16, 25, 4)
    assert (sampling.initial_target_margin, sampling.target_margin) == (0, 100)
    assert (sampling.gap_warm_up_steps, sampling.margin_warm_up_steps) == (50_000, 50_000)
    assert not data.preparation.baseline_to_one and data.preparation.image_size == (256, 256)
    assert data.dataparser.category == ("teddybear" if "teddybear" in name else "hydrant",)
    assert isinstance(data.dataparser, Co3dDataParserConfig) and data.dataparser.circular
    assert config.max_num_iterations == 200_001 and data.batch_size == 2
    assert config.optimizers["generator"]["optimizer"].max_norm == (0.05 if name.endswith("teddybear-kl") else 0.5)


@pytest.mark.parametrize(
    ("name", "variational", "skips", "gan", "kl"),
    [  # skips: any, with colour, zero at the start
        ("", "gaussians", (True, True, True), True, False),
        ("-co3d-hydrant", "gaussians", (True, True, True), True, False),
        ("-co3d-teddybear", "gaussians", (True, True, True), True, False),
        ("-co3d-hydrant-kl", "gaussians", (True, True, True), True, True),
        ("-co3d-teddybear-kl", "gaussians", (True, True, True), True, True),
        ("-co3d-hydrant-det", "none", (True, True, True), False, False),
        ("-co3d-hydrant-no-var", "none", (True, True, True), True, False),
        ("-co3d-hydrant-no-gan", "gaussians", (True, True, True), False, False),
        ("-co3d-hydrant-no-extra", "gaussians", (True, False, True), True, False),
        ("-co3d-hydrant-no-zero", "gaussians", (True, True, False), True, False),
        ("-co3d-hydrant-no-skip", "gaussians", (False, True, True), True, False),
    ],
)
def test_variants_differ_as_in_the_paper(name: str, variational: str, skips: tuple, gan: bool, kl: bool) -> None:
    """Spec section 7.3; without skips their other options have no meaning."""
    model = all_methods[f"latentsplat{name}"].pipeline.model
    autoencoder, schedule = model.network.autoencoder, model.schedule
    assert model.network.encoder.gaussians.variational == variational
    assert (autoencoder.skip_connections, autoencoder.skip_extra, autoencoder.skip_zero) == skips
    assert schedule.uses_discriminator == gan
    assert schedule.adversarial.generator_weight == 0.5 and schedule.adversarial.starts_at_step == 125_000
    assert [(term.name, term.weight, term.starts_at_step) for term in schedule.gaussian] == [("kl", 0.1, 0)] * kl
    assert [(t.name, t.weight, t.starts_at_step) for t in schedule.combined] == [
        ("l1", 1, 100_000),
        ("lpips", 1, 100_000),
    ]
    assert [(t.name, t.weight, t.starts_at_step) for t in schedule.render_image] == [
        ("mse", 10, 0),
        ("lpips", 0.5, 50_000),
    ]


def test_a_variant_differs_from_its_base_in_the_stated_options_only() -> None:
    base = all_methods["latentsplat-co3d-hydrant"]
    before = yaml.dump(base)
    made = variant(base, "other", "why", {"optimizers.generator.optimizer.max_norm": 1.5, **KL})
    assert yaml.dump(base) == before and made.description == "why"
    lines = set(yaml.dump(made.config).splitlines()) ^ set(before.splitlines())
    assert {"method_name: other", "method_name: latentsplat-co3d-hydrant"} < lines
    assert made.config.optimizers["generator"]["optimizer"].max_norm == 1.5
    assert made.config.pipeline.datamanager == base.pipeline.datamanager


@pytest.mark.parametrize(
    "option", ["nonsense", "pipeline.nonsense", "optimizers.nonsense.lr", "pipeline.model.network.x"]
)
def test_a_variant_of_an_option_that_does_not_exist_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="no option"):
        variant(all_methods["latentsplat-tiny"], "other", "why", {option: 1})


@pytest.mark.parametrize("name", ["latentsplat-co3d-hydrant-det", "latentsplat-co3d-teddybear-kl"])
def test_co3d_methods_train_on_turntables(name: str, objects: Path) -> None:
    """With small networks; the published ones differ in size only. The demo objects are filed under hydrants."""
    made = variant(all_methods[name], "small", "fits a CPU", {
        "pipeline.datamanager.data": objects,
        "pipeline.datamanager.dataparser.category": ("hydrant",),
        "pipeline.datamanager.batch_size": 1,
        "pipeline.datamanager.num_workers": 0,
        "pipeline.datamanager.preparation.image_size": (64, 64),
        "pipeline.model.perceptual": "none",
        "pipeline.model.pretrained": "none",
        "pipeline.model.schedule.combined": (LossTerm("l1"),),
        "pipeline.model.network": replace(
            tiny_networks(),
            autoencoder=replace(tiny_networks().autoencoder, skip_extra=False),
        ),
    }).config  # fmt: skip
    pipeline = made.pipeline.setup(device="cpu", test_mode="val")
    _, losses, _ = pipeline.get_train_loss_dict(0)
    assert losses and all(torch.isfinite(loss) for loss in losses.values())
    assert any("kl" in loss for loss in losses) == name.endswith("kl")
    sum(losses.values()).backward()
    assert set(pipeline.get_param_groups()) <= set(made.optimizers)


def test_published_numbers_are_the_papers() -> None:
    """Spec sections 0, 2.4 and 7: what makes the paper's pictures."""
    config = all_methods["latentsplat"]
    data, model = config.pipeline.datamanager, config.pipeline.model
    assert data.preparation.image_size == (256, 256)
    assert (data.batch_size, data.sampling.num_target_views) == (2, 4)
    assert (data.sampling.initial_min_gap, data.sampling.min_gap, data.sampling.target_margin) == (25, 45, 45)
    assert config.max_num_iterations == 200_001
    generator = config.optimizers["generator"]["optimizer"]
    assert (generator.lr, generator.fine_tuned_lr, generator.max_norm) == (1.5e-4, 9e-6, 0.5)
    assert generator.fine_tuned_betas == (0.5, 0.9)
    assert config.optimizers["generator"]["scheduler"].warm_up_steps == 2000
    assert model.schedule.adversarial.starts_at_step == 125_000
    assert model.network.encoder.gaussians.gaussians_per_pixel == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["latentsplat", "latentsplat-tiny", "latentsplat-co3d-hydrant-det"])
def test_help_of_a_published_an_ablated_and_the_tiny_method_exits_0(method: str, tmp_path: Path) -> None:
    outcome = call("ns-train", method, "--help", cwd=tmp_path)
    assert outcome.code == 0, outcome.output[-2000:]
    assert "--pipeline.model.network.encoder.d-feature" in outcome.output
    assert "re10k-data" in outcome.output and "nerfstudio-data" in outcome.output
    assert "train-num-rays-per-batch" not in outcome.output  # options of ray-based methods are hidden


@pytest.mark.parametrize("command", [["--help"], ["demo", "--help"], ["make-scenes", "--help"], ["doctor", "--help"]])
def test_help_of_every_lsplat_command_exits_0(command: list[str], tmp_path: Path) -> None:
    outcome = call("lsplat", *command, cwd=tmp_path)
    assert outcome.code == 0, outcome.output


@pytest.mark.parametrize(
    ("words", "host"),
    [
        (["ns-viewer"], "127.0.0.1"),
        (["ns-viewer", "--viewer.websocket-host", "0.0.0.0"], "0.0.0.0"),
        (["ns-viewer", "--viewer.websocket_host=0.0.0.0"], "0.0.0.0"),
        (["ns-viewer", "--viewer.websocket-port", "7007"], "127.0.0.1"),
    ],
)
def test_a_viewer_listens_on_this_machine_only_unless_told_otherwise(
    words: list[str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", words)
    config = tiny_trainer("latentsplat-tiny")
    config.viewer = ViewerConfig(websocket_host="0.0.0.0")  # as ns-viewer does, whatever was asked for
    assert config.viewer.websocket_host == host
