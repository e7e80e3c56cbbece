"""Weights that training starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lsplat_ns.autoencoder import AutoencoderConfig, DiscriminatorConfig
from lsplat_ns.checkpoints.pretrained import check_pretrained, load_pretrained, pretrained_parts
from lsplat_ns.encoder.backbones import BackboneConfig
from lsplat_ns.encoder.encoder import EncoderConfig
from lsplat_ns.errors import CheckpointMismatch, MissingWeights
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig


def network(seed: int) -> LatentSplat:
    """A small network whose backbone has the width and patches of DINO ViT-S/8."""
    torch.manual_seed(seed)
    backbone = BackboneConfig(width=384, depth=1, heads=6, patch_size=8)
    encoder = replace(EncoderConfig(), backbone=backbone, d_backbone=16, d_feature=16, use_epipolar_transformer=False)
    autoencoder = AutoencoderConfig(block_out_channels=(8, 8, 8, 8), norm_groups=4, layers_per_block=1)
    return LatentSplat(LatentSplatConfig(encoder, autoencoder, DiscriminatorConfig(width=4)))


FILES = {
    "backbone": "dino_deitsmall8_pretrain.pth",
    "autoencoder": "pretrained/autoencoder/kl_f8.pt",
    "discriminator": "pretrained/discriminator/kl_f8.pt",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LSPLAT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "weights"


def publish(source: LatentSplat, folder: Path, *names: str) -> None:
    modules = {part.name: part.module for part in pretrained_parts(source)}
    for name in names:
        path = folder / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(modules[name].state_dict(), path)


def equal(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def test_every_part_is_found_and_loaded_and_nothing_else_changes(folder: Path) -> None:
    theirs, ours, before = network(0), network(1), network(1)
    publish(theirs, folder, *FILES)
    assert load_pretrained(ours, "require") == {name: folder / file for name, file in FILES.items()}
    assert equal(ours.encoder.backbone.dino, theirs.encoder.backbone.dino)
    assert equal(ours.autoencoder.model, theirs.autoencoder.model)
    assert equal(ours.discriminator, theirs.discriminator)
    assert equal(ours.encoder.to_gaussians, before.encoder.to_gaussians)
    assert equal(ours.autoencoder.skip_convs, before.autoencoder.skip_convs)


def test_torch_hub_s_folder_is_searched_too(folder: Path, tmp_path: Path) -> None:
    theirs, ours = network(0), network(1)
    publish(theirs, tmp_path / "torch" / "hub" / "checkpoints", *FILES)
    assert set(load_pretrained(ours, "require")) == set(FILES)


def test_absent_weights_are_one_message_with_files_sources_folder_and_flag(folder: Path) -> None:
    publish(network(0), folder, "autoencoder")
    with pytest.raises(MissingWeights) as caught:
        load_pretrained(network(1), "require")
    message = str(caught.value)
    for part in ("dino_deitsmall8_pretrain.pth", "https://", FILES["discriminator"], str(folder), "LSPLAT_WEIGHTS",
                 "--pipeline.model.pretrained none"):  # fmt: skip
        assert part in message
    assert FILES["autoencoder"] not in message and "\n" not in message
    with pytest.raises(MissingWeights) as early:
        check_pretrained(network(1).config, discriminator=True)
    assert str(early.value) == message


def test_the_early_check_passes_where_every_weight_is_there(folder: Path) -> None:
    publish(network(0), folder, "backbone", "autoencoder")
    check_pretrained(network(1).config, discriminator=False)


def test_auto_takes_what_is_there_and_none_takes_nothing(folder: Path) -> None:
    theirs, ours, before = network(0), network(1), network(1)
    publish(theirs, folder, "discriminator")
    assert load_pretrained(ours, "none") == {} and equal(ours, before)
    assert set(load_pretrained(ours, "auto")) == {"discriminator"}
    assert equal(ours.discriminator, theirs.discriminator) and equal(ours.encoder, before.encoder)


def test_a_file_that_does_not_fit_leaves_the_network_as_it_was(folder: Path) -> None:
    publish(network(0), folder, *FILES)
    torch.save({"main.0.weight": torch.zeros(1)}, folder / FILES["discriminator"])
    ours, before = network(1), network(1)
    with pytest.raises(CheckpointMismatch, match=r"kl_f8\.pt"):
        load_pretrained(ours, "require")
    assert equal(ours, before)


def test_latent_diffusion_s_own_file_serves_autoencoder_and_discriminator(folder: Path) -> None:
    theirs, ours = network(0), network(1)
    state = theirs.autoencoder.model.state_dict()
    ldm = {}
    for key, value in state.items():
        name = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace(".resnets.", ".block.")
        name = name.replace("group_norm", "norm").replace("to_out.0", "proj_out").replace("conv_norm_out", "norm_out")
        name = name.replace(".to_", ".").replace("samplers.0.conv", "sample.conv")
        for level in range(4):
            name = name.replace(f"up_blocks.{level}.", f"up.{3 - level}.").replace(
                f"down_blocks.{level}", f"down.{level}"
            )
        is_convolution = "mid.attn_1" in name and value.ndim == 2
        ldm[name] = value[:, :, None, None] if is_convolution else value
    ldm.update({f"loss.discriminator.{key}": value for key, value in theirs.discriminator.state_dict().items()})
    path = folder / "kl-f8" / "model.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": ldm, "global_step": 3}, path)
    assert load_pretrained(ours, "auto") == {"autoencoder": path, "discriminator": path}
    assert equal(ours.autoencoder.model, theirs.autoencoder.model)
    assert equal(ours.discriminator, theirs.discriminator)
