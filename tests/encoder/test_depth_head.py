"""Drawing depths, and the opacity of a probability."""

import pytest
import torch
from parity import recording

from lsplat_ns.encoder.depth_head import DepthDistribution, DepthHeadConfig, opacity_from_probability
from lsplat_ns.encoder.epipolar_transformer import FourierEncoding, other_views
from lsplat_ns.errors import ConfigError, ShapeMismatch


def distribution(pdf: torch.Tensor, use_transmittance: bool = False) -> DepthDistribution:
    return DepthDistribution(pdf, torch.full_like(pdf, 0.25), use_transmittance)


def test_draws_match_the_recording():
    case = recording("ls_conversions")
    depths = distribution(case.input("pdf"))
    draw = depths.sample(5, noise=case.input("uniform"))
    case.assert_close("sample/index", draw.bucket, 0)
    case.assert_close("sample/density", draw.probability, 1e-6)
    mode = depths.mode()
    assert (mode.bucket[..., 0].numpy() == case.outputs["topk/index"][..., 0]).all()
    assert torch.allclose(mode.probability[..., 0], torch.from_numpy(case.outputs["topk/density"][..., 0]))


def test_opacity_mapping_matches_the_recording():
    case = recording("ls_conversions")
    for name in case.outputs:
        if not name.startswith("opacity_mapping"):
            continue
        _, initial, final, warm_up, step = name.split("/")
        config = DepthHeadConfig(
            opacity_exponent_initial=float(initial),
            opacity_exponent_final=float(final),
            opacity_warm_up_steps=int(warm_up),
        )
        exponent = config.opacity_exponent(int(step.removeprefix("step")))
        case.assert_close(name, opacity_from_probability(case.input("opacity_pdf"), exponent), 1e-6)


@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.0), (1.5, 1.5), (0.0, 3.0), (2.0, -1.0)])
def test_the_step_of_an_opacity_mapping_has_its_exponent_and_is_always_0_where_that_is_constant(
    initial: float, final: float
):
    config = DepthHeadConfig(opacity_exponent_initial=initial, opacity_exponent_final=final, opacity_warm_up_steps=10)
    taken = {step: config.settled_step(step) for step in (0, 1, 9, 10, 11, 10_000)}
    assert list(taken.values()) == ([0] * 6 if initial == final else [None, None, None, 10, 10, 10])
    assert all(
        config.opacity_exponent(s) == config.opacity_exponent(step) for step, s in taken.items() if s is not None
    )


def test_opacity_gradients_are_finite_at_zero_and_one():
    for exponent in (0.5, 1.0, 4.0):
        probability = torch.tensor([0.0, 0.3, 1.0, 1.0000001], requires_grad=True)
        opacity_from_probability(probability, exponent).sum().backward()
        assert probability.grad.isfinite().all()


def test_draws_follow_the_distribution():
    pdf = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(4000, 4)
    draw = distribution(pdf).sample(3, torch.Generator().manual_seed(0))
    share = draw.bucket.flatten().bincount(minlength=4) / draw.bucket.numel()
    assert torch.allclose(share, pdf[0], atol=0.02)
    assert torch.allclose(draw.relative_disparity, (draw.bucket + 0.25) / 4)


def test_noise_of_one_falls_into_the_last_bucket():
    draw = distribution(torch.tensor([[0.5, 0.5]])).sample(1, noise=torch.tensor([[1.0]]))
    assert draw.bucket.tolist() == [[1]]


def test_transmittance_is_the_chance_of_a_bucket_after_missing_the_nearer_ones():
    pdf = torch.tensor([[0.5, 0.25, 0.25]])
    draw = distribution(pdf, use_transmittance=True).sample(3, noise=torch.tensor([[0.1, 0.6, 0.9]]))
    assert torch.allclose(draw.probability, torch.tensor([[0.5, 0.5, 1.0]]))


def test_probability_is_differentiable_to_the_distribution_and_depth_to_the_offset():
    pdf, offset = torch.tensor([[0.2, 0.8]]).requires_grad_(), torch.tensor([[0.5, 0.5]]).requires_grad_()
    draw = DepthDistribution(pdf, offset).mode()
    (draw.probability + draw.relative_disparity).sum().backward()
    assert pdf.grad.abs().sum() > 0
    assert offset.grad.tolist() == [[0.0, 0.5]]


def test_fourier_encoding_matches_the_recording():
    case = recording("ls_conversions")
    case.assert_close("positional_encoding_10", FourierEncoding(10)(case.input("pe_in")), 1e-5)


@pytest.mark.parametrize("views", [2, 3, 5])
def test_other_views_match_the_recording(views: int):
    case = recording("ls_conversions")
    case.assert_close(f"heterogeneous_index/{views}/other", other_views(views, torch.device("cpu")), 0)


def test_noise_of_the_wrong_shape_and_empty_ranges_raise_one_line():
    with pytest.raises(ShapeMismatch, match="depth_noise"):
        distribution(torch.ones(2, 4)).sample(3, noise=torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="at least 1"):
        DepthHeadConfig(num_depth_buckets=0)
