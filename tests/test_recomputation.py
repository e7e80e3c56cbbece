"""Lighter or compiled training: the same gradients from fewer results or fused kernels; bfloat16 beside float32."""

from __future__ import annotations

import pytest
import torch
from losses.test_objective import tiny_batch, tiny_network
from torch import Tensor

from lsplat_ns.acceleration import check_compiler, exact, prepare_training
from lsplat_ns.errors import ConfigError
from lsplat_ns.latentsplat import FastParts, LatentSplat
from lsplat_ns.losses import AdversarialConfig, LossSchedule, LossTerm
from lsplat_ns.losses.objective import step_losses
from lsplat_ns.rendering.splatting import SplattingParts
from lsplat_ns.scene import Rendering

SCHEDULE = LossSchedule(
    render_image=(LossTerm("mse", 10.0),),
    combined=(LossTerm("l1"),),
    adversarial=AdversarialConfig(starts_at_step=0),
)


class KeptBytes:
    """Counts what autograd keeps for the backward pass, storages once and weights not at all."""

    def __init__(self, network: LatentSplat) -> None:
        self._weights = {parameter.data_ptr() for parameter in network.parameters()}
        self._storages: dict[int, tuple[Tensor, int]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._storages[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(size for _, size in self._storages.values())


def trained(
    dtype: torch.dtype | None = None, low_memory: bool = False, compiled: bool = False
) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients and kept bytes of one full step."""
    network = tiny_network()
    prepare_training(network, dtype, low_memory, compiled)
    kept = KeptBytes(network)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        result = step_losses(network, tiny_batch(), SCHEDULE, 0, generator=torch.Generator().manual_seed(0))
    loss = sum(result.losses.values())
    loss.backward()
    return float(loss), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}, kept.total


def test_low_memory_keeps_less_and_gives_the_same_gradients():
    loss, gradients, kept = trained()
    light_loss, light, light_kept = trained(low_memory=True)
    assert light_kept < 0.7 * kept, (light_kept, kept)  # splatting, which keeps what it kept, is large in a tiny model
    assert light_loss == pytest.approx(loss, rel=1e-6)
    assert light.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(light[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=lambda t, n=name: n + t)


def test_the_decoder_keeps_an_images_worth_of_features_only():
    network = tiny_network()
    color, latent = torch.rand(1, 3, 3, 32, 32), torch.rand(1, 3, 4, 32, 32, requires_grad=True)
    totals = []
    for low_memory in (False, True):
        prepare_training(network, None, low_memory)
        kept = KeptBytes(network)
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            network.decode_maps(color, latent)
        totals.append(kept.total)
    assert totals[1] < 0.1 * totals[0], totals


def test_bfloat16_points_the_same_way():
    loss, gradients, _ = trained()
    light_loss, light, _ = trained(torch.bfloat16)
    assert light_loss == pytest.approx(loss, rel=0.02)
    assert all(gradient.dtype == torch.float32 for gradient in light.values())
    for part in ("encoder", "autoencoder", "discriminator"):
        names = [name for name in gradients if name.startswith(part)]
        ours, theirs = (torch.cat([g[name].flatten() for name in names]) for g in (light, gradients))
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.98, part


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses_and_gradients():
    loss, gradients, _ = trained()
    compiled_loss, compiled, _ = trained(compiled=True)
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    assert compiled.keys() == gradients.keys()
    assert {name.split(".")[0] for name in gradients} == {"encoder", "autoencoder", "discriminator"}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert float((compiled[name] - gradient).abs().max()) < 1e-4 * largest, name


def test_stand_ins_of_compiled_training_are_for_gradients_alone_and_go_with_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lsplat_ns.acceleration.shutil.which", lambda name: name)

    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("used")

    network, batch = tiny_network(), tiny_batch()
    keys = list(network.state_dict())
    prepare_training(network, None, low_memory=False, compiled=True)
    assert network.fast_in_training.encoder is not None and network.autoencoder.features_in_training is not None
    assert list(network.state_dict()) == keys
    network.fast_in_training = FastParts(encoder=unwanted, splatting=SplattingParts(unwanted))
    network.autoencoder.features_in_training = unwanted

    with torch.no_grad():  # as everything that shows or evaluates
        gaussians = network.encode(batch.context, deterministic=True).mode()
        seen = network.view(gaussians, batch.target.cameras, batch.target.size, deterministic=True)
    for part in (
        lambda: network.encode(batch.context, deterministic=True),
        lambda: network.render(gaussians, batch.target.cameras, batch.target.size),
        lambda: network.decode(seen.rendering, seen.latent),
    ):
        with pytest.raises(AssertionError, match="used"):
            part()

    prepare_training(network, None, low_memory=False, compiled=False)
    assert network.fast_in_training is None and network.autoencoder.features_in_training is None
    again = network.view(gaussians, batch.target.cameras, batch.target.size, deterministic=True)
    torch.testing.assert_close(again.image, seen.image)


def test_compiled_training_is_refused_in_one_line_with_low_memory_and_where_nothing_compiles(
    monkeypatch: pytest.MonkeyPatch,
):
    def refused(match: str, low_memory: bool = False) -> None:
        network = tiny_network()
        with pytest.raises(ConfigError, match=match) as caught:
            prepare_training(network, None, low_memory, compiled=True)
        assert "\n" not in str(caught.value) and "--pipeline.model.compiled-training" in str(caught.value)
        assert network.fast_in_training is None and network.autoencoder.features_in_training is None

    refused("low-memory", low_memory=True)
    monkeypatch.setattr("lsplat_ns.acceleration.shutil.which", lambda name: None)
    refused("none is on the PATH")
    monkeypatch.setattr("lsplat_ns.acceleration.shutil.which", lambda name: name if name in ("cc", "g++") else None)
    monkeypatch.setattr("lsplat_ns.acceleration.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install triton"):
        check_compiler("cuda", low_memory=False)
    check_compiler("cpu", low_memory=False)  # where triton is not needed


def test_exact_undoes_the_precision_of_training():
    network = tiny_network()
    prepare_training(network, torch.bfloat16, low_memory=False)
    exact(network)
    assert network.decoder_dtype is None and network.encoder.network_dtype is None


def test_a_decoder_in_bfloat16_is_that_of_autocast_with_gradients_for_float32_weights():
    network = tiny_network()
    for parameter in network.autoencoder.skip_convs.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    color, latent = torch.rand(1, 2, 3, 32, 32), torch.rand(1, 2, 4, 32, 32)
    exactly, gradients = network.decode_maps(color, latent), {}
    weights = dict(network.autoencoder.named_parameters())
    for name in ("float32", "functional", "autocast"):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
            decode = network.autoencoder.decoding_in(torch.bfloat16) if name == "functional" else None
            image = network.decode_maps(color, latent, decode).float()
        assert (image - exactly).square().mean().sqrt() < 0.03 * exactly.std()
        image.square().sum().backward()
        gradients[name] = {key: weight.grad.clone() for key, weight in weights.items() if weight.grad is not None}
    assert gradients["functional"].keys() == gradients["float32"].keys()
    flat = {name: torch.cat([g.flatten() for g in found.values()]) for name, found in gradients.items()}
    assert all(gradient.dtype == torch.float32 for gradient in flat.values())
    for name in ("functional", "autocast"):
        assert torch.nn.functional.cosine_similarity(flat[name], flat["float32"], dim=0) > 0.999, name


def test_recomputation_never_meets_cast_weights():
    network = tiny_network()
    prepare_training(network, torch.bfloat16, low_memory=True)
    latent = torch.rand(1, 1, 4, 32, 32, requires_grad=True)
    network.autoencoder.decoding_in = None  # would fail if it were called
    network.decode(_rendering_of(latent), latent).sum().backward()
    assert latent.grad is not None and network.autoencoder.last_layer.grad.dtype == torch.float32


def _rendering_of(latent: Tensor) -> Rendering:
    maps = latent.detach()[:, :, :3]
    return Rendering(alpha=maps[:, :, 0], depth_z=maps[:, :, 0], color=maps, features=latent)
