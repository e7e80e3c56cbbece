"""What papers report, as data: never mixed with what is measured here.

Each table names its index, because RealEstate10k has several: latentSplat's interpolation index has the scenes of
pixelSplat's, but other context pairs in all but 49 of them and other targets, so rows of one do not compare with the
other's. Published times of this family are unsynchronised (``timing``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LATENTSPLAT = "latentSplat"
MVSPLAT360 = "MVSplat360 (arXiv 2411.04924), Table 2"
Mark = Literal["paper", "repository", "third party"]

TOLERANCE = {"psnr": 0.1, "ssim": 0.003, "lpips": 0.003, "dists": 0.003, "fid": 0.3}
"""How far a reproduction of latentSplat's row may lie from it: three decimals are printed, every run draws its own
samples, and the tool behind FID is not named."""


@dataclass(frozen=True)
class PublishedRow:
    """One method in one table."""

    method: str
    metrics: dict[str, float]
    source: str
    mark: Mark  # read in the paper itself, in a project's repository, or in another paper's table
    note: str = ""
    tolerance: dict[str, float] = field(default_factory=dict)  # only for the method that this project implements

    def verdict(self, metric: str, measured: float) -> bool | None:
        """Whether a measured number is the published one, within its tolerance; None where that cannot be said."""
        if metric not in self.metrics or metric not in self.tolerance:
            return None
        return abs(measured - self.metrics[metric]) <= self.tolerance[metric]


@dataclass(frozen=True)
class PublishedTable:
    """Rows that were measured alike: the same pairs, targets and image size."""

    title: str
    dataset: str
    kind: str
    index: str  # file name
    pairs: int
    targets: int
    image_size: tuple[int, int]
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...] = ()

    def differences(self, index: str, pairs: int, targets: int, image_size: tuple[int, int]) -> list[str]:
        """Why an evaluation's numbers do not compare with this table's; empty where they do."""
        wanted = (("index", self.index, index), ("pairs", self.pairs, pairs), ("targets", self.targets, targets))
        found = [f"{name} {theirs} there, {ours} here" for name, theirs, ours in wanted if theirs != ours]
        if tuple(image_size) != self.image_size:
            sizes = ["x".join(map(str, size)) for size in (self.image_size, image_size)]
            found.append(f"images {sizes[0]} there, {sizes[1]} here")
        return found


def _row(method: str, source: str, mark: Mark, note: str = "", **metrics: float) -> PublishedRow:
    tolerance = {name: TOLERANCE[name] for name in metrics} if method == LATENTSPLAT else {}
    return PublishedRow(method, metrics, source, mark, note, tolerance)


EXTRAPOLATION = PublishedTable(
    title="RealEstate10k, extrapolation",
    dataset="re10k",
    kind="extrapolation",
    index="re10k_extra.json",
    pairs=6424,
    targets=19272,
    image_size=(256, 256),
    rows=(
        _row(LATENTSPLAT, MVSPLAT360, "third party", psnr=22.62, ssim=0.777, lpips=0.196, dists=0.109, fid=2.79),
        _row("pixelSplat", MVSPLAT360, "third party", psnr=21.84, ssim=0.777, lpips=0.216, dists=0.130, fid=5.78),
        _row("Du et al.", MVSPLAT360, "third party", psnr=21.83, ssim=0.790, lpips=0.242, dists=0.144, fid=11.34),
        _row("pixelNeRF", MVSPLAT360, "third party", psnr=20.05, ssim=0.575, lpips=0.567, dists=0.371, fid=160.77),
        _row("MVSplat", MVSPLAT360, "paper", "retrained", psnr=23.04, ssim=0.812, lpips=0.185, dists=0.110, fid=3.83),
        _row("MVSplat360", MVSPLAT360, "paper", psnr=23.16, ssim=0.810, lpips=0.176, dists=0.104, fid=1.79),
    ),
    notes=(
        "latentSplat's own table could not be read; MVSplat360 states that it follows latentSplat's extrapolation "
        "scores, and its index equals latentSplat's entry for entry.",
        "FID of MVSplat360 is pytorch-fid's; the tool of latentSplat's is not named. KID is not published.",
    ),
)

INTERPOLATION = PublishedTable(
    title="RealEstate10k, interpolation on pixelSplat's index",
    dataset="re10k",
    kind="interpolation",
    index="evaluation_index_re10k.json",
    pairs=6474,
    targets=19422,
    image_size=(256, 256),
    rows=(
        _row(LATENTSPLAT, MVSPLAT360, "paper", "retrained there", psnr=25.53, ssim=0.851, lpips=0.139),
        _row(LATENTSPLAT, "MonoSplat (CVPR 2025), Table 1", "third party", psnr=23.07, ssim=0.825, lpips=0.182),
        _row("pixelSplat", "pixelSplat's README", "repository", "newer weights", psnr=26.09, ssim=0.863, lpips=0.136),
        _row("MVSplat", MVSPLAT360, "paper", psnr=26.39, ssim=0.869, lpips=0.128),
        _row("MVSplat360", MVSPLAT360, "paper", psnr=26.41, ssim=0.869, lpips=0.126),
    ),
    notes=(
        "The two rows of latentSplat contradict each other; neither is of the released weights for certain.",
        "3.0 % of the targets are context views.",
    ),
)

TABLES = (EXTRAPOLATION, INTERPOLATION)


@dataclass(frozen=True)
class PublishedTime:
    """A published time of latentSplat at 256x256; the GPU is not named, and no device was synchronised."""

    part: str
    seconds: float
    source: str


TIMES = (
    PublishedTime("encode", 0.080, "third-party note; the project page says under 0.1 s"),
    PublishedTime("splat", 0.003, "project page: rendering one novel view, whether with the decoder is not said"),
)


def tables_for(dataset: str, index: Path | str, kinds: set[str]) -> list[PublishedTable]:
    """The tables to show beside an evaluation: that of its index, else those of its dataset and kinds of targets."""
    name = Path(index).name
    of_index = [table for table in TABLES if table.index == name]
    return of_index or [table for table in TABLES if table.dataset == dataset and table.kind in kinds]
