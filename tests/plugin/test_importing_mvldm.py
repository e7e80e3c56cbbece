"""``lsplat import`` of MV-LDM."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import call
from mvldm_checkpoints import SMALL, original_state, our_state
from safetensors.torch import save_file

from lsplat_ns.checkpoints.mvldm_runs import load_mvldm
from lsplat_ns.errors import CheckpointMismatch, ConfigError, MissingWeights
from lsplat_ns.plugin.importing import FINISHED_MVLDM_STEPS, import_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lightning checkpoint as the original writes it."""
    path = tmp_path_factory.mktemp("mvldm") / "small.ckpt"
    parts = {"loops": {}, "callbacks": {}, "optimizer_states": [{"state": {}}], "lr_schedulers": []}
    torch.save({"epoch": 1, "global_step": 77, "state_dict": original_state(), **parts}, path)
    return path


def test_the_command_recognises_mvldm_by_its_keys(checkpoint: Path, tmp_path: Path) -> None:
    outcome = call("lsplat", "import", checkpoint, "--output", tmp_path / "run", cwd=tmp_path)
    assert outcome.code == 0, outcome.output
    assert "as mvldm, 77 steps" in outcome.output and str(tmp_path / "run") in outcome.output
    model = load_mvldm(tmp_path / "run")
    expected = our_state(original_state())
    assert model.config == SMALL
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_provenance_tells_file_digest_and_what_was_left_out(checkpoint: Path, tmp_path: Path) -> None:
    imported = import_checkpoint(checkpoint, tmp_path / "run")
    note = json.loads((imported.folder / "provenance.json").read_text())
    assert note["source"] == "small.ckpt" and note["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert note["method"] == "mvldm" and note["steps_done"] == 77 and note["autoencoder"] == "of the checkpoint"
    stored, kept = original_state(), our_state(original_state())
    assert note["left_out"]["tensors of transformers that never run"] == len(stored) - len(kept)
    assert "heads of 64 channels" in note["assumed"]
    assert note["parameters"] == sum(value.numel() for value in kept.values())


def test_an_autoencoder_of_a_local_file_is_taken_and_noted(checkpoint: Path, tmp_path: Path) -> None:
    state = original_state()
    vae = {k.removeprefix("autoencoder."): v + 1 for k, v in state.items() if k.startswith("autoencoder.")}
    save_file(vae, tmp_path / "vae.safetensors")
    bare = tmp_path / "bare.pt"
    torch.save({k: v for k, v in state.items() if not k.startswith("autoencoder.")}, bare)
    with pytest.raises(MissingWeights, match="--autoencoder FILE"):
        import_checkpoint(bare, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    imported = import_checkpoint(bare, tmp_path / "run", autoencoder=tmp_path / "vae.safetensors")
    assert imported.steps_done == FINISHED_MVLDM_STEPS
    note = json.loads((imported.folder / "provenance.json").read_text())
    assert note["autoencoder"]["source"] == "vae.safetensors" and len(note["autoencoder"]["sha256"]) == 64
    model = load_mvldm(imported.folder)
    assert torch.equal(model.autoencoder.model.quant_conv.bias, vae["quant_conv.bias"])


def test_options_of_the_other_system_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds MV-LDM, which has no scenes"):
        import_checkpoint(checkpoint, tmp_path / "run", data=tmp_path)
    with pytest.raises(ConfigError, match="no variants"):
        import_checkpoint(checkpoint, tmp_path / "run", method="latentsplat")
    torch.save({"encoder.to_gaussians.1.weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="holds latentSplat"):
        import_checkpoint(tmp_path / "other.pt", tmp_path / "run", autoencoder=checkpoint)
    assert not (tmp_path / "run").exists()


def test_a_file_that_asks_for_code_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": original_state(), "extra": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(CheckpointMismatch, match="refused"):
        import_checkpoint(tmp_path / "hostile.ckpt", tmp_path / "run")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hostile.ckpt"]
