"""The layers of lifted views, in the folder Generate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lsplat_ns.errors import ConfigError
from lsplat_ns.plugin.viewer_panel.widgets import add_frustum, by_a_person
from lsplat_ns.wording import counted

if TYPE_CHECKING:
    from lsplat_ns.plugin.generated_layers import GeneratedLayer
    from lsplat_ns.plugin.viewer_panel.panel import ViewerPanel

    Layers = tuple[GeneratedLayer, ...]

LIFTED = (190, 110, 40)
"""Colour of frusta."""


class LayersPart:
    """Layers of the scene that is shown: on or off, more or less opaque, and taken back.

    What is clicked is about what is seen then. When its turn comes another scene may be shown: nothing is done to that.
    """

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        self._frusta: list[Any] = []
        gui = panel.viewer.viser_server.gui
        self._layer = gui.add_dropdown("Layer", ("none",), visible=False, hint="Generated views lifted together")
        self._visible = gui.add_checkbox("Show layer", True, visible=False)
        self._opacity = gui.add_slider("Layer opacity", 0.0, 1.0, 0.05, 1.0, visible=False)
        self._undo = gui.add_button("Undo last layer", visible=False)
        self._layer.on_update(by_a_person(lambda _: self._show_chosen()))
        self._visible.on_update(by_a_person(lambda _: self._wish_visible(bool(self._visible.value))))
        self._opacity.on_update(by_a_person(lambda _: self._wish_opacity(float(self._opacity.value))))
        self._undo.on_click(lambda _: self._wish_undo())

    def change(self, scene: str, change: Callable[[Layers], Layers]) -> None:
        """Show a scene with other layers. Raises ConfigError if another one is shown by now."""
        panel = self.panel
        with panel.viewer.train_lock:
            self.require_shown(scene)
            shown = panel.model.active_scene
            panel.pipeline.show_scene(replace(shown, layers=change(shown.layers)))
        panel.generate_part.follow_scene()
        panel.rerender()

    def require_shown(self, scene: str) -> None:
        """Raise ConfigError if another scene is shown."""
        shown = self.panel.model.active_scene
        if shown is None or shown.name != scene:
            raise ConfigError(f"{scene} is no longer shown; go back to it first")

    def _wish_visible(self, visible: bool) -> None:
        if (found := self._chosen()) is None:
            return
        scene, layer = found

        def switch() -> None:
            with self.panel.telling("Encoding the scene"):
                self.change(scene, lambda layers: _replaced(layers, layer, visible=visible))

        self.panel.scenes.start_latest(switch, f"show {layer.folder}")

    def _wish_undo(self) -> None:
        scene = self.panel.model.active_scene
        if scene is None or not scene.layers:
            return
        last = scene.layers[-1].folder

        def undo() -> None:
            with self.panel.telling("Taking the last layer away"):
                self.change(scene.name, lambda layers: tuple(layer for layer in layers if layer.folder != last))

        self.panel.scenes.start_latest(undo, f"undo {last}")

    def _wish_opacity(self, opacity: float) -> None:
        if (found := self._chosen()) is not None:
            self.panel.draws.start_latest(lambda: self._fade(*found, opacity), f"fade {found[1].folder}")

    def _fade(self, scene: str, layer: GeneratedLayer, opacity: float) -> None:
        """Nothing is encoded anew for another opacity."""
        panel = self.panel
        with panel.viewer.train_lock:
            prediction = panel.model.prediction()
            if prediction is None or prediction.scene.name != scene:
                return
            shown = replace(prediction.scene, layers=_replaced(prediction.scene.layers, layer, opacity=opacity))
            panel.model.show(prediction.faded(shown))
            panel.pipeline.datamanager.show(shown)
        panel.rerender()

    def _number(self) -> int:
        """Of the layer that the widgets are about."""
        return self._layer.options.index(self._layer.value) if self._layer.value in self._layer.options else 0

    def _chosen(self) -> tuple[str, GeneratedLayer] | None:
        """The scene, and the layer that the widgets are about."""
        scene, number = self.panel.model.active_scene, self._number()
        return (scene.name, scene.layers[number]) if scene is not None and number < len(scene.layers) else None

    def follow_scene(self) -> None:
        """Show the widgets of the layers that the scene has, and their cameras."""
        scene = self.panel.model.active_scene
        layers = () if scene is None else scene.layers
        for widget in (self._layer, self._visible, self._opacity, self._undo):
            widget.visible = bool(layers)
        names = tuple(f"{number}: {counted(len(layer.video), 'view')}" for number, layer in enumerate(layers, start=1))
        if names and names != tuple(self._layer.options):
            self._layer.options = names
            self._layer.value = names[-1]
        self._show_chosen()
        self._draw_frusta()

    def _show_chosen(self) -> None:
        if (found := self._chosen()) is not None:
            self._visible.value, self._opacity.value = found[1].visible, found[1].opacity

    def _draw_frusta(self) -> None:
        """Cameras without their pictures: these would hide the scene."""
        for handle in self._frusta:
            handle.remove()
        scene, self._frusta = self.panel.model.active_scene, []
        for number, layer in enumerate(() if scene is None else scene.layers):
            poses = scene.nerfstudio_from_lasting.apply_to_poses(layer.video.world_from_camera)
            for view in range(len(poses) if layer.visible else 0):
                (height, width), focal = layer.video.read_size(view), float(layer.video.intrinsics_norm[view, 1, 1])
                handle = add_frustum(
                    self.panel.viewer.viser_server.scene,
                    f"/lsplat/layers/{number:03d}/{view:03d}",
                    poses[view],
                    fov_y=2 * math.atan(0.5 / focal),
                    aspect=width / height,
                    scale=0.6 * self.panel.frustum_scale,
                    color=LIFTED,
                )
                self._frusta.append(handle)


def _replaced(layers: Layers, changed: GeneratedLayer, **values: float) -> Layers:
    """The layers with other values of one of them, which is known by its folder."""
    return tuple(replace(layer, **values) if layer.folder == changed.folder else layer for layer in layers)
