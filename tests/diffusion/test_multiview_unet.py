"""Claims about the denoiser: it equals the recorded original, and knows views only through attention."""

import socket
from dataclasses import replace

import pytest
import torch
from mvldm_recordings import DENOISERS, full_size_outputs, loaded_denoiser, run_denoiser
from parity import recording
from torch import Tensor

from lsplat_ns.diffusion.multiview_unet import MultiViewUNet, MultiViewUNetConfig
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.mvldm import MultiViewDiffusion, tiny_multi_view_diffusion
from lsplat_ns.recomputation import set_recomputation

TINY = MultiViewUNetConfig(
    block_out_channels=(16, 32, 32),
    layers_per_block=1,
    image_attention=(False, True, False),
    mid_attention=False,
    attention_heads=(1, 2, 2),
    text_channels=(8, 8, 8),
    norm_groups=8,
    multiview_heads=2,
)


def tiny(config: MultiViewUNetConfig = TINY, seed: int = 0) -> MultiViewUNet:
    """A denoiser whose attention over views does something, as after training."""
    torch.manual_seed(seed)
    model = MultiViewUNet(config, 5, 4).eval()
    for name, parameter in model.named_parameters():
        if "cross_attn_blocks" in name and "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def views(count: int, side: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, side, side, generator=generator), torch.arange(count) * 100


@pytest.mark.parametrize("name", DENOISERS)
def test_output_and_stages_equal_the_recorded_original(name: str) -> None:
    case, denoiser = loaded_denoiser(name)
    outputs = run_denoiser(case, denoiser)
    assert set(outputs) == {key.split("@")[0] for key in case.outputs}
    for key, value in outputs.items():
        case.assert_close(key, value, 1e-4)


@pytest.mark.slow
def test_the_published_size_equals_the_recorded_original_in_one_pass_and_in_a_whole_run() -> None:
    for case, outputs in full_size_outputs():
        for key, value in outputs.items():
            case.assert_close(key, value, 1e-4)


def test_the_default_is_the_published_network_and_is_built_without_a_network_connection(monkeypatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with torch.device("meta"):
        model = MultiViewDiffusion()
    (entries,) = recording("mv_checkpoint").meta["state_dict"].values()
    idle = set(recording("mv_checkpoint").meta["unused_but_stored"])
    expected = {k.replace("autoencoder.", "autoencoder.model."): tuple(s) for k, s, _ in entries if k not in idle}
    assert len(idle) == 234
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected


def test_the_order_of_views_does_not_matter_but_every_view_counts() -> None:
    model, (images, timesteps) = tiny(), views(3)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        out = model(images, timesteps, ((1, 3),))
        shuffled = model(images[order], timesteps[order], ((1, 3),))
        torch.testing.assert_close(shuffled, out[order], rtol=1e-4, atol=1e-5)
        alone = model(images[:1], timesteps[:1], ((1, 1),))
    assert (alone - out[:1]).abs().max() > 1e-3


def test_samples_of_different_sizes_in_one_batch_do_not_see_each_other() -> None:
    model, (images, timesteps) = tiny(), views(7)
    with torch.no_grad():
        together = model(images, timesteps, ((2, 2), (1, 3)))
        parts = [
            model(images[start:end], timesteps[start:end], ((1, end - start),))
            for start, end in ((0, 2), (2, 4), (4, 7))
        ]
    torch.testing.assert_close(together, torch.cat(parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [8, 4, 1])  # first seen by others at the first level, at the second, in the middle
def test_images_that_samples_share_are_computed_once_until_they_are_seen_by_others(side: int) -> None:
    model, (images, timesteps) = tiny(replace(TINY, multiview_max_side=side)), views(3)
    seen = []
    model.unet.down_blocks[0].resnets[0].register_forward_hook(lambda *call: seen.append(len(call[1][0])))

    def again(each: Tensor) -> Tensor:
        return torch.cat([each, each[1:]])

    sequences = ((1, 3), (1, 2))
    with torch.no_grad():
        together = model(images, timesteps, sequences, again)
        torch.testing.assert_close(together, model(again(images), again(timesteps), sequences), rtol=1e-4, atol=1e-5)
    assert seen == [3, 5]
    with pytest.raises(ShapeMismatch, match="views to denoise"):
        model(images, timesteps, ((1, 3), (1, 3)), again)


@pytest.mark.parametrize("changes", [{}, {"mid_attention": True, "image_attention": (True, True, True)}])
def test_recomputation_gives_the_same_gradients(changes: dict) -> None:
    (images, timesteps), gradients = views(2), []
    for recompute in (False, True):
        model = tiny(replace(TINY, **changes))
        set_recomputation(model, recompute)
        model(images, timesteps, ((1, 2),)).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_without_attention_over_views_every_image_is_alone() -> None:
    model, (images, timesteps) = tiny(replace(TINY, multiview_places=())), views(2)
    with torch.no_grad():
        together, alone = model(images, timesteps, ((1, 2),)), model(images[:1], timesteps[:1], ((1, 1),))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_attention_over_views_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    model, (images, timesteps) = MultiViewUNet(TINY, 5, 4).eval(), views(2)
    with torch.no_grad():
        together, alone = model(images, timesteps, ((1, 2),)), model(images[:1], timesteps[:1], ((1, 1),))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_large_maps_have_no_attention_over_views_but_the_middle_has() -> None:
    model, (images, timesteps) = tiny(), views(2)
    called = []
    for place in ("encoder", "mid", "decoder"):
        for level, block in enumerate(getattr(model, f"cross_attn_blocks_{place}")):
            block.register_forward_hook(lambda *_, name=f"{place}_{level}": called.append(name))
    with torch.no_grad():
        model.config = replace(TINY, multiview_max_side=4)
        model(images, timesteps, ((1, 2),))
        assert called == ["encoder_1", "encoder_2", "mid_0", "decoder_0", "decoder_1"]
        called.clear()
        model.config = replace(TINY, multiview_max_side=1)
        model(images, timesteps, ((1, 2),))
    assert called == ["mid_0"]


@pytest.mark.parametrize("size", [(12, 8), (7, 9), (5, 16)])
def test_sides_need_not_halve_evenly(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 5, *size, generator=generator)
    with torch.no_grad():
        assert tiny()(images, torch.zeros(2, dtype=torch.int64), ((1, 2),)).shape == (2, 4, *size)


def test_no_text_means_only_the_bias_of_the_attention_to_it_counts() -> None:
    model, (images, timesteps) = tiny(), views(2)
    text = model.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    with torch.no_grad():
        before = model(images, timesteps, ((1, 2),))
        for part in (text.to_q, text.to_k, text.to_v):
            part.weight.normal_()
        text.to_out[0].weight.normal_()
        assert torch.equal(model(images, timesteps, ((1, 2),)), before)
        text.to_out[0].bias.add_(1)
        assert not torch.allclose(model(images, timesteps, ((1, 2),)), before)


def test_noise_levels_are_per_view() -> None:
    model, (images, timesteps) = tiny(), views(2)
    with torch.no_grad():
        changed = timesteps + torch.tensor([0, 50])
        assert not torch.allclose(model(images, timesteps, ((1, 2),)), model(images, changed, ((1, 2),)))


def test_the_tiny_model_has_a_few_million_parameters() -> None:
    with torch.device("meta"):
        model = MultiViewDiffusion(tiny_multi_view_diffusion())
    assert 2e6 < sum(parameter.numel() for parameter in model.parameters()) < 8e6


def test_a_batch_that_does_not_divide_as_stated_is_refused() -> None:
    images, timesteps = views(3)
    with pytest.raises(ShapeMismatch, match=r"views to denoise must have shape \[4, channels, h, w\]"):
        tiny()(images, timesteps, ((2, 2),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": ()}, "at least one level"),
        ({"attention_heads": (1, 2)}, "attention_heads has 2 entries for 3 levels"),
        ({"block_out_channels": (16, 32, 36)}, r"channels \[36\] must be multiples"),
        ({"multiview": "epipolar"}, "no attention over views 'epipolar'"),
        ({"multiview_places": ("top",)}, "encoder, mid and decoder"),
    ],
)
def test_contradictory_configs_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **changes)
