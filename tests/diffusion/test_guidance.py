"""Claims about what the denoiser is told, and about guidance."""

import pytest
import torch
from mvldm_recordings import SAMPLERS, loaded_model, run_sampler
from torch import Tensor

from lsplat_ns.diffusion.guidance import Conditioning, denoiser_input, predict_guided_noise, predict_noise
from lsplat_ns.diffusion.multiview_unet import MultiViewUNet, MultiViewUNetConfig
from lsplat_ns.errors import ShapeMismatch


class Recorder:
    """Stands for a denoiser: answers with the mean latent of its images, plus one per view of the sample."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, tuple]] = []

    def __call__(self, images: Tensor, timesteps: Tensor, sequences: tuple, repeated=None) -> Tensor:
        if repeated is not None:
            images, timesteps = repeated(images), repeated(timesteps)
        self.calls.append((images, timesteps, sequences))
        counts = torch.cat([torch.full((samples * views,), float(views)) for samples, views in sequences])
        return images[:, :4] + counts.view(-1, 1, 1, 1)


def conditioning(samples: int = 2, context: int = 1, targets: int = 3) -> Conditioning:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(samples, context, 4, 2, 2, generator=generator)
    return Conditioning(latents, torch.randn(samples, context + targets, 6, 2, 2, generator=generator))


NOISY = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
LEVELS = torch.tensor([500, 20])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_whole_run_with_and_without_guidance_equals_the_recorded_original(name: str) -> None:
    case, model = loaded_model(name)
    outputs = run_sampler(case, model)
    assert {f"x_t/{i}" for i in range(5)} < set(outputs)
    for key, value in outputs.items():
        case.assert_close(key, value, 1e-4)


def test_channels_are_latents_mask_and_rays_and_context_comes_first() -> None:
    told = conditioning()
    inputs = denoiser_input(NOISY, told)
    assert inputs.shape == (2, 4, 11, 2, 2)
    assert torch.equal(inputs[:, 0, :4], told.context_latents[:, 0]) and torch.equal(inputs[:, 1:, :4], NOISY)
    assert (inputs[:, 0, 4] == 0).all() and (inputs[:, 1:, 4] == 1).all()
    assert torch.equal(inputs[:, :, 5:], told.ray_maps)


def test_context_views_have_noise_level_zero_and_targets_that_of_their_sample() -> None:
    denoiser = Recorder()
    predict_noise(denoiser, NOISY, LEVELS, conditioning(context=2, targets=3))
    assert denoiser.calls[0][1].view(2, 5).tolist() == [[0, 0, 500, 500, 500], [0, 0, 20, 20, 20]]


def test_guidance_moves_away_from_the_prediction_without_context_in_one_batch() -> None:
    denoiser, told = Recorder(), conditioning()
    guided = predict_guided_noise(denoiser, NOISY, LEVELS, told, 3.0)
    assert len(denoiser.calls) == 1
    images, timesteps, sequences = denoiser.calls[0]
    assert sequences == ((2, 4), (2, 3))
    without = images[8:].unflatten(0, (2, 3))
    assert torch.equal(without[:, :, 5:], told.ray_maps[:, 1:])  # the same rays, relative to the absent context
    assert timesteps[8:].tolist() == [500] * 3 + [20] * 3
    torch.testing.assert_close(guided, NOISY + 3 + 3.0 * (4 - 3))


def test_a_guidance_of_one_is_the_plain_prediction_at_half_the_work() -> None:
    denoiser, told = Recorder(), conditioning()
    assert torch.equal(
        predict_guided_noise(denoiser, NOISY, LEVELS, told, 1.0), predict_noise(Recorder(), NOISY, LEVELS, told)
    )
    assert denoiser.calls[0][2] == ((2, 4),)


def test_both_passes_in_one_batch_give_what_two_batches_give() -> None:
    _, model = loaded_model("mv_sample_small")
    generator = torch.Generator().manual_seed(0)
    told = Conditioning(
        torch.randn(1, 2, 4, 8, 8, generator=generator), torch.randn(1, 4, 6, 8, 8, generator=generator)
    )
    noisy, level = torch.randn(1, 2, 4, 8, 8, generator=generator), torch.tensor([300])
    with torch.no_grad():
        guided = predict_guided_noise(model.denoiser, noisy, level, told, 3.0)
        with_context, without = (
            predict_noise(model.denoiser, noisy, level, each) for each in (told, told.without_context())
        )
    torch.testing.assert_close(guided, without + 3 * (with_context - without), rtol=1e-4, atol=2e-5)


def test_a_guided_prediction_is_one_graph_without_anything_that_waits_for_numbers() -> None:
    torch.manual_seed(0)
    config = MultiViewUNetConfig((32, 64), 1, (True, False), attention_heads=(1, 1), text_channels=(8, 8))
    denoiser, told = MultiViewUNet(config, 11, 4).eval(), conditioning()

    def predict(noisy: Tensor, levels: Tensor) -> Tensor:
        return predict_guided_noise(denoiser, noisy, levels, told, 3.0)

    with torch.no_grad():
        whole = torch.compile(predict, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(NOISY, LEVELS), predict(NOISY, LEVELS))


def test_ray_maps_of_another_size_or_without_targets_are_refused() -> None:
    latents = torch.zeros(1, 2, 4, 8, 8)
    for shape in ((1, 3, 6, 8, 4), (1, 2, 6, 8, 8), (2, 3, 6, 8, 8)):
        with pytest.raises(ShapeMismatch, match="ray maps"):
            Conditioning(latents, torch.zeros(shape))
