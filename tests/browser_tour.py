"""A page of the viewer in a headless Chromium, as a person uses it, and a film of it."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lsplat_ns.data.video import write_video

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

FRAMES_PER_SECOND = 10
PATIENCE = 180.0
"""Seconds to wait for what has to happen; a busy machine may stall for a while."""
CAPTION = """text => {
  const box = document.getElementById('caption') || document.body.appendChild(document.createElement('div'));
  box.id = 'caption';
  box.textContent = text;
  box.style.cssText = 'position:fixed; left:24px; bottom:24px; max-width:60%; padding:10px 16px; z-index:9999;'
    + 'font:500 20px sans-serif; color:#fff; background:rgba(0,0,0,.65); border-radius:6px;';
  box.hidden = !text;
}"""


class Film:
    """What the page shows, from the moment this is made; frames come when the page changes."""

    def __init__(self, page: Page) -> None:
        self._frames: list[tuple[float, bytes]] = []
        self._session = page.context.new_cdp_session(page)
        self._session.on("Page.screencastFrame", self._take)
        self._session.send("Page.startScreencast", {"format": "jpeg", "quality": 85})

    def _take(self, event: dict) -> None:
        self._frames.append((event["metadata"]["timestamp"], base64.b64decode(event["data"])))
        self._session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    def write(self, file: Path) -> float:
        """Write an mp4 and return its length in seconds."""
        self._session.send("Page.stopScreencast")
        times = np.array([when for when, _ in self._frames])
        count = max(1, round((times[-1] - times[0]) * FRAMES_PER_SECOND))
        wanted = times[0] + np.arange(count) / FRAMES_PER_SECOND
        write_video(file, self._pictures(np.searchsorted(times, wanted, side="right") - 1), FRAMES_PER_SECOND)
        return count / FRAMES_PER_SECOND

    def _pictures(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        size, last, picture = None, -1, None
        for number in numbers.tolist():
            if number != last:  # a page at rest gives one frame for many
                opened = Image.open(io.BytesIO(self._frames[number][1])).convert("RGB")
                size = size or (opened.width // 2 * 2, opened.height // 2 * 2)
                picture, last = np.asarray(opened.resize(size)), number
            yield picture


class Visit:
    """A person's visit to the viewer's page."""

    def __init__(self, page: Page, keep: Path, pace: float) -> None:
        """Screenshots go to ``keep``; ``pace`` is the share of the time that a person would look at things."""
        self.page, self.keep, self.pace = page, keep, pace

    def picture(self) -> np.ndarray:
        """The canvas as it is seen, without the panel on the right."""
        pixels = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")).astype(float)
        return pixels[110:-110, : pixels.shape[1] - 330]

    def wait_for_picture(self, condition: Callable[[np.ndarray], bool], seconds: float = PATIENCE) -> np.ndarray:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            shot = self.picture()
            if condition(shot):
                return shot
            self.page.wait_for_timeout(300)
        raise AssertionError("the picture did not come to what was expected")

    def wait_until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "what was expected did not happen"
            self.page.wait_for_timeout(200)

    def say(self, caption: str) -> None:
        self.page.evaluate(CAPTION, caption)

    def look_at_it(self, seconds: float) -> None:
        self.page.wait_for_timeout(1000 * seconds * self.pace)

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=self.keep / f"viewer_{name}.png")

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 12) -> None:
        self.page.mouse.move(*start)
        self.page.mouse.down()
        for number in range(1, steps + 1):
            share = number / steps
            self.page.mouse.move(*(a + share * (b - a) for a, b in zip(start, end, strict=True)))
            self.page.wait_for_timeout(120 * self.pace)
        self.page.mouse.up()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def wait_for_button(self, name: str, seconds: float = PATIENCE) -> None:
        """Wait for what long work ends with; what goes wrong is said in words that are looked for."""
        self.wait_until(lambda: self.button(name).is_visible() or self.page.get_by_text("not done").count(), seconds)
        assert self.button(name).is_visible(), self.page.get_by_role("alert").all_inner_texts()

    def turn(self, folder: str) -> None:
        """Open or close a folder of the panel."""
        self.page.get_by_text(folder, exact=True).first.click()
        self.page.wait_for_timeout(600)  # it glides

    def row(self, label: str) -> Locator:
        return self.page.locator(".mantine-Flex-root", has=self.page.get_by_text(label, exact=True)).last

    def fill(self, label: str, text: str) -> None:
        field = self.row(label).locator("input[type='text'], input:not([type])").last
        field.fill(text)
        field.press("Enter")

    def choose(self, label: str, option: str) -> None:
        self.row(label).locator("input").first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def tick(self, label: str) -> None:
        self.row(label).locator("input[type='checkbox']").click()

    @contextmanager
    def downloading(self, file: Path) -> Iterator[None]:
        """What the block makes the page download is stored as ``file``."""
        with self.page.expect_download(timeout=1000 * PATIENCE) as download:
            yield
        download.value.save_as(file)
