"""Shared fixtures. Scenes and the trained run are made once per session, by the commands that users call."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see lsplat_ns.cli; before torch is imported
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # pytest -n: they and what they start share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest
import torch

if TYPE_CHECKING:
    from shown_run import Shown
    from viser_tab import Tab

BIN = Path(sys.executable).parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``pytest -n``: a file's tests stay in one process, so that what they share is made once.

    Files come in the order of collection. xdist would begin with those of the most tests, and end with the browser's.
    """
    from xdist.scheduler import LoadFileScheduling

    if config.getvalue("dist") != "load":  # another --dist was asked for
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped, with a reason, where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    code: int
    output: str  # stdout and stderr


def call(*command: object, cwd: Path, timeout: float = 600, path: str | None = None) -> Outcome:
    """Run one of the installed commands (``ns-train``, ``lsplat``, ...) as a user would."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTEST_CURRENT_TEST", None)
    environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}" if path is None else path
    program = BIN / str(command[0])
    process = subprocess.run(
        [str(program), *(str(part) for part in command[1:])],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Outcome(process.returncode, process.stdout + process.stderr)


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small demo scenes in RealEstate10k layout."""
    folder = tmp_path_factory.mktemp("data") / "rooms"
    outcome = call(
        "lsplat",
        "make-scenes",
        folder,
        "--scenes",
        4,
        "--frames",
        14,
        "--size",
        "64x96",
        "--seed",
        3,
        cwd=folder.parent,
    )
    assert outcome.code == 0, outcome.output
    return folder


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small turntables in CO3D's layout: one to train on, one to test."""
    folder = tmp_path_factory.mktemp("data") / "objects"
    outcome = call(
        "lsplat", "make-scenes", folder, "--kind", "objects", "--scenes", 2, "--frames", 16, "--size", "64x80",
        "--seed", 3, cwd=folder.parent,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    return folder


@dataclass(frozen=True)
class Run:
    """A trained run of latentsplat-tiny."""

    cwd: Path  # where the commands are to be called
    folder: Path
    output: str  # what ns-train printed

    @property
    def config(self) -> Path:
        return self.folder / "config.yml"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "nerfstudio_models"


@pytest.fixture(scope="session")
def trained(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``ns-train latentsplat-tiny`` for 20 steps, without any flag for the device."""
    cwd = tmp_path_factory.mktemp("train")
    outcome = call(
        "ns-train", "latentsplat-tiny", "--data", rooms, "--max-num-iterations", 20, "--vis", "tensorboard",
        "--logging.steps-per-log", 1, "--experiment-name", "rooms", "--timestamp", "first", cwd=cwd,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    return Run(cwd, cwd / "outputs" / "rooms" / "latentsplat-tiny" / "first", outcome.output)


@pytest.fixture(scope="session")
def unseen_rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two of the scenes that the shipped weights are measured on, as test scenes."""
    from lsplat_ns.data.demo_scenes import make_scenes
    from lsplat_ns.plugin.demo_recipes import HELD_OUT_SCENES

    folder = tmp_path_factory.mktemp("data") / "unseen"
    return make_scenes(replace(HELD_OUT_SCENES, output=folder, scenes=3, test_scenes=2))


@pytest.fixture(scope="session")
def shipped(unseen_rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that ``lsplat demo`` shows."""
    from lsplat_ns.plugin.demo import prediction_run

    cwd = tmp_path_factory.mktemp("shipped")
    return Run(cwd, prediction_run(cwd / "run", unseen_rooms).parent, "")


@pytest.fixture(scope="module")
def mvldm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small MV-LDM that is not trained."""
    from untrained_runs import write_untrained_mvldm

    return write_untrained_mvldm(tmp_path_factory.mktemp("mvldm") / "run")


@pytest.fixture(scope="module")
def shown(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A run in nerfstudio's viewer, for the tests of one file."""
    from shown_run import Shown

    shown = Shown(rooms, tmp_path_factory.mktemp("shown") / "run")
    yield shown
    shown.close()


@pytest.fixture
def tab(shown: Shown) -> Iterator[Tab]:
    """A tab of that viewer, in its first scene."""
    tab = shown.tab()
    yield tab
    tab.close()
