"""``lsplat doctor``: what of the installation works, and what to do about the rest."""

from __future__ import annotations

import ctypes.util
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Literal

from rich.console import Console
from rich.table import Table

State = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. Only ``missing`` keeps the main job from running."""

    name: str
    state: State
    text: str


def examine() -> list[Finding]:
    """Check everything; never raises."""
    findings = []
    for check in (_python, _packages, _device, _gsplat, _registration, _ffmpeg, _libusb, _demo_weights, _weights):
        try:
            findings.extend(check())
        except Exception as error:  # a doctor that dies tells nothing
            findings.append(Finding(check.__name__.strip("_"), "missing", f"{type(error).__name__}: {error}"))
    return findings


def report(findings: list[Finding]) -> int:
    """Print the findings; returns the exit code, 0 when the main job can run."""
    table = Table(title="lsplat doctor", title_justify="left")
    for column in ("what", "state", "details"):
        table.add_column(column, overflow="fold")
    colors = {"ok": "green", "note": "yellow", "missing": "red"}
    for finding in findings:
        table.add_row(finding.name, f"[{colors[finding.state]}]{finding.state}[/]", finding.text)
    console = Console()
    console.print(table)
    broken = [finding.name for finding in findings if finding.state == "missing"]
    console.print(f"Not ready: {', '.join(broken)}" if broken else "Ready: `lsplat demo` can run here.")
    return 1 if broken else 0


def _python() -> list[Finding]:
    return [Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]


def _packages() -> list[Finding]:
    findings = []
    for name in ("lsplat-ns", "nerfstudio", "torch", "gsplat", "viser", "diffusers"):
        try:
            findings.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            findings.append(Finding(name, "missing", f"not installed; pip install {name}"))
    return findings


def _device() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return [Finding("device", "ok", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")]
    return [Finding("device", "note", "no CUDA device: latentsplat-tiny runs on the CPU, the published model is slow")]


def _gsplat() -> list[Finding]:
    from lsplat_ns.rendering.splatting import gsplat_status

    problem = gsplat_status()
    if problem is None:
        return [Finding("gsplat kernels", "ok", "usable")]
    return [Finding("gsplat kernels", "note", f"{problem} Until then splatting runs in plain PyTorch.")]


def _registration() -> list[Finding]:
    methods = {e.name for e in entry_points(group="nerfstudio.method_configs")}
    if "latentsplat" in methods:
        return [Finding("nerfstudio methods", "ok", ", ".join(sorted(m for m in methods if "latentsplat" in m)))]
    return [Finding("nerfstudio methods", "missing", "latentsplat is not registered; pip install this package again")]


def _ffmpeg() -> list[Finding]:
    if shutil.which("ffmpeg"):
        return [Finding("ffmpeg", "ok", str(shutil.which("ffmpeg")))]
    try:
        import imageio_ffmpeg

        return [Finding("ffmpeg", "ok", f"{imageio_ffmpeg.get_ffmpeg_exe()} (from the imageio-ffmpeg wheel)")]
    except (ImportError, RuntimeError):
        return [Finding("ffmpeg", "note", "absent; ns-render needs it: pip install imageio-ffmpeg")]


def _libusb() -> list[Finding]:
    if ctypes.util.find_library("usb-1.0"):
        return [Finding("libusb", "ok", "ns-export can import open3d")]
    return [Finding("libusb", "note", "absent; ns-export needs it for open3d: apt install libusb-1.0-0")]


def _demo_weights() -> list[Finding]:
    from lsplat_ns.checkpoints.demo_weights import demo_weights_path
    from lsplat_ns.errors import MissingWeights

    try:
        return [Finding("demo weights", "ok", str(demo_weights_path("latentsplat-tiny")))]
    except MissingWeights as error:
        return [Finding("demo weights", "missing", str(error))]


def _weights() -> list[Finding]:
    from lsplat_ns.errors import MissingWeights
    from lsplat_ns.losses.perceptual import locate_backbone

    try:
        return [Finding("LPIPS weights", "ok", str(locate_backbone()))]
    except MissingWeights as error:
        return [Finding("LPIPS weights", "note", f"{error} Needed by ns-train latentsplat only.")]
