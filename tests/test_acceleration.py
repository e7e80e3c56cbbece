"""Faster inference changes nothing that one can see, and does nothing where there is no GPU."""

from __future__ import annotations

import sys

import pytest
import torch

from lsplat_ns import acceleration
from lsplat_ns.acceleration import FastDecoder, accelerate, exact
from lsplat_ns.cuda_graphs import uninterrupted
from lsplat_ns.evaluation.metrics import psnr
from lsplat_ns.geometry.rays import bounds_from_baseline
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.plugin.recipes import tiny_networks
from lsplat_ns.rendering.splatting import gsplat_status
from lsplat_ns.scene import Cameras, VariationalGaussians, Views

SIZE = (64, 64)


def network(device: str = "cpu") -> LatentSplat:
    torch.manual_seed(0)
    return LatentSplat(tiny_networks(), discriminator=False).to(device).eval()


def cameras(*offsets: float) -> Cameras:
    """Cameras [1, t] beside each other, looking ahead."""
    poses = torch.eye(4).repeat(1, len(offsets), 1, 1)
    poses[0, :, 0, 3] = torch.tensor(offsets)
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).repeat(1, len(offsets), 1, 1)
    beside = Cameras(poses, intrinsics, torch.ones(1, len(offsets)), torch.ones(1, len(offsets)))
    near, far = bounds_from_baseline(cameras(0, 1) if len(offsets) != 2 else beside, SIZE)
    return beside.with_bounds(near[:, None], far[:, None])


def context() -> Views:
    image = torch.rand(1, 2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return Views(image, cameras(0.0, 1.0), torch.tensor([[0, 1]]))


@torch.no_grad()
def encoded(model: LatentSplat, device: str) -> VariationalGaussians:
    return model.encode(context().to(device), deterministic=True)


@torch.no_grad()
def seen(model: LatentSplat, scene: VariationalGaussians, *offsets: float) -> torch.Tensor:
    return model.view(scene.mode(), cameras(*offsets).to(scene.means.device), SIZE, deterministic=True).image


def test_on_a_cpu_nothing_changes():
    model = network()
    before = encoded(model, "cpu")
    accelerate(model, compiled=True)
    assert model.fast is None and model.encoder.network_dtype is None
    after = encoded(model, "cpu")
    assert torch.equal(before.means, after.means) and torch.equal(before.features.mean, after.features.mean)


def test_a_decoder_keeps_few_graphs_the_latest_ones(monkeypatch: pytest.MonkeyPatch):
    captured = []

    class Captured:
        def __init__(self, function, inputs):
            captured.append(inputs[1].shape[-1])

        def __call__(self, inputs):
            return inputs[1][:, :, :3]

    monkeypatch.setattr(acceleration, "CapturedCall", Captured)
    decoder = FastDecoder(network(), compiled=False)
    first, *others = range(4, 4 + acceleration.MOST_DECODED_SHAPES)
    for width in (first, *others, first, 100, first, others[0]):  # the last was the longest unused when 100 came
        decoder(None, torch.zeros(1, 1, 4, 8, width))
        assert len(decoder._calls) <= acceleration.MOST_DECODED_SHAPES
    assert captured == [first, *others, 100, others[0]]


def test_a_viewer_does_not_interrupt_a_capture():
    def interrupt(frame, event, argument):
        if event == "line" and frame.f_code is work.__code__:
            raise InterruptedError
        return interrupt

    def work():
        return "done"

    before = sys.gettrace()
    sys.settrace(interrupt)  # as nerfstudio's viewer does
    try:
        with uninterrupted():
            assert work() == "done"
        with pytest.raises(InterruptedError):
            work()
    finally:
        sys.settrace(before)


@pytest.fixture
def _gsplat() -> None:
    problem = gsplat_status()
    if problem is not None:
        pytest.skip(problem)


@pytest.mark.gpu
@pytest.mark.usefixtures("_gsplat")
@pytest.mark.parametrize("compiled", [False, True])
def test_accelerated_views_stay_45_db_from_float32_and_exact_restores_it(compiled):
    model = network("cuda")
    scene = encoded(model, "cuda")
    one, three = seen(model, scene, 0.4), seen(model, scene, 0.2, 0.5, 0.8)
    accelerate(model, compiled)
    fast = encoded(model, "cuda")
    for offsets, wanted in (((0.4,), one), ((0.2, 0.5, 0.8), three), ((0.4,), one)):
        assert psnr(seen(model, fast, *offsets), wanted).min() >= 45
    exact(model)
    assert torch.equal(encoded(model, "cuda").means, scene.means)


@pytest.mark.gpu
@pytest.mark.usefixtures("_gsplat")
def test_a_moving_camera_compiles_nothing_again():
    model = network("cuda")
    accelerate(model, compiled=True)
    scene = encoded(model, "cuda")
    seen(model, scene, 0.4)
    torch._dynamo.utils.counters.clear()
    for offset in (0.1, 0.5, 0.9, 3.0):
        seen(model, scene, offset)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


@pytest.mark.gpu
def test_a_decoder_that_overflows_float16_goes_on_in_float32():
    model = network("cuda")
    color, latent = torch.rand(1, 1, 3, *SIZE, device="cuda"), torch.rand(1, 1, 4, *SIZE, device="cuda")
    with torch.no_grad():
        model.autoencoder.model.decoder.conv_in.weight.mul_(1e6)
        wanted = model.decode_maps(color, latent)
    decoder = FastDecoder(model, compiled=False)
    assert torch.equal(decoder(color, latent), wanted) and decoder.overflowed
