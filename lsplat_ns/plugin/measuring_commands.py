"""Those commands of ``lsplat`` that measure: quality, and speed. Networks and nerfstudio load only when one runs."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, Optional, Tuple

import tyro

from lsplat_ns.errors import ConfigError


@dataclass(frozen=True)
class ScoredGeneration:
    """What is generated of each scene, and how, where the run is one of MV-LDM."""

    given: Tuple[int, ...] = (1, 2)
    """MV-LDM: numbers of given views, the first ones of a scene's entry; each is evaluated by itself."""
    frames: int = 8
    """MV-LDM: views to generate per scene, spread over the path of its entry."""
    sampling: Literal["anchored", "autoregressive"] = "anchored"
    """MV-LDM: views spread over the path first and the rest around them, or all in order."""
    solver: Literal["ddim", "dpm-solver++", "unipc"] = "dpm-solver++"
    """MV-LDM: ddim is the published one, and needs 70 steps."""
    steps: int = 12
    """MV-LDM: steps of the solver per group of views."""
    guidance: Optional[float] = None
    """MV-LDM: strength of classifier-free guidance, 1 is none; by default the published 3, or what the run notes as
    better."""
    scale: Optional[float] = None
    """MV-LDM: factor on camera positions; by default 1 / the distance of an entry's first two context views, as in
    training, also where one view is given (the original then takes 1)."""


@dataclass
class Evaluate:
    """Score a run over an evaluation index, and write numbers and pictures.

    A run of latentSplat is scored as published, with an HTML report. A run of MV-LDM generates views of every scene,
    which are compared with the true ones and with each other. Results are written scene by scene; after Ctrl-C the same
    command goes on. Metrics whose weights are not on this machine are named and left out.
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder, or its config.yml."""
    output: Path
    """Folder for summary.json and pictures; and for the report (index.html) and results.jsonl of latentSplat."""
    index: Optional[Path] = None
    """Evaluation index (JSON); by default the one that belongs to the data."""
    data: Optional[Path] = None
    """Dataset to evaluate on; by default the run's, but MV-LDM wants it stated."""
    sample: int = 1
    """Draws of everything random per entry, over which metrics are averaged; the papers draw once. 0 takes modes."""
    seed: int = 0
    """Seed of the draws; each entry derives its own."""
    illustrated: int = 24
    """Scenes, evenly spread, that get a page with pictures, depth, uncertainty and cameras."""
    video: Tuple[Literal["interpolation", "wobble", "fly-through"], ...] = ()
    """Camera paths of the original's validation to film in the illustrated scenes."""
    most_entries: Optional[int] = None
    """Evaluate at most this many entries (scenes, of MV-LDM), evenly spread."""
    fid: bool = True
    """Measure FID and KID, too, where Inception's weights are on this machine."""
    generation: Annotated[ScoredGeneration, tyro.conf.arg(name="")] = field(default_factory=ScoredGeneration)
    """Options for runs of MV-LDM."""

    def run(self) -> int:
        """Evaluate, print the table and say where the results are."""
        from lsplat_ns.checkpoints.mvldm_runs import is_mvldm_run

        if is_mvldm_run(self.run_folder):
            return self._evaluate_generation()
        self._refuse_changed(self.generation, "MV-LDM")
        from lsplat_ns.plugin.evaluating import EvaluationOptions, evaluate_run

        options = EvaluationOptions(
            self.index,
            self.data,
            self.sample,
            self.seed,
            illustrated=self.illustrated,
            video=self.video,
            most_entries=self.most_entries,
            distances=self.fid,
        )
        evaluate_run(self.run_folder, self.output, options)
        return 0

    def _evaluate_generation(self) -> int:
        self._refuse_changed(self, "latentSplat", ("sample", "illustrated", "video", "fid"))
        from lsplat_ns.plugin.evaluating_generation import evaluate_generation

        evaluate_generation(self)
        return 0

    def _refuse_changed(self, options: object, system: str, names: Optional[Tuple[str, ...]] = None) -> None:
        """Raise ConfigError where an option is stated that another system's runs have."""
        for option in fields(options):
            if (names is None or option.name in names) and getattr(options, option.name) != option.default:
                raise ConfigError(f"--{option.name} is for runs of {system}, which {self.run_folder} is not")


@dataclass
class Compare:
    """Put two runs side by side, entry by entry: differences with intervals, plots and pictures.

    Runs are evaluated first (Ctrl-C and the same command go on); folders of lsplat evaluate are taken as they are.
    """

    run_a: tyro.conf.Positional[Path]
    """Run folder, its config.yml, or the folder of an evaluation."""
    run_b: tyro.conf.Positional[Path]
    """The same of the other one."""
    output: Path
    """Folder for the page (index.html), comparison.json, and the evaluations of runs."""
    index: Optional[Path] = None
    """Evaluation index (JSON) for both runs; by default the one that belongs to each run's data."""
    data: Optional[Path] = None
    """Dataset to evaluate both on; by default each run's."""
    illustrated: int = 12
    """Entries shown in pictures, those that differ most; also scenes illustrated in the evaluations."""
    most_entries: Optional[int] = None
    """Evaluate at most this many entries, evenly spread."""

    def run(self) -> int:
        """Evaluate what is missing, compare, print the table."""
        from lsplat_ns.plugin.comparing import compare_runs
        from lsplat_ns.plugin.evaluating import EvaluationOptions

        options = EvaluationOptions(self.index, self.data, illustrated=self.illustrated, most_entries=self.most_entries)
        compare_runs(self.run_a, self.run_b, self.output, options)
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


@dataclass
class BenchTraining:
    """Time training steps of a published model, and their memory, beside what the original took on an H200."""

    model: Literal["latentsplat", "mvldm"] = "latentsplat"
    """Which model. The original MV-LDM was not measured: its step stands beside a straightforward float32 one."""
    repeats: int = 10
    """Timed steps per row."""

    def run(self) -> int:
        """Print the table."""
        if self.model == "mvldm":
            from lsplat_ns.plugin.bench_mvldm_training import print_mvldm_training_benchmark

            print_mvldm_training_benchmark(self.repeats)
            return 0
        from lsplat_ns.plugin.bench_training import print_training_benchmark

        print_training_benchmark(self.repeats)
        return 0


@dataclass
class BenchGeneration:
    """Time the generation of four views with the published MV-LDM, beside what the original took on an H200."""

    repeats: int = 5
    """Timed calls per row."""
    memory_gb: Optional[float] = None
    """Use so much of the GPU's memory only, as if it had no more."""

    def run(self) -> int:
        """Print the table."""
        from lsplat_ns.plugin.bench_generation import print_generation_benchmark

        print_generation_benchmark(self.repeats, self.memory_gb)
        return 0
