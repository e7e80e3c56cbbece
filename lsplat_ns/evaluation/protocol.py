"""Scoring a network on the entries of an evaluation index.

Source: spec sections 8.1 and 8.3. One entry is one encoding of two context views and the rendering of all its targets.
Metrics are those of the 8-bit pictures that are written, as in the original, which reads its PNGs back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import torch
from torch import Tensor

from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.evaluation.metrics import FoundMetrics
from lsplat_ns.evaluation.timing import Stopwatch
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.scene import Gaussians, SceneBatch, VariationalGaussians

VIEWS_PER_CHUNK = 8
"""Targets that are splatted and decoded together; bounds memory, changes no number."""
OURS, SPLAT, NEAREST, MEAN = "prediction", "splatted colour", "nearest context view", "mean of the context views"
"""What is scored: the network's pictures, those before its decoder, and two yardsticks that any method has to beat."""

Kind = Literal["interpolation", "extrapolation"]
Encode = Callable[[torch.Generator], VariationalGaussians]


@dataclass(frozen=True)
class Draw:
    """One prediction of an entry's targets."""

    gaussians: Gaussians  # a sample or the mode
    distribution: VariationalGaussians
    image: Tensor  # [t, 3, height, width], the decoded views in [0, 1], not quantised
    splat: Tensor  # [t, 3, height, width], the splatted colour in [0, 1]
    seconds: dict[str, float]  # encode: once; splat, decode: of all views


@dataclass(frozen=True)
class EntryScore:
    """Metrics of one entry, one number per target view."""

    scene: str
    context: tuple[int, ...]
    target: tuple[int, ...]
    metrics: dict[str, dict[str, Tensor]]  # what is scored -> metric -> [t]
    draw_std: dict[str, float]  # metric -> standard deviation over draws of the prediction's mean; empty for one draw
    first: Draw  # the one that is shown
    images: Tensor  # [t, 3, height, width] on the CPU, the first draw as it is written to PNG files
    seconds: dict[str, float]  # encode: per entry; splat, decode: per view; means over draws


def entry_seed(scene: str, context: tuple[int, ...], seed: int = 0) -> int:
    """A seed of its own for each entry.

    # Differs from upstream: it seeds once, so that a score depends on the entries before it.
    """
    return int.from_bytes(sha256(f"{seed}/{scene}/{context}".encode()).digest()[:7], "big")


def quantised(image: Tensor) -> Tensor:
    """Images as they come back from the original's PNG files: clipped to [0, 1], 8 bits, cut off and not rounded."""
    return (255 * image.clamp(0, 1)).floor() / 255


def target_kinds(video: PosedVideo, choice: FrameChoice) -> tuple[Kind, ...]:
    """For each target whether it lies between the context views (both included) or outside.

    On a turntable, between means on the shorter of the two arcs.
    """
    left, right = min(choice.context), max(choice.context)
    count = len(video)
    if video.circular and right - left > count / 2:
        inside = [not left < frame < right for frame in choice.target]
    else:
        inside = [left <= frame <= right for frame in choice.target]
    return tuple("interpolation" if within else "extrapolation" for within in inside)


def frames_from_context(video: PosedVideo, choice: FrameChoice) -> tuple[int, ...]:
    """For each target how many frames lie between it and the nearest context view, across a turntable's seam too."""
    apart = [[abs(frame - seen) for seen in choice.context] for frame in choice.target]
    if video.circular:
        apart = [[min(gap, len(video) - gap) for gap in gaps] for gaps in apart]
    return tuple(min(gaps) for gaps in apart)


@torch.no_grad()
def draw_views(
    network: LatentSplat,
    example: SceneBatch,
    *,
    seed: int,
    deterministic: bool,
    encode: Encode | None = None,
) -> Draw:
    """Predict an example's targets, timing the parts.

    Args:
        network: In eval mode.
        example: A batch of one.
        seed: Of the depth samples, the features and the latents.
        deterministic: Take modes instead of samples everywhere.
        encode: Predicts the scene instead of the network itself, as for scenes fused from several pairs of views.
    """
    device = example.context.image.device
    generator = torch.Generator(device).manual_seed(seed)
    watch, size = Stopwatch(device), example.target.size
    with watch.part("encode"):
        if encode is None:
            predicted = network.encode(example.context, deterministic=deterministic, generator=generator)
        else:
            predicted = encode(generator)
        gaussians = predicted.mode() if deterministic else predicted.sample(generator)
    images, splats = [], []
    for start in range(0, example.target.image.shape[1], VIEWS_PER_CHUNK):
        cameras = example.target.cameras.select(slice(start, start + VIEWS_PER_CHUNK))
        with watch.part("splat"):
            rendering = network.render(gaussians, cameras, size)
        with watch.part("decode"):
            latents = network.latent_distribution(rendering)
            latent = latents.mode() if deterministic else latents.sample(generator)
            images.append(network.decode(rendering, latent)[0].clamp(0, 1))
        splats.append(network.splat_to_image_size(rendering.color, size)[0].clamp(0, 1))
    return Draw(gaussians, predicted, torch.cat(images), torch.cat(splats), watch.seconds)


@torch.no_grad()
def score_entry(
    network: LatentSplat,
    example: SceneBatch,
    metrics: FoundMetrics,
    *,
    draws: int = 1,
    seed: int = 0,
    encode: Encode | None = None,
    yardsticks: bool = True,
) -> EntryScore:
    """Predict an example's targets and compare them with the truth.

    Args:
        network: In eval mode.
        example: A batch of one.
        metrics: What to measure.
        draws: How many times to draw everything that is random; the original draws once. 0 takes modes instead.
        seed: Of the entry's draws.
        encode: As in :func:`draw_views`.
        yardsticks: Also score the context views themselves.
    """
    truth, count = example.target.image[0], max(draws, 1)
    first, measured, seconds = None, {OURS: [], SPLAT: []}, {}
    for number in range(count):
        draw = draw_views(network, example, seed=seed + number, deterministic=draws == 0, encode=encode)
        for what, images in ((OURS, draw.image), (SPLAT, draw.splat)):
            measured[what].append(metrics.measure(quantised(images), truth))
        seconds = {part: seconds.get(part, 0.0) + value / count for part, value in draw.seconds.items()}
        first = first or draw
    stacked = {
        what: {name: torch.stack([one[name] for one in values]) for name in metrics.available}
        for what, values in measured.items()
    }
    scored = {what: {name: values.mean(0) for name, values in found.items()} for what, found in stacked.items()}
    if yardsticks:
        for name, images in copies_of_context(example).items():
            scored[name] = metrics.measure(quantised(images), truth)
    by_draw = {name: values.mean(1) for name, values in stacked[OURS].items()} if count > 1 else {}
    for part in ("splat", "decode"):
        seconds[part] /= len(truth)
    return EntryScore(
        scene=example.scene[0],
        context=tuple(example.context.frame[0].tolist()),
        target=tuple(example.target.frame[0].tolist()),
        metrics=scored,
        draw_std={n: float(v.std(unbiased=False)) for n, v in by_draw.items() if bool(v.isfinite().all())},
        first=first,
        images=quantised(first.image).cpu(),
        seconds=seconds,
    )


def copies_of_context(example: SceneBatch) -> dict[str, Tensor]:
    """What needs no network: for each target the context view whose camera is nearest, and the mean of all of them.

    Returns:
        Images [t, 3, height, width] by name.
    """
    images = example.context.image[0]
    distance = torch.cdist(example.target.cameras.origins[0], example.context.cameras.origins[0])
    return {
        NEAREST: images[distance.argmin(1)],
        MEAN: images.mean(0, keepdim=True).expand(len(distance), -1, -1, -1),
    }
