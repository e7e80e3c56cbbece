"""The folder Look."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import Tensor

from lsplat_ns.errors import ConfigError
from lsplat_ns.plugin.drawing import ViewOptions
from lsplat_ns.plugin.viewer_panel.browser_splats import BrowserSplats
from lsplat_ns.plugin.viewer_panel.widgets import by_a_person, correct
from lsplat_ns.plugin.viewing import Draw

if TYPE_CHECKING:
    from viser import ClientHandle

    from lsplat_ns.fusion import FusedGaussians
    from lsplat_ns.plugin.scene_model import PredictedScene
    from lsplat_ns.plugin.viewer_panel.panel import ViewerPanel


class LookPart:
    """What of the scene is shown, and how."""

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        model, gui = panel.model, panel.viewer.viser_server.gui
        if model.config.compare_seed is None:
            model.config.compare_seed = 1
        self._splats = BrowserSplats(panel.viewer.viser_server.scene)
        self._sent: weakref.ref[PredictedScene] | None = None  # what the browsers draw
        self._layered_before: bool | None = None  # nerfstudio's Composite Depth, while browsers draw
        with gui.add_folder("Look", expand_by_default=False):
            self._confidence = gui.add_slider(
                "Hide below", 0.0, 1.0, 0.01, 0.0, hint="Pixels of a smaller confidence (1 - uncertainty) are hidden"
            )
            self._compare = gui.add_number(
                "Compare seed", model.config.compare_seed, min=0, step=1, hint="Output difference: against this draw"
            )
            self._decode = gui.add_checkbox("Decode while moving", False, hint="Slower, where decoding is slow")
            self._photos = gui.add_checkbox("From photos", True, hint="Gaussians that were predicted from photos")
            self._generated = gui.add_checkbox("From generated views", True, hint="Gaussians of generated views")
            self._tint = gui.add_checkbox("Tint both", False, hint="Photos blue, generated views orange; not decoded")
            self._in_browser = gui.add_checkbox(
                "Draw in browser",
                False,
                visible=self._splats.available,
                hint="Your browser draws the splatted colour; flying then needs no server",
            )
            self._explore = gui.add_button("Go where it knows least", hint="To the least certain view nearby")
            self._generate = gui.add_button("Generate there", visible=False, hint="As in the folder Generate")
        for handle in (self._confidence, self._decode, self._photos, self._generated, self._tint, self._in_browser):
            handle.on_update(by_a_person(lambda _: panel.rerender()))
        self._explore.on_click(
            lambda event: panel.draws.start_latest(lambda: self._go_where_it_knows_least(event.client), "explore")
        )
        self._generate.on_click(lambda event: panel.generate_part.begin_here(event.client))
        self._compare.on_update(by_a_person(lambda _: self._compare_with(int(self._compare.value))))

    def _go_where_it_knows_least(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.exploring import SIZE, least_certain_view

        panel = self.panel
        with panel.telling("Looking for the least certain view"):
            prediction = panel.prediction()
            found = least_certain_view(panel.model, prediction, panel.camera_of(client, SIZE), panel.viewer.train_lock)
            shown = panel.model.active_scene
            if shown is None or (shown.name, shown.choice) != (prediction.scene.name, prediction.scene.choice):
                raise ConfigError("another scene is shown by now; look for it there")
            if found is None:
                raise ConfigError("nothing of the scene is in sight here; go back to where it can be seen")
            panel.move(client, found.world_from_camera)
            self._generate.visible = True
            known = f"mean uncertainty {found.uncertainty:.2f}"
            panel.say("Least certain view nearby", f"{known}; Generate there asks MV-LDM what there may be")

    def follow(self) -> None:
        """Send what is shown to the browsers, if they draw it."""
        layered = self.panel.viewer.control_panel._layer_depth
        if self.drawn_by_browser:
            if self._layered_before is None:
                self._layered_before = layered.value
            # viser's depth ends at 168 of its units, and far splats would be behind the empty picture.
            layered.value = False
            self.panel.draws.start_latest(self._send_splats, "splats")
        elif self._splats.hide() and self._layered_before is not None:
            layered.value, self._layered_before = self._layered_before, None

    def follow_prediction(self, prediction: PredictedScene) -> None:
        """Send a scene to the browsers, if they draw and have another one; training predicts it anew."""
        if self.drawn_by_browser and (self._sent is None or self._sent() is not prediction):
            self._sent = weakref.ref(prediction)
            self.follow()

    def _send_splats(self) -> None:
        panel = self.panel
        with panel.telling("Sending splats"):
            prediction = panel.prediction()
            self._sent = weakref.ref(prediction)
            shown = panel.model.shown_gaussians(prediction)
            self._splats.show(shown, prediction.scene.network_from_nerfstudio.inverse())
            if not self.drawn_by_browser:  # they are no longer wanted
                self._splats.hide()

    def _compare_with(self, seed: int) -> None:
        try:
            self.panel.model.config.compare_seed = Draw("sample", seed).seed
            self.panel.rerender()
        except ConfigError as error:
            self.panel.say("Nothing to compare with", str(error), failed=True)
            correct(self._compare, lambda: self.panel.model.config.compare_seed)

    @property
    def decodes_while_moving(self) -> bool:
        """Whether slow decoding is wanted while the camera moves."""
        return self._decode.value

    @property
    def drawn_by_browser(self) -> bool:
        """Whether browsers draw the splats themselves."""
        return self._in_browser.value

    @property
    def tinted(self) -> bool:
        """Whether photos and generated views have colours of their own."""
        return self._tint.value

    def options(self) -> ViewOptions:
        """What is changed about views."""
        return ViewOptions(least_confidence=float(self._confidence.value))

    def kept(self, fused: FusedGaussians) -> Tensor | None:
        """A mask [G] of what is shown; None is everything."""
        if self._photos.value and self._generated.value:
            return None
        generated = fused.generated[0]
        return (generated & self._generated.value) | (~generated & self._photos.value)
