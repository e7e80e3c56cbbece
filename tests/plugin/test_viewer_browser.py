"""``ns-viewer`` as a person meets it: a real page in a headless Chromium."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import BIN, Run
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# The last three draw WebGL in software; without them the canvas stays empty on a machine without a GPU.
FLAGS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def viewer(run: Run, config: Path, log: Path) -> Iterator[int]:
    """``ns-viewer`` on a free port; its output goes to ``log``."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [BIN / "ns-viewer", "--load-config", config, "--viewer.websocket-port", str(port)],
            cwd=run.cwd, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                assert process.poll() is None, log.read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            yield port
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()
            process.wait(timeout=30)
            (run.folder / "active_scene.json").unlink(missing_ok=True)


def picture(page) -> np.ndarray:
    """The canvas as it is seen, without the panel on the right."""
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(float)
    return pixels[60:, :560]


def wait_for(page, condition, seconds: float = 60) -> np.ndarray:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        shot = picture(page)
        if condition(shot):
            return shot
        time.sleep(0.5)
    raise AssertionError("the picture did not come to what was expected")


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def fields_of(page) -> list[str]:
    """What stands in the text fields of the panel."""
    return [field.input_value() for field in page.locator("input[type='text'], input:not([type])").all()]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")
def test_a_browser_shows_the_scene_follows_the_camera_and_switches_scenes(
    trained: Run, rooms: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    keep = Path(os.environ.get("LSPLAT_KEEP_SCREENSHOTS", tmp_path))
    log = tmp_path / "viewer.log"
    scenes = list(json.loads((rooms / "train" / "index.json").read_text()))
    config = yaml.load(trained.config.read_text(), Loader=yaml.Loader)
    config.pipeline.datamanager.dataparser.scene_split = "train"  # it holds more than one scene
    (tmp_path / "config.yml").write_text(yaml.dump(config))
    with viewer(trained, tmp_path / "config.yml", log) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 960, "height": 640})
        failures = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
        page.get_by_text("latentSplat").first.wait_for(timeout=60_000)
        # A scene is a picture with structure; the empty page is one flat colour.
        wait_for(page, lambda shot: shot.std() > 15)
        time.sleep(3)
        first, again = picture(page), picture(page)
        assert np.abs(first - again).mean() < 0.2  # a camera at rest shows a picture at rest
        page.screenshot(path=keep / "viewer_first.png")
        page.mouse.move(200, 360)
        page.mouse.down()
        page.mouse.move(480, 420, steps=8)
        page.mouse.up()
        wait_for(page, lambda shot: np.abs(shot - first).mean() > 2)
        time.sleep(3)
        page.screenshot(path=keep / "viewer_moved.png")
        rested = picture(page)
        assert rested.std() > 15  # still a scene
        assert np.abs(rested - first).mean() > 2  # seen from elsewhere
        # The next scene: name, picture and the file that headless tools follow change together.
        shown, following = scenes[0], scenes[1]
        assert shown in fields_of(page)
        page.get_by_role("button", name="next").click()
        switched = wait_for(page, lambda shot: np.abs(shot - rested).mean() > 2)
        assert switched.std() > 15
        wait_until(lambda: following in fields_of(page))
        assert json.loads((trained.folder / "active_scene.json").read_text())["scene"] == following
        page.screenshot(path=keep / "viewer_next.png")
        second = browser.new_page(viewport={"width": 960, "height": 640})  # another tab is inside the same scene
        second.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
        second.get_by_text("latentSplat").first.wait_for(timeout=60_000)
        wait_for(second, lambda shot: shot.std() > 15)
        assert following in fields_of(second)
        browser.close()
    output = log.read_text()
    assert failures == []
    assert "Traceback" not in output and "Rendering failed" not in output, output[-3000:]
