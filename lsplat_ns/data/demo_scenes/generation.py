"""Makes whole demo data sets: builds, renders and writes scenes, in parallel, all or nothing."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import cv2

from lsplat_ns.data.demo_scenes.demo_scene import build_demo_scene
from lsplat_ns.data.demo_scenes.writers import CO3DWriter, Photographs, RealEstateWriter, SceneWriter, encode_jpeg
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.interrupts import children_leave_interrupts_to_us, termination_unwinds, termination_waits

SMALLEST_SIDE = 16
FEWEST_FRAMES = 4
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class MakeScenesConfig:
    """What to make, and where."""

    output: Path
    """Folder to create; it must not exist yet, or be empty."""
    kind: Literal["rooms", "objects"] = "rooms"
    """rooms: glides through furnished rooms, as RealEstate10k chunks. objects: orbits, in the layout of CO3D v2."""
    scenes: int = 20
    """Number of scenes. Scene i of a seed is the same however many there are."""
    frames: int = 60
    """Frames per scene."""
    size: tuple[int, int] = (256, 256)
    """Height and width in pixels."""
    seed: int = 0
    """Another seed, other scenes."""
    workers: int = 0
    """Processes; 0 takes one per core."""
    test_scenes: int | None = None
    """The last so many scenes form the test split; by default one in five. A single scene is in both splits."""

    def __post_init__(self) -> None:
        if self.kind not in ("rooms", "objects"):
            raise ConfigError(f"kind is {self.kind!r}; choose rooms or objects")
        if self.scenes < 1 or self.seed < 0 or self.workers < 0:
            raise ConfigError(
                f"scenes must be at least 1, seed and workers at least 0; "
                f"they are {self.scenes}, {self.seed} and {self.workers}"
            )
        if self.frames < FEWEST_FRAMES:
            raise ConfigError(f"frames is {self.frames}; a scene needs at least {FEWEST_FRAMES}")
        if min(self.size) < SMALLEST_SIDE:
            raise ConfigError(f"size is {self.size}; each side must have at least {SMALLEST_SIDE} pixels")
        if self.scenes > 1 and not 1 <= self.test_count < self.scenes:
            raise ConfigError(
                f"test_scenes is {self.test_scenes}; it must be at least 1 and below scenes={self.scenes}"
            )

    @property
    def test_count(self) -> int:
        """Number of scenes in the test split."""
        return max(1, self.scenes // 5) if self.test_scenes is None else self.test_scenes

    def splits_of(self, index: int) -> tuple[str, ...]:
        """The splits that hold scene ``index``."""
        if self.scenes == 1:
            return ("train", "test")
        return ("test",) if index >= self.scenes - self.test_count else ("train",)


def make_scenes(config: MakeScenesConfig, on_scene: Callable[[str], None] | None = None) -> Path:
    """Make a demo data set and return its folder.

    The same config gives the same bytes, whatever ``workers`` is. Everything is written to a temporary folder beside
    the output, which takes the output's name only once it is complete; it is removed if anything goes wrong, also on
    Ctrl-C and SIGTERM.

    Args:
        config: what to make.
        on_scene: called with each scene's id once it is written, in order.

    Returns:
        ``config.output``: for rooms with ``train/``, ``test/`` and ``evaluation_index.json``; for objects with
        ``hydrant/``, ``dataset_splits/`` and ``evaluation_index.json``.

    Raises:
        SceneDataError: the output is not an empty folder, or a worker process died.
    """
    with termination_unwinds():
        _make_scenes(config, on_scene)
    return Path(config.output)


def _make_scenes(config: MakeScenesConfig, on_scene: Callable[[str], None] | None) -> None:
    output = Path(config.output).absolute()
    _refuse_occupied(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    try:
        writer: SceneWriter = RealEstateWriter(partial) if config.kind == "rooms" else CO3DWriter(partial)
        for index, photographs in enumerate(_photograph_all(config)):
            writer.add(photographs, config.splits_of(index))
            if on_scene is not None:
                on_scene(photographs.key)
        writer.finish()
        _refuse_occupied(output)
        partial.chmod(0o777 & ~_umask())
        partial.replace(output)
    except BrokenProcessPool as error:
        raise SceneDataError(
            f"a worker process died while making scenes for {output}; nothing was kept; try fewer workers"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_occupied(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SceneDataError(f"{output} exists and is not an empty folder; choose another output or remove it")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _photograph_all(config: MakeScenesConfig) -> Iterator[Photographs]:
    """Every scene's frames in order, from this process or from workers."""
    workers = min(config.workers or os.cpu_count() or 1, config.scenes)
    if workers == 1:
        yield from (photograph(config, index) for index in range(config.scenes))
        return
    with _single_threaded_children():
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        try:
            with termination_waits(), children_leave_interrupts_to_us():  # map starts them
                photographs = pool.map(photograph, [config] * config.scenes, range(config.scenes))
            yield from photographs
        finally:
            pool.shutdown(cancel_futures=True)


def photograph(config: MakeScenesConfig, index: int) -> Photographs:
    """Build one scene and render all its frames, on one thread."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        scene = build_demo_scene(config.kind, config.seed, index, config.frames, config.size)
        jpegs = tuple(encode_jpeg(scene.frame(i).image) for i in range(config.frames))
    finally:
        cv2.setNumThreads(threads)
    return Photographs(scene.key, config.size, scene.cameras, jpegs)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """While it lasts, new processes start with one numerical thread each."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
