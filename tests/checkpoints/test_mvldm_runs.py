"""Run folders of MV-LDM: what is written is what is loaded, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from mvldm_checkpoints import SMALL
from mvldm_recordings import diffusion_config, run_sampler
from parity import recording

from lsplat_ns.checkpoints.mvldm_runs import (
    CONFIG,
    WEIGHTS,
    load_mvldm,
    noted_image_size,
    read_mvldm_config,
    update_mvldm,
    write_mvldm,
)
from lsplat_ns.checkpoints.mvldm_upstream import read_upstream_diffusion
from lsplat_ns.checkpoints.upstream import UpstreamCheckpoint
from lsplat_ns.errors import CheckpointMismatch, ConfigError, LsplatError
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig, tiny_multi_view_diffusion


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    write_mvldm(tmp_path / "run", SMALL, MultiViewDiffusion(SMALL).state_dict(), {"source": "here"})
    return tmp_path / "run"


def test_what_is_written_is_what_is_loaded(run: Path) -> None:
    torch.manual_seed(0)
    expected = MultiViewDiffusion(SMALL).state_dict()
    model = load_mvldm(run)
    assert model.config == SMALL and not model.training
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert json.loads((run / "provenance.json").read_text()) == {"source": "here"}
    assert sorted(file.name for file in run.parent.iterdir()) == ["run"]


def test_every_file_can_be_read_by_those_who_can_read_the_others(run: Path) -> None:
    assert len({file.stat().st_mode for file in run.iterdir()}) == 1


@pytest.mark.parametrize("config", [MultiViewDiffusionConfig(), tiny_multi_view_diffusion()])
def test_a_configuration_survives_its_file(config: MultiViewDiffusionConfig, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"format": 1, "network": asdict(config)}))
    assert read_mvldm_config(tmp_path) == config


def test_what_the_network_predicts_is_the_noise_where_the_file_does_not_say_and_nothing_unknown(tmp_path: Path) -> None:
    network = asdict(tiny_multi_view_diffusion())
    for value, found in (("velocity", "velocity"), (None, "noise")):
        network = {**network, "prediction": value} if value else {k: v for k, v in network.items() if k != "prediction"}
        (tmp_path / CONFIG).write_text(json.dumps({"format": 1, "network": network}))
        assert read_mvldm_config(tmp_path).prediction == found
    (tmp_path / CONFIG).write_text(json.dumps({"format": 1, "network": {**network, "prediction": "colour"}}))
    with pytest.raises(CheckpointMismatch, match="predicts noise or velocity, not 'colour'"):
        read_mvldm_config(tmp_path)


def test_an_imported_checkpoint_repeats_the_recorded_run_without_a_network_connection(
    tmp_path: Path, monkeypatch
) -> None:
    case = recording("mv_sample_small")

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    source = UpstreamCheckpoint(Path("x.ckpt"), case.state("wrapper"), 1)
    found = read_upstream_diffusion(source, config=diffusion_config(case.meta))  # its heads have 32 channels
    write_mvldm(tmp_path / "run", found.config, found.weights, {})
    for key, value in run_sampler(case, load_mvldm(tmp_path / "run")).items():
        case.assert_close(key, value, 1e-4)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(LsplatError, match=r"could not write .*no space left"):
        write_mvldm(tmp_path / "run", SMALL, {}, {})
    assert not list(tmp_path.iterdir())


def test_the_next_save_removes_what_a_killed_one_left(run: Path) -> None:
    (run / ".mvldm.partial-123").mkdir()
    (run / ".mvldm.partial-123" / WEIGHTS).write_bytes(b"half")
    (run / "config.yml").write_text("other files stay")
    update_mvldm(run, SMALL, load_mvldm(run).state_dict(), {})
    assert sorted(file.name for file in run.iterdir()) == sorted([CONFIG, WEIGHTS, "provenance.json", "config.yml"])


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3])
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, latent_scale=0.37)])
def test_weights_never_stand_beside_the_sizes_of_another_network(
    config: MultiViewDiffusionConfig, killed_at: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed, rename = [], os.replace

    def replaced(*paths: Path) -> None:
        if len(renamed) == killed_at:
            raise KeyboardInterrupt
        renamed.append(paths)
        rename(*paths)

    monkeypatch.setattr(os, "replace", replaced)
    with contextlib.suppress(KeyboardInterrupt):
        update_mvldm(run, config, MultiViewDiffusion(SMALL).state_dict(), {})
    if config == SMALL or killed_at > 1:
        assert load_mvldm(run).config == config
        return
    with pytest.raises(ConfigError, match="no MV-LDM at"):
        load_mvldm(run)
    monkeypatch.undo()
    update_mvldm(run, config, MultiViewDiffusion(SMALL).state_dict(), {})
    assert load_mvldm(run).config == config


@pytest.mark.parametrize("noted", ["[1e400, 64]", "[64]", "5", "[NaN, 64]", '"wide"'])
def test_an_impossible_note_of_the_image_size_is_none(noted: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(f'{{"image_size": {noted}}}')
    assert noted_image_size(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "format 2, but this version reads 1"),
        (lambda d: d.pop("network"), "lacks 'network'"),
        (lambda d: d["network"].update(surplus=1), "unknown option surplus"),
        (lambda d: d["network"].update(latent_scale=-1), "latent_scale must be positive"),
        (lambda d: d["network"].update(denoiser=5), "cannot be read"),
        (lambda d: d["network"]["denoiser"].update(block_out_channels="wide"), "cannot be read|can be built"),
        (lambda d: d["network"]["denoiser"].update(layers_per_block="two"), "no network that can be built"),
        (lambda d: d["network"]["denoiser"].update(layers_per_block=2), "does not fit the network. .* missing"),
    ],
)
def test_a_damaged_configuration_is_one_clear_line(run: Path, change, message: str) -> None:
    document = json.loads((run / CONFIG).read_text())
    change(document)
    (run / CONFIG).write_text(json.dumps(document))
    with pytest.raises(CheckpointMismatch, match=message) as caught:
        load_mvldm(run)
    assert "\n" not in str(caught.value)


def test_absent_and_damaged_files_are_one_clear_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no MV-LDM at"):
        load_mvldm(tmp_path)
    content = (run / WEIGHTS).read_bytes()
    (run / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointMismatch, match="cannot be read as safetensors"):
        load_mvldm(run)
    (run / WEIGHTS).unlink()
    with pytest.raises(CheckpointMismatch, match="no weights file"):
        load_mvldm(run)
    (run / CONFIG).write_text("{")
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        load_mvldm(run)
