"""The folder Draw."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lsplat_ns.errors import ConfigError
from lsplat_ns.plugin.viewer_panel.widgets import by_a_person, correct, repeatable
from lsplat_ns.plugin.viewing import Draw

if TYPE_CHECKING:
    from viser import ClientHandle

    from lsplat_ns.plugin.active_scene import ActiveScene
    from lsplat_ns.plugin.viewer_panel.panel import ViewerPanel

DRAWS, DRAW_SIZE = 4, (96, 128)
"""The strip of draws: how many, and (height, width) of each."""


class DrawPart:
    """Which draw of the scene is shown, and a strip of others."""

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        self._seeds: list[int] = []  # of the strip
        self._strip_of: ActiveScene | None = None
        gui, draw = panel.viewer.viser_server.gui, panel.model.draw
        with gui.add_folder("Draw"):
            self._mode = gui.add_dropdown("Show", ("mode", "sample"), draw.mode, hint="Mode or a draw of the scene")
            self._seed = gui.add_number("Seed", initial_value=draw.seed, step=1, min=0)
            self._temperature = gui.add_slider(
                "Temperature", 0.0, 2.0, 0.05, draw.temperature, hint="Factor of the noise; 1 is what was learned"
            )
            self._resample = gui.add_button("Resample", hint="Another draw")
            self._strip_button = gui.add_button(f"{DRAWS} draws of this view")
            self._strip = gui.add_markdown("", image_root=Path(), visible=False)
            self._choice = repeatable(
                gui.add_button_group("Fly in", tuple(map(str, range(1, DRAWS + 1))), visible=False)
            )
        self._mode.on_update(by_a_person(lambda _: self._show()))
        self._seed.on_update(by_a_person(lambda _: self._show()))
        self._temperature.on_update(by_a_person(lambda _: self._show()))
        self._resample.on_click(lambda _: self._show_seed(random.randrange(2**31)))
        self._strip_button.on_click(
            lambda event: panel.draws.start_latest(lambda: self._draw_strip(event.client), "strip")
        )
        self._choice.on_click(lambda _: self._fly_in(int(self._choice.value) - 1))

    def _show_seed(self, seed: int) -> None:
        self._mode.value, self._seed.value = "sample", seed
        self._show()

    def _show(self) -> None:
        self.panel.draws.start_latest(self._redraw, "draw")

    def _redraw(self) -> None:
        model, fields = self.panel.model, (self._mode, self._seed, self._temperature)
        # Read here and not where it was clicked: clicks arrive on many threads, and the last values count.
        mode, seed, temperature = wished = tuple(field.value for field in fields)
        with self.panel.telling("Drawing the scene"), self.panel.viewer.train_lock:
            model.show_draw(mode, int(seed), float(temperature))
            model.prediction()
        # Also where the wished one could not be drawn the fields tell what is shown, unless they wish for yet another.
        for field, wish, name in zip(fields, wished, ("mode", "seed", "temperature"), strict=True):
            if wish != getattr(model.draw, name):
                correct(field, lambda name=name: getattr(model.draw, name), wish)
        self.panel.rerender()

    def _draw_strip(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.taking_away import png_bytes

        model, pictures = self.panel.model, []
        with self.panel.telling("Drawing the scene four times"):
            scene, temperature = model.active_scene, model.draw.temperature
            if scene is None:
                raise ConfigError("no scene is loaded")
            seeds = random.sample(range(1, 1000), DRAWS)
            camera = self.panel.camera_of(client, DRAW_SIZE).to(model.device)
            for seed in seeds:
                with self.panel.viewer.train_lock, model.evaluating():
                    prediction = model.predict(scene, Draw("sample", seed, temperature))
                    pictures.append(model.view(prediction, camera)["rgb"])
            gap = torch.ones(DRAW_SIZE[0], 4, 3, device=model.device)
            strip = torch.cat([part for picture in pictures for part in (picture, gap)][:-1], dim=1)
            image = base64.b64encode(png_bytes(strip)).decode()
            self._strip.content = f"![four draws](data:image/png;base64,{image})\n\nseeds {', '.join(map(str, seeds))}"
            self._seeds, self._strip_of = seeds, scene
            self._strip.visible = self._choice.visible = True
            if model.active_scene is not scene:  # switched meanwhile: what was asked for are draws of what is seen now
                self.forget_old_strip()
                self.panel.draws.start_latest(lambda: self._draw_strip(client), "strip")

    def forget_old_strip(self) -> None:
        """Take the strip away if it shows another scene than the active one."""
        if self._strip_of is not self.panel.model.active_scene:
            self._seeds, self._strip_of = [], None
            self._strip.visible = self._choice.visible = False

    def _fly_in(self, number: int) -> None:
        if number < len(self._seeds):
            self._show_seed(self._seeds[number])
