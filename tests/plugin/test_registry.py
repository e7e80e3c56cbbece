"""What nerfstudio lists, and what it saves."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from conftest import call
from nerfstudio.configs.method_configs import all_methods

METHODS = sorted(
    e.name for e in entry_points(group="nerfstudio.method_configs") if e.value.startswith("method_configs")
)


def test_entry_points_are_named_after_their_methods() -> None:
    assert {"latentsplat", "latentsplat-tiny"} <= set(METHODS)
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
    assert again.pipeline.model.network == config.pipeline.model.network
    assert again.pipeline.model.schedule == config.pipeline.model.schedule


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
@pytest.mark.parametrize("method", METHODS)
def test_help_of_every_method_exits_0(method: str, tmp_path: Path) -> None:
    outcome = call("ns-train", method, "--help", cwd=tmp_path)
    assert outcome.code == 0, outcome.output[-2000:]
    assert "--pipeline.model.network.encoder.d-feature" in outcome.output
    assert "re10k-data" in outcome.output and "nerfstudio-data" in outcome.output
    assert "train-num-rays-per-batch" not in outcome.output  # options of ray-based methods are hidden


@pytest.mark.parametrize("command", [["--help"], ["demo", "--help"], ["make-scenes", "--help"], ["doctor", "--help"]])
def test_help_of_every_lsplat_command_exits_0(command: list[str], tmp_path: Path) -> None:
    outcome = call("lsplat", *command, cwd=tmp_path)
    assert outcome.code == 0, outcome.output
