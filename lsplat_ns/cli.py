"""The ``lsplat`` command. nerfstudio and the networks load only inside the subcommand that needs them."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional, Union

import tyro

from lsplat_ns.errors import ConfigError, LsplatError


@dataclass
class Demo:
    """Fly through a scene that a network predicted from two pictures.

    Makes demo scenes, trains latentsplat-tiny on them for a few minutes, and opens the nerfstudio viewer.
    """

    folder: Path = Path("demo")
    """Where scenes and model are kept; a second call starts at once."""
    render: Optional[Path] = None
    """Render a fly-through into this mp4 and exit, instead of opening the viewer."""
    steps: int = 600
    """Training steps of the tiny model."""
    port: int = 7007
    """Port of the viewer."""
    scene: Optional[str] = None
    """Scene to render, by id or number; by default the first test scene."""

    def run(self) -> int:
        """Run the demo."""
        from lsplat_ns.plugin.demo import run_demo

        run_demo(self.folder, self.steps, self.render, self.port, self.scene)
        return 0


@dataclass
class MakeScenes:
    """Make synthetic scenes in the layout of RealEstate10k (rooms) or CO3D (objects)."""

    output: tyro.conf.Positional[Path]
    """Folder to make; must not exist or be empty."""
    kind: Literal["rooms", "objects"] = "rooms"
    """Rooms with a gliding camera, or turntables around an object."""
    scenes: int = 20
    """Number of scenes."""
    frames: int = 60
    """Frames per scene."""
    size: str = "256x256"
    """Image size as HEIGHTxWIDTH."""
    seed: int = 0
    """The same seed makes the same files."""
    workers: int = 0
    """Processes; 0 takes one per core."""

    def run(self) -> int:
        """Make the scenes with a progress bar."""
        from rich.progress import Progress

        from lsplat_ns.data.demo_scenes import MakeScenesConfig, make_scenes

        config = MakeScenesConfig(
            output=self.output,
            kind=self.kind,
            scenes=self.scenes,
            frames=self.frames,
            size=_parse_size(self.size),
            seed=self.seed,
            workers=self.workers,
        )
        with Progress() as progress:
            task = progress.add_task(f"Making {self.kind}", total=self.scenes)
            folder = make_scenes(config, on_scene=lambda _: progress.advance(task))
        print(f"Wrote {self.scenes} scenes of {self.frames} frames to {folder}")
        return 0


@dataclass
class Doctor:
    """Say what of the installation works, and what to do about the rest. Exit code 0 when the demo can run."""

    def run(self) -> int:
        """Print the report."""
        from lsplat_ns.plugin.doctor import examine, report

        return report(examine())


@dataclass
class Import:
    """Make a run folder of a checkpoint of the original latentSplat code, for ns-viewer, ns-render and the rest.

    Nothing in the file is executed. Optimizer state is not taken over: training goes on with fresh optimizers.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Lightning checkpoint (.ckpt) or bare state dict of the original."""
    output: Path
    """Run folder to make; must not exist or be empty."""
    data: Optional[Path] = None
    """Scenes to look at: RealEstate10k chunks, or a capture with a transforms.json."""
    variant: Optional[str] = None
    """Method that the weights belong to; by default one that has their network."""
    steps: Optional[int] = None
    """Training steps behind the weights; by default what the file says, else a finished training."""

    def run(self) -> int:
        """Import and say what to call next."""
        from lsplat_ns.plugin.importing import import_checkpoint

        run = import_checkpoint(
            self.checkpoint, self.output, data=self.data, method=self.variant, steps_done=self.steps
        )
        print(f"Imported {self.checkpoint} as {run.method}, {run.steps_done} steps (without optimizer state)")
        if run.also_fitting:
            print(f"The same network also belongs to {', '.join(run.also_fitting)}; state one of them with --variant")
        print(f"Open it with: ns-viewer --load-config {run.config}")
        return 0


@dataclass
class Export:
    """Write the scene of a run for other viewers (.ply, .splat), or with everything it holds (.npz)."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder, or its config.yml."""
    output: Path
    """File to write, ending in .ply, .splat or .npz."""
    scene: Optional[str] = None
    """Scene by id or number; by default the one last shown."""
    keep_faint: bool = False
    """Also write Gaussians too faint to be drawn (.ply)."""

    def run(self) -> int:
        """Export and say how much."""
        from lsplat_ns.plugin.exporting import export_scene

        count = export_scene(self.run_folder, self.output, scene=self.scene, keep_faint=self.keep_faint)
        print(f"Wrote {count} Gaussians to {self.output}")
        if self.output.suffix != ".npz":
            print("Viewers draw the splatted colour; the decoded picture is sharper and cannot be put into this file.")
        return 0


@dataclass
class Bench:
    """Time the published model on this machine, beside what the original took on an H200. Random weights."""

    acceleration: Literal["off", "mixed", "compiled"] = "compiled"
    """off: float32; mixed: lower precision where it does no harm; compiled: mixed and compiled (GPU only)."""
    repeats: int = 20
    """Timed calls per row."""

    def run(self) -> int:
        """Print the table."""
        import torch

        from lsplat_ns.plugin.bench import print_benchmark

        print_benchmark("cuda" if torch.cuda.is_available() else "cpu", self.acceleration, self.repeats)
        return 0


Command = Union[
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[MakeScenes, tyro.conf.subcommand("make-scenes")],
    Annotated[Doctor, tyro.conf.subcommand("doctor")],
    Annotated[Import, tyro.conf.subcommand("import")],
    Annotated[Export, tyro.conf.subcommand("export")],
    Annotated[Bench, tyro.conf.subcommand("bench")],
]


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--size takes HEIGHTxWIDTH such as 256x256, not {text!r}")
    return int(parts[0]), int(parts[1])


def main() -> None:
    """Entry point: one line and exit code 1 for a user's error, 130 for Ctrl-C."""
    # Before torch loads: threads that wait should sleep. By default they spin, and where another program keeps a core
    # busy (a browser will do), every step on the CPU then takes twenty times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = tyro.cli(Command, prog="lsplat", description="latentSplat and MV-LDM for nerfstudio.")
    try:
        code = command.run()
    except LsplatError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
