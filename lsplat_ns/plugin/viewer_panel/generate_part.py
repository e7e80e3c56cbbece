"""The folder Generate."""

from __future__ import annotations

import base64
import functools
import math
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.plugin.viewer_panel.layers_part import LayersPart
from lsplat_ns.plugin.viewer_panel.widgets import SAVED_PATH, ProgressRow, add_frustum, by_a_person
from lsplat_ns.wording import counted

if TYPE_CHECKING:
    from torch import Tensor
    from viser import CameraFrustumHandle, ClientHandle

    from lsplat_ns.plugin.active_scene import ActiveScene
    from lsplat_ns.plugin.generating import GenerationOptions
    from lsplat_ns.plugin.scene_generation import Generator, Proposal
    from lsplat_ns.plugin.viewer_panel.panel import ViewerPanel

HERE = "from here"
VIEWS = 3
"""Views that are asked for by default: with two photos as many as MV-LDM sees at once."""
MOST_GUIDANCE = 10.0
"""Where the slider ends."""
ACCEPTED, DECLINED = (255, 150, 60), (120, 130, 140)
"""Colours of frusta."""
SCORES = "Inconsistency with the neighbours; 0 is best, true pictures have about 0.1"


class GeneratePart:
    """Views that MV-LDM generates of what no photo shows, and the layers made of those that are accepted."""

    def __init__(self, panel: ViewerPanel) -> None:
        from lsplat_ns.plugin.generating import QUICK_SOLVER, QUICK_STEPS, guidance_of
        from lsplat_ns.plugin.scene_generation import MOST_VIEWS

        self.panel = panel
        on_gpu = panel.model.device.type == "cuda"
        self._generator: Generator | None = None
        self._proposal: Proposal | None = None
        self._proposed: list[Any] = []  # a checkbox for each view
        self._frusta: list[Any] = []
        self._deciding = threading.RLock()  # boxes, buttons and scene switches come on threads of their own
        gui, run = panel.viewer.viser_server.gui, panel.model.config.generator
        self._folder = gui.add_folder("Generate", expand_by_default=False)
        with self._folder:
            self._run = gui.add_text("MV-LDM run", "" if run is None else str(run), hint="Folder of an MV-LDM run")
            self._where = gui.add_dropdown(
                "Cameras", (HERE, SAVED_PATH), hint="This view and its neighbours, or views along a path"
            )
            self._count = gui.add_number("Views", VIEWS, min=1, max=MOST_VIEWS, step=1)
            self._solver = gui.add_dropdown(
                "Solver",
                ("ddim", "dpm-solver++", "unipc"),
                initial_value="ddim" if on_gpu else QUICK_SOLVER,
                hint="ddim is as published; others take 10 to 25 steps",
            )
            steps, hint = 70 if on_gpu else QUICK_STEPS, "70 of ddim is the published number"
            self._steps = gui.add_number("Steps", steps, min=1, max=1000, step=1, hint=hint)
            hint = "1 is none, and takes half the time; 3 is the published one"
            strength = min(guidance_of(run), MOST_GUIDANCE)
            self._guidance = gui.add_slider("Guidance", 0.0, MOST_GUIDANCE, 0.5, strength, hint=hint)
            self._seed = gui.add_number("Noise seed", 0, min=0, step=1)
            self._begin = gui.add_button("Generate", hint="The scene can be looked at meanwhile")
            self._progress = ProgressRow(gui, "Cancel generation")
            self._sheet = gui.add_markdown("", image_root=Path(), visible=False)
            self._lift = gui.add_button("Lift accepted views", visible=False, hint="Into the scene, as a layer")
            self._discard = gui.add_button("Discard all", visible=False)
            self._layers = LayersPart(panel)
        self._run.on_update(by_a_person(lambda _: self._propose_guidance()))
        self._begin.on_click(lambda event: self._start(event.client, self._where.value))
        self._lift.on_click(lambda _: self._wish_lift())
        self._discard.on_click(lambda _: self._forget_proposal(delete=True))
        self.follow_scene()

    # --------------------------------------------------------------------------------------------------- generating

    def _propose_guidance(self) -> None:
        """Follow what a run recommends, once a whole path is typed."""
        from lsplat_ns.plugin.generating import guidance_of
        from lsplat_ns.plugin.scene_generation import chosen_run

        with suppress(LsplatError, OSError, RuntimeError):  # a path that is being typed can be anything
            self._guidance.value = min(guidance_of(chosen_run(self._run.value)), MOST_GUIDANCE)

    def cancel(self) -> None:
        """Cancel the generation that runs, if one does."""
        self._progress.cancel()

    def discard_proposal(self) -> None:
        """Delete the views that nobody has decided about, when the program ends. The widgets are left alone."""
        with self._deciding:
            proposal, self._proposal = self._proposal, None
        if proposal is not None:
            proposal.discard()

    def begin_here(self, client: ClientHandle) -> None:
        """Generate what a tab looks at, and its neighbours."""
        self._start(client, HERE)

    def _start(self, client: ClientHandle, where: str) -> None:
        self.panel.begin("Generating", lambda: self._generate(client, where))

    def _generate(self, client: ClientHandle, where: str) -> None:
        """Runs on a thread of its own; the scene's lock is not taken, so that the viewer goes on drawing."""
        from lsplat_ns.plugin.scene_generation import Generator, chosen_run, generate_views, generation_task, propose

        panel, device = self.panel, self.panel.model.device
        run, options, scene = chosen_run(self._run.value), self._options(), panel.model.active_scene
        if scene is None:
            raise ConfigError("no scene is loaded")
        stood = client.camera.position
        task = generation_task(scene, self._poses(client, scene, where), run)
        self._generator = self._generator or Generator()
        model = self._generator.load(run, device)
        with self._progress.progressing() as progress:
            folder = generate_views(model, run, task, panel.run_dir, options, device=device, progress=progress)
        try:
            proposal = propose(scene, task, folder, device)
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)  # nobody can decide about them
            raise
        shown = panel.model.active_scene
        if shown is None or shown.name != scene.name:
            proposal.discard()
            raise LsplatError(f"{scene.name} is no longer shown; its generated views are discarded")
        self._show_proposal(proposal)
        if where == HERE and (client.camera.position == stood).all():  # else it looks out of the middle picture
            panel.step_back(client)
        panel.model.config.generator = run
        panel.say(f"{counted(len(proposal.views), 'view')} generated", "accept or discard them in the folder Generate")

    def _options(self) -> GenerationOptions:
        from lsplat_ns.diffusion.sampler import SamplingConfig
        from lsplat_ns.diffusion.schedule import SolverConfig
        from lsplat_ns.plugin.generating import GenerationOptions

        solver = SolverConfig(self._solver.value, int(self._steps.value))
        return GenerationOptions(sampling=SamplingConfig(solver, float(self._guidance.value), int(self._seed.value)))

    def _poses(self, client: ClientHandle, scene: ActiveScene, where: str) -> Tensor:
        from lsplat_ns.geometry.conventions import opencv_from_opengl
        from lsplat_ns.plugin.active_scene import context_baseline
        from lsplat_ns.plugin.scene_generation import poses_along, poses_here

        count = int(self._count.value)
        if where == SAVED_PATH:
            return poses_along(self.panel.saved_path(scene).cameras, count)
        camera = self.panel.camera_of(client, scene.preparation.image_size)
        pose = opencv_from_opengl(camera.camera_to_worlds.float().cpu())[0]
        return poses_here(pose, context_baseline(scene), count)

    # ------------------------------------------------------------------------------------------------------ deciding

    def _show_proposal(self, proposal: Proposal, accepted: tuple[int, ...] | None = None) -> None:
        """Show views to decide about; those at the given places are ticked, by default all."""
        from lsplat_ns.plugin.scene_generation import contact_sheet
        from lsplat_ns.plugin.taking_away import png_bytes

        with self._deciding:
            self._forget_proposal(delete=True)  # the one before
            self._proposal = proposal
            image = base64.b64encode(png_bytes(contact_sheet(proposal))).decode()
            self._sheet.content = f"![generated views](data:image/png;base64,{image})\n\n{SCORES}"
            with self._folder:
                for number, view in enumerate(proposal.views, start=1):
                    score = "not comparable" if math.isnan(view.error) else f"{view.error:.2f}"
                    ticked = accepted is None or number - 1 in accepted
                    order = self._sheet.order + number / (len(proposal.views) + 1)  # below the sheet, above the buttons
                    box = self.panel.viewer.viser_server.gui.add_checkbox(
                        f"View {number}: {score}", ticked, order=order
                    )
                    box.on_update(lambda _: self._draw_frusta())
                    self._proposed.append(box)
            for widget in (self._sheet, self._lift, self._discard):
                widget.visible = True
            self._draw_frusta()

    def _forget_proposal(self, *, delete: bool) -> None:
        with self._deciding:
            proposal, self._proposal = self._proposal, None
            for widget in (self._sheet, self._lift, self._discard):
                widget.visible = False
            for box in self._proposed:
                box.remove()
            self._proposed = []
            self._sheet.content = ""
            if delete and proposal is not None:
                proposal.discard()
            self._draw_frusta()

    def _draw_frusta(self) -> None:
        """Cameras of proposed views with their pictures."""
        with self._deciding:
            for handle in self._frusta:
                handle.remove()
            self._frusta = self._frusta_of_proposal()

    def _frusta_of_proposal(self) -> list[CameraFrustumHandle]:
        scene, drawn = self.panel.model.active_scene, []
        for number, (view, box) in enumerate(zip(self._views(), self._proposed, strict=False)):
            height, width = view.image.shape[-2:]
            handle = add_frustum(
                self.panel.viewer.viser_server.scene,
                f"/lsplat/generated/{number:03d}",
                # The frame of the viewer follows from the context views, which may be others by now.
                scene.nerfstudio_from_lasting.apply_to_poses(view.lasting_from_camera),
                fov_y=view.fov_y,
                aspect=width / height,
                scale=self.panel.frustum_scale,
                color=ACCEPTED if box.value else DECLINED,
                image=(view.image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy(),
            )
            handle.on_click(functools.partial(self._toggle, number))
            drawn.append(handle)
        return drawn

    def _views(self) -> tuple[Any, ...]:
        return () if self._proposal is None else self._proposal.views

    def _toggle(self, number: int, event: Any) -> None:
        if number < len(self._proposed):
            self._proposed[number].value = not self._proposed[number].value
            self._draw_frusta()

    # ------------------------------------------------------------------------------------------------------- lifting

    def _wish_lift(self) -> None:
        """What is ticked now is lifted when its turn comes."""
        with self._deciding:
            proposal, accepted = self._proposal, tuple(n for n, box in enumerate(self._proposed) if box.value)
        if proposal is not None:
            self.panel.scenes.start_latest(lambda: self._lift_views(proposal, accepted), "lift")

    def _lift_views(self, proposal: Proposal, accepted: tuple[int, ...]) -> None:
        with self.panel.telling("Lifting generated views"):
            if not accepted:
                raise ConfigError("no generated view is accepted; tick one")
            self._layers.require_shown(proposal.scene)
            with self._deciding:
                if self._proposal is not proposal:  # a second click, or discarded meanwhile
                    return
                self._forget_proposal(delete=False)  # now: what others discard meanwhile shall not be these
            try:
                layer = proposal.accept(accepted)
                self._layers.change(proposal.scene, lambda layers: (*layers, layer))
            except Exception:
                with self._deciding:
                    if self._proposal is None:
                        self._show_proposal(proposal, accepted)
                raise
            self.panel.say(
                f"{counted(len(accepted), 'view')} lifted", "Look shows and tints them apart from the photos"
            )

    def follow_scene(self) -> None:
        """Show the layers that the scene has, and forget views that were proposed for another one."""
        scene = self.panel.model.active_scene
        if self._proposal is not None and (scene is None or scene.name != self._proposal.scene):
            self._forget_proposal(delete=True)
        self._layers.follow_scene()
        self._draw_frusta()
