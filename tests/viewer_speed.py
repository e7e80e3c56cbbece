"""How fast the viewer is on this machine: a real nerfstudio viewer, driven over its websocket by a scripted tab.

    python tests/viewer_speed.py [--method latentsplat-tiny --size 64x96]

Weights are random: time does not depend on them. MV-LDM has the published size with latentsplat, else the tiny one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from shown_run import Shown
from untrained_runs import write_untrained_mvldm
from viser_tab import Tab

from lsplat_ns.data.demo_scenes import MakeScenesConfig, make_scenes

LONGEST_SIDE = 512
SECONDS = 6.0


def frame_rate(tab: Tab, seconds: float = SECONDS) -> tuple[float, tuple[int, int]]:
    """Pictures per second that arrive in a tab whose camera moves, after a second to settle; their median size."""
    sizes, started, counted_from = [], time.monotonic(), 0
    while (now := time.monotonic()) < started + seconds + 1:
        if now < started + 1:
            counted_from = tab.pictures
        tab.look((0.3 * np.sin(3 * now), 0.1 * np.cos(2 * now), 0.0))
        time.sleep(0.01)
        sizes.append(tab.picture.shape[:2])
    return (tab.pictures - counted_from) / seconds, tuple(int(side) for side in np.median(sizes, axis=0))


def seconds_to_switch(shown: Shown, tab: Tab, repeats: int = 6) -> list[float]:
    """From the click on "next" to the first picture of the next scene."""
    model, found = shown.pipeline.model, []
    for _ in range(repeats):
        before, started = model.active_scene, time.perf_counter()
        tab.set("Go to", "next")
        while model.active_scene is before:
            time.sleep(0.001)
        pictures = tab.pictures
        while tab.pictures == pictures:
            time.sleep(0.001)
        found.append(time.perf_counter() - started)
        time.sleep(1.0)  # it comes to rest
    return found


def milliseconds_of(work: Callable[[], object], repeats: int = 20) -> float:
    """Median time of a call, with its result on the GPU."""
    times = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def while_generating(shown: Shown, tab: Tab, mvldm: Path) -> Iterator[str]:
    """How it flies while MV-LDM works, how soon that is cancelled, and how long three views take."""
    panel = shown.pipeline.model.viewer_control
    for label, value in (("MV-LDM run", str(mvldm)), ("Views", 3), ("Steps", 1000)):
        tab.set(label, value)
    tab.click("Generate")
    tab.wait(lambda: "s left" in tab.texts(), "the first steps", 300)
    rate, (height, width) = frame_rate(tab)
    yield f"moving, while views are generated: {rate:.1f} pictures/s of {width}x{height}"
    started = time.perf_counter()
    tab.click("Cancel generation")
    tab.wait(lambda: not panel.work.busy, "the end")
    yield f"generation cancelled after {time.perf_counter() - started:.2f} s"
    tab.set("Solver", "ddim")
    tab.set("Steps", 70)
    started = time.perf_counter()
    tab.click("Generate")
    tab.wait(lambda: tab.visible("Lift accepted views"), "generated views", 600)
    yield f"three views in 70 steps of ddim, with scores: {time.perf_counter() - started:.1f} s"
    started = time.perf_counter()
    tab.click("Lift accepted views")
    tab.wait(lambda: tab.visible("Undo last layer"), "a layer", 120)
    yield f"lifted in {time.perf_counter() - started:.2f} s"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="latentsplat", choices=("latentsplat", "latentsplat-tiny"))
    parser.add_argument("--size", default="256x256", help="of the scenes' images, HEIGHTxWIDTH")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rooms = Path(scratch) / "rooms"
        size = tuple(int(side) for side in arguments.size.split("x"))
        make_scenes(MakeScenesConfig(output=rooms, scenes=4, frames=14, size=size, workers=1))
        mvldm = write_untrained_mvldm(Path(scratch) / "mvldm", published=arguments.method == "latentsplat")
        shown = Shown(rooms, Path(scratch) / "run", arguments.method)
        tab = Tab(shown.port, aspect=1.0)
        tab.wait(lambda: tab.has("Save scene") and tab.picture is not None, "a picture", 300)
        for row in chain(measured(shown, tab, arguments.method), while_generating(shown, tab, mvldm)):
            print(row, flush=True)  # as it is measured: what fails later takes none with it
        tab.close()
        shown.close()


def measured(shown: Shown, tab: Tab, method: str) -> Iterator[str]:
    """The table's rows."""
    model = shown.pipeline.model
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    tab.set("Max res", LONGEST_SIDE)
    frame_rate(tab, 3)  # warms up
    yield f"{method}, {device}, {model.prediction().shown.count:,} Gaussians, tab of {LONGEST_SIDE} px"
    rate, (height, width) = frame_rate(tab)
    yield f"moving: {rate:.1f} pictures/s of {width}x{height}"
    time.sleep(2)
    yield f"at rest: {next(line for line in tab.texts().splitlines() if 'Gaussians' in line)}"
    switches = seconds_to_switch(shown, tab)
    yield f"scene switch to its first picture: median {statistics.median(switches):.2f} s, max {max(switches):.2f} s"
    prediction, camera = model.prediction(), shown.pipeline.datamanager.train_dataset.cameras[0:1]
    camera.rescale_output_resolution(LONGEST_SIDE / float(camera.height[0]))
    camera = camera.to(model.device)
    with model.evaluating():
        for name, decode in (("splatted", False), ("decoded", True)):
            spent = milliseconds_of(lambda: model.view(prediction, camera, decode=decode))  # noqa: B023
            yield f"one view alone, {name}: {spent:.1f} ms"
        yield f"encoding alone: {milliseconds_of(lambda: model.predict(prediction.scene), 5):.0f} ms"


if __name__ == "__main__":
    main()
