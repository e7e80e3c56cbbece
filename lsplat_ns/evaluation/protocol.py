"""Scoring a network on the entries of an evaluation index.

Source: spec section 8.1. One entry is one encoding of two context views and the rendering of all its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lsplat_ns.evaluation.metrics import psnr, ssim
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.scene import SceneBatch, VariationalGaussians

VIEWS_PER_CHUNK = 8
"""Targets that are splatted and decoded together; bounds memory, changes no number."""


@dataclass(frozen=True)
class EntryScore:
    """Metrics of one entry, one number per target view."""

    scene: str
    context: tuple[int, ...]
    target: tuple[int, ...]
    metrics: dict[str, Tensor]  # name -> [t]
    images: Tensor  # [t, 3, height, width], the decoded views in [0, 1]


@torch.no_grad()
def score_entry(
    network: LatentSplat,
    example: SceneBatch,
    *,
    seed: int = 0,
    deterministic: bool = False,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    encode: Callable[[torch.Generator], VariationalGaussians] | None = None,
) -> EntryScore:
    """Predict an example's targets and compare them with the truth.

    # Differs from upstream: the random numbers are seeded per entry, so that a score does not depend on the order.

    Args:
        network: In eval mode.
        example: A batch of one.
        seed: Seed of the entry's draws.
        deterministic: Take modes instead of samples everywhere.
        lpips: Per-image distance of (prediction, target) [t, 3, h, w]; left out when None.
        encode: Predicts the scene instead of the network itself, as for scenes fused from several pairs of views.
    """
    device = example.context.image.device
    generator = torch.Generator(device).manual_seed(seed)
    if encode is None:
        predicted = network.encode(example.context, deterministic=deterministic, generator=generator)
    else:
        predicted = encode(generator)
    gaussians = predicted.mode() if deterministic else predicted.sample(generator)
    images, splats = [], []
    count = example.target.image.shape[1]
    for start in range(0, count, VIEWS_PER_CHUNK):
        cameras = example.target.cameras.select(slice(start, start + VIEWS_PER_CHUNK))
        view = network.view(gaussians, cameras, example.target.size, deterministic=deterministic, generator=generator)
        images.append(view.image[0].clamp(0, 1))
        splats.append(network.splat_to_image_size(view.rendering.color, example.target.size)[0].clamp(0, 1))
    image, splat, truth = torch.cat(images), torch.cat(splats), example.target.image[0]
    metrics = {"psnr": psnr(image, truth), "ssim": ssim(image, truth), "psnr_splat": psnr(splat, truth)}
    if lpips is not None:
        metrics["lpips"] = lpips(image, truth)
    frames = tuple(example.target.frame[0].tolist())
    metrics = {name: value.cpu() for name, value in metrics.items()}
    return EntryScore(example.scene[0], tuple(example.context.frame[0].tolist()), frames, metrics, image.cpu())


def average(scores: Iterable[EntryScore]) -> dict[str, float]:
    """Mean and standard deviation over entries of each metric's mean over an entry's targets, plus the entry count."""
    by_name: dict[str, list[float]] = {}
    entries = 0
    for score in scores:
        entries += 1
        for name, values in score.metrics.items():
            by_name.setdefault(name, []).append(float(values.mean()))
    result = {"entries": float(entries)}
    for name, values in by_name.items():
        tensor = torch.tensor(values, dtype=torch.float64)
        result[name] = float(tensor.mean())
        result[f"{name}_std"] = float(tensor.std(unbiased=False))
    return result
