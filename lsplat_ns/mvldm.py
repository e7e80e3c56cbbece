"""MV-LDM (arXiv 2501.06336, section 4) on one page: a few views in, many out.

     context Views [b, v]                        target Cameras [b, t]
            |                                            |
         encode              poses relative to the reference view; rays per latent pixel
            |                                            |
     clean latents       noise [b, t]              ray maps [b, v + t]
             \\              |                            /
             +------ the denoiser predicts the noise ---+      <- again and again, by a solver; guidance compares
                            |                                     with the prediction without context
                     clean latents [b, t]
                            |
                          decode
                            |
                         images [b, t]

Plain PyTorch: no nerfstudio, no logging, no optimizers. Read ``scene.py`` first. Longer sequences are generated group
by group: ``diffusion/view_plan.py`` and ``diffusion/sampler.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor, nn

from lsplat_ns.autoencoder import AutoencoderConfig, KLAutoencoder
from lsplat_ns.diffusion.guidance import Conditioning, predict_guided_noise
from lsplat_ns.diffusion.multiview_unet import MultiViewUNet, MultiViewUNetConfig
from lsplat_ns.diffusion.objective import TrainingDraw, denoising_loss
from lsplat_ns.diffusion.ray_maps import RayMapConfig, ray_maps, relative_to
from lsplat_ns.diffusion.sampler import GroupNoise, SamplingConfig
from lsplat_ns.diffusion.schedule import Prediction, solve
from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.scene import Cameras, SceneBatch, Views

DECODED_AT_ONCE = 4
"""Images of 256x256, or as many pixels, per call of the decoder: activations need far more memory than its result."""
ENCODED_AT_ONCE = 8
"""The same of the encoder."""


@dataclass(frozen=True)
class MultiViewDiffusionConfig:
    """The networks. Defaults are the published model."""

    denoiser: MultiViewUNetConfig = field(default_factory=MultiViewUNetConfig)
    """From noisy latents of all views to their noise, or velocity."""
    rays: RayMapConfig = field(default_factory=RayMapConfig)
    """What the denoiser sees of the cameras."""
    autoencoder: AutoencoderConfig = field(default_factory=lambda: AutoencoderConfig(skip_connections=False))
    """Between images and latents; stays as it is in training. The published one is Stable Diffusion 2.1's."""
    latent_scale: float = 0.18215
    """Factor that brings the autoencoder's latents to about unit variance."""
    prediction: Prediction = "noise"
    """What the denoiser predicts: the noise, as published, or the velocity, from which training from scratch learns to
    use the context much sooner."""

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ConfigError(f"a denoiser predicts {' or '.join(get_args(Prediction))}, not {self.prediction!r}")
        if self.autoencoder.kind != "kl" or self.autoencoder.skip_connections:
            raise ConfigError("MV-LDM's autoencoder is of kind kl and has no skip-connections")
        if self.latent_scale <= 0:
            raise ConfigError(f"latent_scale must be positive, not {self.latent_scale}")


def tiny_multi_view_diffusion() -> MultiViewDiffusionConfig:
    """A small model of the same code, to be trained from scratch at 64 to 128 pixels; 7.9 million parameters."""
    return MultiViewDiffusionConfig(
        denoiser=MultiViewUNetConfig(
            block_out_channels=(96, 128, 128),
            layers_per_block=1,
            image_attention=(False, False, False),
            mid_attention=False,
            attention_heads=(1, 2, 2),
            text_channels=(8, 8, 8),
            multiview_heads=4,
        ),
        # Raw rays tell nearby pixels and cameras apart by small differences only; a small network learns that late.
        rays=RayMapConfig(encoding="srt", origin_octaves=6, direction_octaves=6),
        autoencoder=AutoencoderConfig(
            block_out_channels=(32, 64, 64), layers_per_block=1, norm_groups=16, skip_connections=False
        ),
        latent_scale=1.0,
        prediction="velocity",
    )


def _of_size(count: int, pixels: int) -> int:
    """How many images of so many pixels take the place of ``count`` images of 256x256."""
    return max(1, count * 256 * 256 // pixels)


def _all_finite(tensors: list[Tensor]) -> bool:
    """Whether no number overflowed; waits for the GPU once."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


class _Pacing:
    """Keeps the host one step ahead of a GPU and no more.

    Then the GPU never waits for the host, and progress and cancellation are those of the step that runs. Left alone,
    the host would queue dozens of steps at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._before: torch.cuda.Event | None = None
        self._waits = device.type == "cuda"

    def step(self) -> None:
        """Call when a step is queued: waits for the one before it."""
        if self._waits:
            before, self._before = self._before, torch.cuda.Event(blocking=True)
            self._before.record()
            if before is not None:
                before.synchronize()


class MultiViewDiffusion(nn.Module):
    """Autoencoder and denoiser. The denoiser's state-dict keys are those of the published checkpoint.

    Args:
        config: Sizes of the networks.
    """

    def __init__(self, config: MultiViewDiffusionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MultiViewDiffusionConfig()
        channels = config.autoencoder.latent_channels
        self.denoiser = MultiViewUNet(config.denoiser, channels + 1 + config.rays.channels, channels)
        self.autoencoder = KLAutoencoder(config.autoencoder)
        self.fast_denoiser: Callable[[Tensor, Tensor, Conditioning, float], Tensor] | None = None
        """Stand-in for the guided denoiser; see ``lsplat_ns.mvldm_acceleration``."""
        self.denoiser_in_training: Callable[..., Tensor] | None = None
        """Stand-in for the denoiser in :meth:`training_loss`."""
        self.autoencoder_dtype: torch.dtype | None = None
        """Type that the autoencoder runs in (by autocast). None: float32; also from the first overflow on."""
        self.autoencoder_waits_on_cpu = False
        """Whether the autoencoder stays in main memory but while it is used; see :meth:`offload_autoencoder`."""

    @property
    def size_multiple(self) -> int:
        """Image sides must be multiples of this."""
        return self.config.autoencoder.downscale

    def latent_shape(self, image_size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a (height, width) image.

        Raises:
            ShapeMismatch: A side of the image is not a multiple of :attr:`size_multiple`.
        """
        multiple = self.size_multiple
        if any(side < multiple or side % multiple for side in image_size):
            raise ShapeMismatch("image to encode", f"[3, height and width multiples of {multiple}]", (3, *image_size))
        return (self.config.autoencoder.latent_channels, *(side // multiple for side in image_size))

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents [b, v, c, h, w] of images [b, v, 3, height, width] in [0, 1].

        Args:
            image: The images.
            noise: Standard normal [b, v, c, h, w]. The published model always draws latents from their distribution;
                None takes the most likely ones.
        """
        flat = image.flatten(0, 1)
        at_once = _of_size(ENCODED_AT_ONCE, image.shape[-2] * image.shape[-1])
        moments = [torch.cat(parts) for parts in zip(*self._in_parts(self._moments, flat, at_once), strict=True)]
        distribution = DiagonalGaussian(*(moment.unflatten(0, image.shape[:2]) for moment in moments))
        latents = distribution.mode() if noise is None else distribution.sample(noise=noise)
        return self.config.latent_scale * latents

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        distribution = self.autoencoder.encode(images)
        return distribution.mean.float(), distribution.logvar.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Images [b, t, 3, height, width] in [0, 1] of latents [b, t, c, h, w]."""
        flat = (latents / self.config.latent_scale).flatten(0, 1)
        pixels = latents.shape[-2] * latents.shape[-1] * self.config.autoencoder.downscale**2
        at_once = _of_size(DECODED_AT_ONCE, pixels)
        images = torch.cat([image for (image,) in self._in_parts(self._decoded, flat, at_once)])
        return images.clamp(0, 1).unflatten(0, latents.shape[:2])

    def _decoded(self, latents: Tensor) -> tuple[Tensor]:
        return (self.autoencoder.decode(latents).float(),)

    def _in_parts(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], tensor: Tensor, at_once: int
    ) -> list[tuple[Tensor, ...]]:
        """Results of a function of the autoencoder for parts of a batch."""
        with self._autoencoder_on(tensor.device):
            parts = tensor.split(1 if self.autoencoder_waits_on_cpu else at_once)
            with self._autocast(tensor.device):
                results = [function(part) for part in parts]
            if self.autoencoder_dtype is None or _all_finite([each for result in results for each in result]):
                return results
            self.autoencoder_dtype = None  # float16 ends at 65504
            with self._autocast(tensor.device):
                return [function(part) for part in parts]

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Also where training has switched it on for the denoiser, the type here is the autoencoder's own.

        Without torch's cache of cast weights: contexts share it whatever their types, so that weights already cast for
        the one around would meet images of this one.
        """
        dtype = self.autoencoder_dtype
        return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)

    @contextmanager
    def _autoencoder_on(self, device: torch.device) -> Iterator[None]:
        if not self.autoencoder_waits_on_cpu:
            yield
            return
        self.autoencoder.to(device)
        try:
            yield
        finally:
            self.autoencoder.to("cpu")

    def offload_autoencoder(self) -> None:
        """From now on keep the autoencoder in main memory but while it is used, and give it one image at a time."""
        self.autoencoder_waits_on_cpu = True
        self.autoencoder.to("cpu")

    def training_loss(self, batch: SceneBatch, draw: TrainingDraw) -> Tensor:
        """The loss of a training step, a float32 scalar. Differentiable to the denoiser alone.

        Args:
            batch: Context and target views.
            draw: The random choices (:func:`lsplat_ns.diffusion.objective.draw_training_step`); moved to the device of
                the batch.
        """
        views = batch.context.concat(batch.target).select(list(draw.views))
        device = views.image.device
        moved = ("timesteps", "encoding_noise", "target_noise")
        draw = replace(draw, **{name: getattr(draw, name).to(device) for name in moved})
        with torch.no_grad():
            latents = self.encode(views.image, draw.encoding_noise)
        compiled = self.denoiser_in_training
        # Steps without context are few and have fewer views, which would have to be compiled on their own.
        plain = compiled is None or draw.drop_context or not torch.is_grad_enabled()
        denoiser = self.denoiser if plain else compiled
        return denoising_loss(denoiser, latents, views.cameras, draw, self.config.rays, self.config.prediction)

    @torch.no_grad()
    def sample(
        self,
        context: Views,
        targets: Cameras,
        noise: GroupNoise,
        config: SamplingConfig,
        *,
        reference: int = 0,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Generate the images of target cameras, all together. [b, t, 3, height, width] in [0, 1].

        Args:
            context: Known views [b, v].
            targets: [b, t], in the frame and scale of the context's cameras.
            noise: All random numbers of the generation.
            config: Solver, guidance.
            reference: Context view in whose frame the network sees the cameras.
            on_step: Called with the number of steps done, before the first and after each; what it raises ends the
                generation.

        Raises:
            ShapeMismatch: If the image size, or the noise, does not fit.
        """
        notify = on_step or (lambda _: None)
        notify(0)
        latents = noise.targets.to(context.image.device)
        conditioning = self.conditioning(context, targets, noise, reference)

        def predict(noisy: Tensor, level: Tensor) -> Tensor:
            levels = level.expand(noisy.shape[0])
            if self.fast_denoiser is not None:
                return self.fast_denoiser(noisy, levels, conditioning, config.guidance)
            return predict_guided_noise(self.denoiser, noisy, levels, conditioning, config.guidance)

        pacing = _Pacing(latents.device)
        for done, stepped in enumerate(solve(predict, latents, config.solver, self.config.prediction), start=1):
            latents = stepped
            pacing.step()
            notify(done)
        return self.decode(latents)

    def conditioning(self, context: Views, targets: Cameras, noise: GroupNoise, reference: int) -> Conditioning:
        """What the denoiser is told: the context's latents, drawn with the noise, and the rays of all views."""
        shape = self.latent_shape(context.size)
        for name, cameras in (("context", context.cameras), ("targets", targets)):
            expected = (*cameras.near.shape, *shape)
            if getattr(noise, name).shape != expected:
                raise ShapeMismatch(f"noise of the {name}", str(list(expected)), getattr(noise, name).shape)
        latents = self.encode(context.image, noise.context.to(context.image.device))
        cameras = relative_to(context.cameras.concat(targets), reference)
        return Conditioning(latents, ray_maps(cameras, shape[1:], self.config.rays))
