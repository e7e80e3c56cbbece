"""The ``lsplat`` command. nerfstudio and the networks load only inside the subcommand that needs them."""

import os
import shlex
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Optional, Tuple, Union

import tyro

from lsplat_ns.data.evaluation_rule import EvaluationIndexConfig
from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.interrupts import note_interrupts
from lsplat_ns.plugin.generate_options import GenerateOptions
from lsplat_ns.plugin.measuring_commands import Bench, BenchGeneration, BenchTraining, Compare, Evaluate
from lsplat_ns.wording import counted


@dataclass
class Demo:
    """Fly through rooms that a small network, which comes with the package, predicts from two pictures."""

    folder: Path = Path("demo")
    """Where scenes and runs are kept; a second call starts at once."""
    render: Optional[Path] = None
    """Render a fly-through into this mp4 and exit, instead of opening the viewer."""
    picture: Optional[Path] = None
    """Draw photos, a novel view, depth, uncertainty and, where the package has a generator, a generated view into this
    PNG and exit."""
    port: int = 7007
    """Port of the viewer."""
    scene: Optional[str] = None
    """Scene to show, by id or number; by default the one last shown, at first the first one."""

    def run(self) -> int:
        """Run the demo."""
        from lsplat_ns.plugin.demo import run_demo

        run_demo(self.folder, self.render, self.picture, self.port, self.scene)
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
    test_scenes: Optional[int] = None
    """How many of them, the last ones, form the test split; by default one in five."""
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
            test_scenes=self.test_scenes,
        )
        with Progress() as progress:
            task = progress.add_task(f"Making {self.kind}", total=self.scenes)
            folder = make_scenes(config, on_scene=lambda _: progress.advance(task))
        print(f"Wrote {counted(self.scenes, 'scene')} of {self.frames} frames to {folder}")
        return 0


@dataclass
class Index:
    """Build or repair the index.json files of RealEstate10k chunks, or draw an evaluation index.

    Only scene ids are read of the chunks. Scenes in broken chunks are left out and named. An index is replaced in one
    step; one that is right is left alone.
    """

    data: tyro.conf.Positional[Path]
    """Dataset folder: RealEstate10k chunks; with --evaluation also CO3D."""
    evaluation: bool = False
    """Draw context pairs and targets for evaluation by the published rule instead."""
    output: Optional[Path] = None
    """Evaluation index to make; by default evaluation_index.json in the dataset folder. Must not exist."""
    split: str = "test"
    """Split that the evaluation index is made for."""
    rule: Annotated[EvaluationIndexConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationIndexConfig)
    """Options of the evaluation index."""

    def run(self) -> int:
        """Write the index files and say what they hold."""
        if self.evaluation:
            from lsplat_ns.data.evaluation_index import write_evaluation_index
            from lsplat_ns.data.published_indices import OWN_NAME

            index = write_evaluation_index(self.data, self.split, self.rule, self.output)
            print(f"Wrote {self.output or self.data / OWN_NAME}: {index.describe()}")
            return 0
        if self.output is not None or self.split != "test" or self.rule != EvaluationIndexConfig():
            raise ConfigError("these options shape an evaluation index; add --evaluation")
        from lsplat_ns.data.indexing import describe, index_dataset

        failures = index_dataset(self.data, lambda result: print(*describe(result), sep="\n"))
        for failure in failures:
            print(f"error: {failure}", file=sys.stderr)
        return 1 if failures else 0


@dataclass
class Inspect:
    """Say what a dataset holds and what is wrong with it, and draw its scenes and cameras. Exit code 1 if anything is.

    Reads RealEstate10k chunks, CO3D, and captures with a transforms.json.
    """

    data: tyro.conf.Positional[Path]
    """Dataset folder."""
    deep: bool = False
    """Decode every frame, instead of reading its header."""
    size: str = "256x256"
    """Image size of the method as HEIGHTxWIDTH; smaller frames are reported."""
    all: bool = False
    """List every bad item, not only the first 20."""
    sheet: Path = Path("contact_sheet.png")
    """Picture to write: frames and camera frusta; evaluation views are coloured."""
    scenes: int = 8
    """Scenes in the picture; 0 writes none."""

    def run(self) -> int:
        """Inspect, report and draw."""
        if self.scenes < 0:
            raise ConfigError(f"scenes must be 0 or more, but is {self.scenes}")
        from lsplat_ns.data.inspection import InspectionConfig
        from lsplat_ns.plugin.inspecting import inspect_dataset

        config = InspectionConfig(image_size=_parse_size(self.size), deep=self.deep)
        most_items = None if self.all else 20
        bad = inspect_dataset(self.data, config, sheet=self.sheet, scenes=self.scenes, most_items=most_items)
        return 1 if bad else 0


@dataclass
class TrainDemo:
    """Train one of the two demo models on generated rooms and write its weights as the package ships them.

    Meant for a GPU. Ctrl-C saves, and the same command goes on; the weights so far are written as well, to start
    another training from.
    """

    system: tyro.conf.Positional[Literal["latentsplat", "mvldm"]]
    """latentsplat: from two views to a scene; mvldm: from one or two views to others."""
    folder: Path = Path("train-demo")
    """Where scenes, run and weights are kept."""
    steps: Optional[int] = None
    """Training steps in all; by default 7500 of latentSplat (14 minutes on an H100), 12000 of MV-LDM (18 minutes)."""

    initial_weights: Optional[Path] = None
    """Weights to start from, as this command writes them; of MV-LDM only the denoiser is then trained."""

    def run(self) -> int:
        """Train, and say where the weights are."""
        from lsplat_ns.plugin.demo_recipes import STEPS
        from lsplat_ns.plugin.train_demo import train_demo

        steps = self.steps or STEPS[self.system]
        print(f"Wrote {train_demo(self.system, self.folder, steps, self.initial_weights)}")
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
    """Make a run folder of a checkpoint of the original latentSplat or MV-LDM; the file's keys tell which.

    A run of latentSplat is for ns-viewer, ns-render and the rest. Nothing in the file is executed. Optimizer state is
    not taken over: training goes on with fresh optimizers.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Lightning checkpoint (.ckpt) or bare state dict of the original."""
    output: Path
    """Run folder to make; must not exist or be empty."""
    data: Optional[Path] = None
    """Scenes to look at: RealEstate10k chunks, CO3D, or a capture with a transforms.json."""
    variant: Optional[str] = None
    """Method that the weights belong to; by default one that has their network."""
    steps: Optional[int] = None
    """Training steps behind the weights; by default what the file says, else a finished training."""
    autoencoder: Optional[Path] = None
    """MV-LDM only: weights of Stable Diffusion 2.1's autoencoder, where the checkpoint has none."""

    def run(self) -> int:
        """Import and say what to call next."""
        from rich.console import Console

        from lsplat_ns.plugin.importing import import_checkpoint

        with Console(stderr=True).status(f"Importing {self.checkpoint}"):
            run = import_checkpoint(
                self.checkpoint,
                self.output,
                data=self.data,
                method=self.variant,
                steps_done=self.steps,
                autoencoder=self.autoencoder,
            )
        print(
            f"Imported {self.checkpoint} as {run.method}, {counted(run.steps_done, 'step')} (without optimizer state)"
        )
        if run.method == "mvldm":
            folder = shlex.quote(str(run.folder))
            print(f"Generate views with: lsplat generate --checkpoint {folder} --image PHOTO --output views")
            return 0
        if run.also_fitting:
            print(f"The same network also belongs to {', '.join(run.also_fitting)}; state one of them with --variant")
        print(f"Open it with: ns-viewer --load-config {shlex.quote(str(run.config))}")
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
class Reconstruct:
    """Make a scene of two photos without poses, and fly through it.

    Finds the second camera's pose from matching points, says how sure it is, and opens the viewer on a new run. Refuses
    photos that were taken from one place, too far apart, or of different things.
    """

    photos: tyro.conf.Positional[Tuple[Path, ...]]
    """Two photos of one place, a step apart; more with pip install 'lsplat-ns[colmap]'."""
    checkpoint: Path
    """Run whose network looks at them: trained here, or made by lsplat import."""
    output: Path
    """Run folder to make; must not exist or be empty."""
    fov: Optional[float] = None
    """Field of view in degrees across the longer side of the photos; by default from EXIF."""
    render: Optional[Path] = None
    """Render a fly-through into this mp4 and exit, instead of opening the viewer."""
    view: bool = True
    """Open the viewer. Without it, the new run is only written."""
    port: int = 7007
    """Port of the viewer."""

    def run(self) -> int:
        """Reconstruct, then render or view."""
        from lsplat_ns.plugin.demo import open_viewer, render_fly_through
        from lsplat_ns.plugin.reconstructing import reconstruct
        from lsplat_ns.plugin.trainer import is_port_free

        viewing = self.view and self.render is None
        if viewing and not is_port_free(self.port):
            raise ConfigError(f"port {self.port} is in use; choose another with --port")
        config = reconstruct(self.photos, self.checkpoint, self.output, fov_degrees=self.fov)
        print(f"Wrote the run {config.parent}\nOpen it with: ns-viewer --load-config {shlex.quote(str(config))}")
        if self.render is not None:
            render_fly_through(config, self.render)
        elif viewing:
            open_viewer(config, self.port)
        return 0


@dataclass
class Generate(GenerateOptions):
    """Generate views by MV-LDM from a scene's frame or a photo: PNG frames, video, contact sheet, transforms.json.

    Shows the time left; after Ctrl-C the same command goes on. Any nerfstudio method trains on the folder.
    """

    def run(self) -> int:
        """Generate, say what was written, lift."""
        from lsplat_ns.plugin.generate_command import run_generate

        run_generate(self, None if self.size is None else _parse_size(self.size))
        return 0


@dataclass
class BenchData:
    """Time how fast training data are prepared, what the time goes into, and the straightforward path beside it."""

    data: tyro.conf.Positional[Path]
    """Folder with train/ in the layout of RealEstate10k."""
    size: str = "256x256"
    """Size of the network's images as HEIGHTxWIDTH."""
    workers: int = 2
    """Loader processes; 0 loads in this one."""
    seconds: float = 6.0
    """How long each of the two paths is measured, three times in turn; the best counts."""

    def run(self) -> int:
        """Print the tables."""
        from lsplat_ns.data.benchmark import print_data_benchmark

        print_data_benchmark(self.data, _parse_size(self.size), self.workers, self.seconds)
        return 0


Command = Union[
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[MakeScenes, tyro.conf.subcommand("make-scenes")],
    Annotated[Index, tyro.conf.subcommand("index")],
    Annotated[Inspect, tyro.conf.subcommand("inspect")],
    Annotated[TrainDemo, tyro.conf.subcommand("train-demo")],
    Annotated[Doctor, tyro.conf.subcommand("doctor")],
    Annotated[Import, tyro.conf.subcommand("import")],
    Annotated[Export, tyro.conf.subcommand("export")],
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")],
    Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
    Annotated[Compare, tyro.conf.subcommand("compare")],
    Annotated[Generate, tyro.conf.subcommand("generate")],
    Annotated[Bench, tyro.conf.subcommand("bench")],
    Annotated[BenchData, tyro.conf.subcommand("bench-data")],
    Annotated[BenchTraining, tyro.conf.subcommand("bench-training")],
    Annotated[BenchGeneration, tyro.conf.subcommand("bench-generation")],
]


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--size takes HEIGHTxWIDTH such as 256x256, not {text!r}")
    return int(parts[0]), int(parts[1])


def main() -> None:
    """Entry point: one line and exit code 1 for a user's error, 130 for Ctrl-C."""
    # Before torch loads: threads that wait should sleep. By default they spin, and where another program keeps a core
    # busy (a browser will do), every step on the CPU then takes twenty times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.warnoptions:  # what other packages will have to change is no news for whoever runs a command
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|torchmetrics|nerfstudio|gsplat)\.")
    try:
        note_interrupts()
        command = tyro.cli(Command, prog="lsplat", description="latentSplat and MV-LDM for nerfstudio.")
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
