"""Checkpoints of the original MV-LDM: strictly, without leaving anything unexplained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mvldm_checkpoints import SMALL, original_state, our_state
from mvldm_recordings import denoiser_config
from parity import recording
from safetensors.torch import save_file
from torch import Tensor

from lsplat_ns.autoencoder import KLAutoencoder
from lsplat_ns.checkpoints.architecture import differences
from lsplat_ns.checkpoints.mvldm_upstream import (
    UpstreamDiffusion,
    infer_diffusion,
    is_mvldm,
    read_upstream_diffusion,
)
from lsplat_ns.checkpoints.upstream import UpstreamCheckpoint
from lsplat_ns.errors import CheckpointMismatch, MissingWeights
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return original_state()


def read(state: dict[str, Tensor], autoencoder: Path | None = None) -> UpstreamDiffusion:
    return read_upstream_diffusion(UpstreamCheckpoint(Path("x.ckpt"), state, 5), autoencoder)


def without_autoencoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("autoencoder.")}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_the_published_key_list_is_the_default_network_and_all_of_it_is_accounted_for() -> None:
    (entries,) = recording("mv_checkpoint").meta["state_dict"].values()
    published = {key: torch.empty(shape, device="meta") for key, shape, _ in entries}
    found = read(published)
    assert found.config == MultiViewDiffusionConfig()
    assert len(published) == 1168 and found.idle_left_out == 234 and found.averages_left_out == 0
    assert len(found.weights) == 934
    assert sum(value.numel() for value in found.weights.values()) == 1_152_511_467 - 142_927_680


def test_what_is_imported_is_exactly_what_the_file_holds(state: dict[str, Tensor]) -> None:
    found = read(state)
    assert found.config == SMALL and found.idle_left_out > 0
    assert same(found.weights, our_state(state))
    MultiViewDiffusion(SMALL).load_state_dict(found.weights, strict=True)


def test_weights_are_not_copied(state: dict[str, Tensor]) -> None:
    found = read(state)
    key = "denoiser.unet.conv_in.weight"
    assert found.weights[key].data_ptr() == state[key].data_ptr()


def test_a_file_without_the_idle_transformers_is_accepted_but_not_with_some_of_them(state: dict[str, Tensor]) -> None:
    idle = [key for key in state if "up_blocks" in key and ".attentions." in key and key.startswith("denoiser.")]
    lean = {key: value for key, value in state.items() if key not in idle}
    assert same(read(lean).weights, our_state(state)) and read(lean).idle_left_out == 0
    with pytest.raises(CheckpointMismatch, match=f"1 missing: {idle[3]}"):
        read({key: value for key, value in state.items() if key != idle[3]})


def test_a_moving_average_is_left_out_and_counted(state: dict[str, Tensor]) -> None:
    average = {key.replace("denoiser.", "ema.module."): value + 1 for key, value in without_autoencoder(state).items()}
    found = read({**state, **average, "ema.n_averaged": torch.tensor(3)})
    assert found.averages_left_out == len(average) + 1 and same(found.weights, our_state(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("denoiser.unet.conv_out.bias"), "1 missing: denoiser.unet.conv_out.bias"),
        (lambda s: s.pop("autoencoder.quant_conv.bias"), "1 missing: autoencoder.model.quant_conv.bias"),
        (lambda s: s.update({"denoiser.surplus": torch.ones(1)}), "1 not used: denoiser.surplus"),
        (lambda s: s.update({"ema_denoiser.x": torch.ones(1)}), "1 not used: ema_denoiser.x"),
        (
            lambda s: s.update({"denoiser.unet.conv_out.bias": torch.ones(5)}),
            r"1 differently shaped: denoiser.unet.conv_out.bias \[5\] instead of \[4\]",
        ),
        (lambda s: s.pop("denoiser.unet.conv_in.weight"), "no MV-LDM network: the weights lack denoiser.unet.conv_in"),
        (
            lambda s: s.update({"denoiser.unet.conv_in.weight": torch.ones(32, 185, 3, 3)}),
            "180 ray channels; only networks of raw rays",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_that_lists_why(state: dict[str, Tensor], change, message: str) -> None:
    changed = dict(state)
    change(changed)
    with pytest.raises(CheckpointMismatch, match=message) as caught:
        read(changed)
    assert "\n" not in str(caught.value)


def test_a_file_without_an_autoencoder_is_one_clear_line(state: dict[str, Tensor]) -> None:
    with pytest.raises(MissingWeights, match=r"holds no autoencoder; state a file .* by --autoencoder FILE") as caught:
        read(without_autoencoder(state))
    assert "\n" not in str(caught.value)


def as_latent_diffusion(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder of two levels in latent diffusion's names, as in a checkpoint of the whole system."""
    parts = (
        ("mid_block.resnets.0.", "mid.block_1."), ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.", "mid.attn_1."), (".resnets.", ".block."), ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"), ("downsamplers.0.conv", "downsample.conv"),
        ("upsamplers.0.conv", "upsample.conv"), ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
        ("to_out.0", "proj_out"), ("down_blocks.", "down."), ("up_blocks.0.", "up.1."), ("up_blocks.1.", "up.0."),
    )  # fmt: skip
    renamed = {"model.diffusion_model.out.0.weight": torch.ones(3)}
    for key, value in state.items():
        is_matrix = "attentions" in key and value.ndim == 2
        for ours, theirs in parts:
            key = key.replace(ours, theirs)  # noqa: PLW2901
        renamed[f"first_stage_model.{key}"] = value[:, :, None, None].contiguous() if is_matrix else value
    return renamed


@pytest.mark.parametrize("naming", ["diffusers", "old diffusers", "latent diffusion"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_the_autoencoder_may_come_from_a_local_file(
    state: dict[str, Tensor], naming: str, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    other = KLAutoencoder(SMALL.autoencoder).model.state_dict()
    stored = dict(other)
    if naming == "old diffusers":
        stored = {k.replace("to_q", "query").replace("to_out.0", "proj_attn"): v for k, v in other.items()}
    elif naming == "latent diffusion":
        stored = as_latent_diffusion(other)
    file = tmp_path / f"vae{suffix}"
    if suffix == ".safetensors":
        save_file(stored, file)
    else:
        torch.save({"state_dict": stored}, file)
    for source in (without_autoencoder(state), state):
        weights = read(source, file).weights
        assert same({k: v for k, v in weights.items() if k.startswith("autoencoder.")},
                    {f"autoencoder.model.{k}": v for k, v in other.items()})  # fmt: skip


def test_an_unreadable_autoencoder_file_is_one_clear_line(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="no weights file"):
        read(state, tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not at all")
    with pytest.raises(CheckpointMismatch, match="cannot be read as safetensors"):
        read(state, tmp_path / "broken.safetensors")
    save_file({"decoder.conv_in.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointMismatch, match="no MV-LDM network: the weights lack"):
        read(state, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "name", ["mv_unet_small", "mv_unet_small_nomid", "mv_unet_small_standard", "mv_unet_scratch_cross"]
)
def test_shapes_tell_the_recorded_networks_but_for_heads_of_other_widths(name: str) -> None:
    case = recording(name)
    parts = [*case.meta["state_dict"]["denoiser"]]
    parts += [e for e in recording("mv_sample_small").meta["state_dict"]["wrapper"] if e[0].startswith("autoencoder.")]
    shapes = {key.replace("autoencoder.", "autoencoder.model."): torch.Size(shape) for key, shape, _ in parts}
    expected = denoiser_config(case.meta)
    found = infer_diffusion(shapes).denoiser
    heads = found.attention_heads if "scratch" not in name else expected.attention_heads
    assert differences(replace(expected, attention_heads=heads), found) == []


def test_checkpoints_of_both_systems_are_told_apart() -> None:
    (entries,) = recording("mv_checkpoint").meta["state_dict"].values()
    assert is_mvldm({key: torch.empty(0) for key, *_ in entries})
    latentsplat = recording("ls_checkpoint").meta["state_dict"].values()
    assert not is_mvldm({key: torch.empty(0) for part in latentsplat for key, *_ in part})
