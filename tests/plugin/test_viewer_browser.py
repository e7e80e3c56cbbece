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
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from browser_tour import PATIENCE, Film, Visit
from conftest import BIN, Run
from PIL import Image
from ports import free_port
from viser_tab import without_lost_pings

from lsplat_ns.checkpoints.exports import read_ply
from lsplat_ns.plugin.demo import generator_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# The last three draw WebGL in software; without them the canvas stays empty on a machine without a GPU.
FLAGS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
]  # fmt: skip


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
            deadline = time.monotonic() + PATIENCE
            while True:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
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


def new_page(browser, width: int, height: int):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(1000 * PATIENCE)
    return page


def picture(page) -> np.ndarray:
    """The canvas as it is seen, without the panel on the right."""
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(float)
    return pixels[60:, :560]


def wait_for(page, condition, seconds: float = PATIENCE) -> np.ndarray:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        shot = picture(page)
        if condition(shot):
            return shot
        time.sleep(0.5)
    raise AssertionError("the picture did not come to what was expected")


def picture_at_rest(page, seconds: float = PATIENCE) -> np.ndarray:
    """The picture once it stays the same for two seconds, as it has to where no camera moves."""
    shots = [picture(page)]

    def stays(shot: np.ndarray) -> bool:
        shots.append(shot)
        return len(shots) > 4 and all(np.abs(other - shot).mean() < 0.2 for other in shots[-5:])

    return wait_for(page, stays, seconds)


def wait_until(condition, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def fields_of(page) -> list[str]:
    """What stands in the text fields of the panel."""
    return [field.input_value() for field in page.locator("input[type='text'], input:not([type])").all()]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")
def test_a_browser_shows_the_scene_follows_the_camera_and_switches_scenes(
    shipped: Run, unseen_rooms: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    keep = Path(os.environ.get("LSPLAT_KEEP_SCREENSHOTS", tmp_path))
    log = tmp_path / "viewer.log"
    scenes = list(json.loads((unseen_rooms / "test" / "index.json").read_text()))
    with viewer(shipped, shipped.config, log) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = new_page(browser, 960, 640)
        failures = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
        page.get_by_text("latentSplat").first.wait_for()
        # A scene is a picture with structure; the empty page is one flat colour.
        wait_for(page, lambda shot: shot.std() > 15)
        first = picture_at_rest(page)
        page.screenshot(path=keep / "viewer_first.png")
        page.mouse.move(200, 360)
        page.mouse.down()
        page.mouse.move(240, 370, steps=8)
        page.mouse.up()
        wait_for(page, lambda shot: np.abs(shot - first).mean() > 2)
        rested = picture_at_rest(page)
        page.screenshot(path=keep / "viewer_moved.png")
        assert rested.std() > 15  # still a scene
        assert np.abs(rested - first).mean() > 2  # seen from elsewhere
        # The next scene: name, picture and the file that headless tools follow change together.
        shown, following = scenes[0], scenes[1]
        assert shown in fields_of(page)
        page.get_by_role("button", name="next").click()
        wait_for(page, lambda shot: np.abs(shot - rested).mean() > 2 and shot.std() > 15)
        wait_until(lambda: following in fields_of(page))
        assert json.loads((shipped.folder / "active_scene.json").read_text())["scene"] == following
        page.screenshot(path=keep / "viewer_next.png")
        second = new_page(browser, 960, 640)  # another tab is inside the same scene
        second.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
        second.get_by_text("latentSplat").first.wait_for()
        wait_for(second, lambda shot: shot.std() > 15)
        assert following in fields_of(second)
        browser.close()
    output = without_lost_pings(log.read_text())
    assert failures == []
    assert "Traceback" not in output and "Rendering failed" not in output, output[-3000:]


@dataclass(frozen=True)
class Toured:
    """What is shown: a run of latentSplat, and one of MV-LDM."""

    run: Run
    config: Path
    mvldm: Path
    generated: str  # what is said of the generated views


@pytest.fixture
def toured(request: pytest.FixtureRequest, tmp_path: Path) -> Toured:
    """The shipped latentSplat and MV-LDM; for another film LSPLAT_TOUR_RUN names another config.yml, in the outputs
    folder of where it was trained, and LSPLAT_TOUR_MVLDM another folder."""
    if (mvldm := os.environ.get("LSPLAT_TOUR_MVLDM")) is None:
        mvldm, note = generator_run(tmp_path / "mvldm-tiny"), " This one is tiny: it knows rooms like these, blurred."
    else:
        mvldm, note = Path(mvldm).resolve(), ""
    if (config := os.environ.get("LSPLAT_TOUR_RUN")) is not None:
        config = Path(config).resolve()
        return Toured(Run(config.parents[4], config.parent, ""), config, mvldm, note)
    run = request.getfixturevalue("shipped")
    return Toured(run, run.config, mvldm, note)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")
def test_a_tour_samples_generates_and_takes_away_in_a_browser(toured: Toured, tmp_path: Path) -> None:
    """With LSPLAT_TOUR=FILE.mp4 at a person's pace, which takes two minutes; the film goes to that file."""
    from playwright.sync_api import sync_playwright

    film_file = Path(os.environ.get("LSPLAT_TOUR", tmp_path / "tour.mp4"))
    keep = Path(os.environ.get("LSPLAT_KEEP_SCREENSHOTS", tmp_path))
    log = tmp_path / "viewer.log"
    with viewer(toured.run, toured.config, log) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = new_page(browser, 1280, 900)
        failures = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
        page.get_by_text("latentSplat").first.wait_for()
        visit = Visit(page, keep, pace=1.0 if "LSPLAT_TOUR" in os.environ else 0.02)
        visit.wait_for_picture(lambda shot: shot.std() > 15)
        film = Film(page)
        tour(visit, toured, tmp_path)
        length = film.write(film_file)
        browser.close()
    print(f"{film_file}: {length:.0f} s")
    check_downloads(tmp_path)
    with av.open(str(film_file)) as video:
        assert sum(1 for _ in video.decode(video=0)) >= 10
    output = without_lost_pings(log.read_text())
    assert failures == []
    assert "Traceback" not in output and "Rendering failed" not in output, output[-3000:]


def tour(visit: Visit, toured: Toured, downloads: Path) -> None:
    """Everything that the panel offers, in the order of its folders."""
    page = visit.page
    visit.say("Two photos became this scene. Drag to fly.")
    visit.look_at_it(4)
    first = visit.picture()
    for end in ((480, 520), (360, 400), (420, 460)):
        visit.drag((420, 460), end)
        visit.look_at_it(1)
    visit.wait_for_picture(lambda shot: np.abs(shot - first).mean() > 1)

    visit.say("Another scene: the frusta and the picture change together.")
    before = visit.picture()
    visit.button("next").click()
    visit.wait_for_picture(lambda shot: np.abs(shot - before).mean() > 2)
    visit.look_at_it(5)
    visit.shoot("scene")

    visit.say("Four draws of what the photos leave open; fly in one of them.")
    visit.button("4 draws of this view").click()
    page.get_by_alt_text("four draws").wait_for()
    visit.look_at_it(4)
    visit.button("2").click()
    visit.wait_until(lambda: visit.row("Show").locator("input").first.input_value() == "sample")
    visit.look_at_it(4)
    visit.shoot("draw")

    look(visit)
    generate(visit, toured)

    visit.turn("Generate")
    visit.turn("Take away")
    visit.say("Take it away: a picture, a video, the Gaussians, the scene as a config.")
    for button, file in (
        ("Snapshot (PNG)", "view.png"),
        ("Export Gaussians", "scene.ply"),
        ("Video (mp4)", "scene.mp4"),
    ):
        with visit.downloading(downloads / file):
            visit.button(button).click()
        visit.look_at_it(3)
    visit.button("Save scene").click()
    visit.row("Render").locator("input").wait_for()
    visit.look_at_it(5)
    visit.shoot("take_away")
    visit.say("")


def look(visit: Visit) -> None:
    """Outputs, doubt, and where least is known."""
    for folder in ("Scene", "Draw"):  # room for the others
        visit.turn(folder)
    seen = {}
    for output, caption in (
        ("depth", "Depth"),
        ("uncertainty", "Uncertainty: how far the draws differ, and what nothing covers"),
        ("latent", "The latents that the decoder reads"),
        ("difference", "Difference between two draws"),
        ("rgb_splat", "The splatted colour alone"),
        ("rgb", "The decoded picture"),
    ):
        visit.say(caption)
        visit.choose("Output type", output)
        page_shows = seen.get(output, next(reversed(seen.values()), None))
        seen[output] = visit.wait_for_picture(
            lambda shot, last=page_shows: shot.std() > 3 and (last is None or np.abs(shot - last).mean() > 0.5)
        )
        visit.look_at_it(3)
        visit.shoot(f"output_{output}")
    visit.turn("Look")
    visit.say("Splats drawn by the browser: flying needs no server")
    visit.tick("Draw in browser")
    # What the server sends now is black: colour and structure are the browser's.
    visit.page.wait_for_timeout(3000)
    visit.wait_for_picture(lambda shot: shot.std() > 10 and shot.mean() > 0.7 * seen["rgb_splat"].mean())
    visit.drag((420, 460), (470, 440))
    visit.look_at_it(2)
    visit.shoot("in_browser")
    visit.tick("Draw in browser")
    visit.wait_for_picture(lambda shot: shot.std() > 10)
    visit.say("Go where the scene knows least")
    visit.button("Go where it knows least").click()
    visit.wait_for_button("Generate there")
    visit.look_at_it(4)
    visit.shoot("look")


def generate(visit: Visit, toured: Toured) -> None:
    """Views by MV-LDM, of which two are lifted."""
    page = visit.page
    visit.turn("Look")
    visit.turn("Generate")
    visit.say(f"MV-LDM generates what no photo shows; the viewer goes on meanwhile.{toured.generated}")
    visit.fill("MV-LDM run", str(toured.mvldm))
    visit.fill("Steps", "30")  # long enough for a slow page to show the button that cancels
    visit.look_at_it(2)
    visit.button("Generate").click()
    visit.button("Cancel generation").wait_for()
    visit.shoot("generating")
    visit.wait_for_button("Lift accepted views")
    assert page.get_by_text("View 3:").count() == 1
    page.get_by_alt_text("generated views").wait_for()
    visit.look_at_it(5)
    visit.shoot("generated")
    visit.say("Each view is accepted or discarded; accepted ones become a layer of the scene.")
    page.locator(".mantine-Flex-root", has=page.get_by_text("View 1:")).last.locator("input").click()
    visit.look_at_it(2)
    visit.button("Lift accepted views").click()
    visit.wait_for_button("Undo last layer")
    visit.look_at_it(5)
    visit.shoot("lifted")
    visit.say("Photos blue, generated views orange")
    visit.turn("Look")
    before = visit.picture()
    visit.tick("Tint both")
    visit.wait_for_picture(lambda shot: np.abs(shot - before).mean() > 2)
    visit.look_at_it(5)
    visit.shoot("tinted")
    visit.tick("Tint both")
    visit.turn("Look")


def check_downloads(folder: Path) -> None:
    """What was downloaded opens, and shows something."""
    assert np.asarray(Image.open(folder / "view.png").convert("RGB")).std() > 5
    assert read_ply(folder / "scene.ply").count > 100
    with av.open(str(folder / "scene.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 96 and min(frame.std() for frame in frames) > 5
