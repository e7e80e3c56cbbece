"""The folder of ``lsplat generate`` becomes a scene, without training: also as ``ns-train mvldm-latentsplat``."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Type

from nerfstudio.configs.base_config import PrintableConfig
from nerfstudio.utils.rich_utils import CONSOLE

from lsplat_ns.errors import SceneDataError
from lsplat_ns.plugin.encoding import CaptureEncoderConfig
from lsplat_ns.plugin.generated_folder import IMAGES, TRANSFORMS
from lsplat_ns.plugin.lifting import MOST_GENERATED, lift
from lsplat_ns.plugin.runs import PROVENANCE, free_folder
from lsplat_ns.plugin.trainer import one_line_errors

RUN_CONTENTS = ("config.yml", "dataparser_transforms.json", "nerfstudio_models", PROVENANCE)
"""Names in a run's folder, where the views are copied to as well."""


def lift_folder(run: Path, generated: Path, output: Path, *, most_generated: int = MOST_GENERATED) -> Path:
    """Lift the views of a folder that ``lsplat generate`` wrote (``lsplat_ns.plugin.lifting.lift``).

    Only cameras and images are copied into the new run, which may lie in the folder itself.

    Returns:
        The new run's config.yml.

    Raises:
        SceneDataError: If the folder holds no finished generation, or nothing can be lifted from it.
        ConfigError: If ``run`` is no run of a latentSplat method, or the output folder is in use.
    """
    if not (generated / TRANSFORMS).is_file():
        raise SceneDataError(f"no {TRANSFORMS} in {generated}; pass a folder in which lsplat generate has finished")
    with tempfile.TemporaryDirectory(prefix="lsplat-lift-") as folder:
        name = generated.resolve().name  # the scene's
        capture = Path(folder) / (f"{name}-views" if name in RUN_CONTENTS else name)
        capture.mkdir()
        shutil.copy(generated / TRANSFORMS, capture)
        shutil.copytree(generated / IMAGES, capture / IMAGES)
        return lift(run, capture, output, most_generated=most_generated)


@dataclass
class GeneratedViewsConfig(PrintableConfig):
    """The views, and how many of them are lifted."""

    data: Optional[Path] = None
    """Folder that lsplat generate wrote."""
    most_generated: int = MOST_GENERATED
    """Generated views that are lifted at most: those that show most of what nothing before them shows."""


@dataclass
class LiftedViewsConfig(PrintableConfig):
    """What is lifted. Everything else (networks, image size) is the trained run's."""

    datamanager: GeneratedViewsConfig = field(default_factory=GeneratedViewsConfig)
    """The views."""


@dataclass
class ViewLifterConfig(CaptureEncoderConfig):
    """A run without training, of the networks of another one and of generated views."""

    _target: Type = field(default_factory=lambda: ViewLifter)
    """target class to instantiate"""
    run: Optional[Path] = None
    """latentSplat run whose networks are used: the folder (or config.yml) that ns-train or lsplat import made."""
    pipeline: LiftedViewsConfig = field(default_factory=LiftedViewsConfig)
    """What is lifted."""

    @property
    def capture(self) -> Path:
        """The folder of the generated views."""
        return Path(self.pipeline.datamanager.data or ".")


class ViewLifter:
    """Stands where nerfstudio expects a trainer: "training" lifts the views and ends by itself."""

    def __init__(self, config: ViewLifterConfig, local_rank: int = 0, world_size: int = 1) -> None:
        self.config = config

    def setup(self) -> None:
        """Nothing is prepared: :meth:`train` opens the run."""

    def train(self) -> None:
        """Lift, write the run and say what to call next; Ctrl-C writes nothing and ends with exit code 130."""
        config = self.config
        try:
            with one_line_errors():
                folder = free_folder(config.get_base_dir())
                most = config.pipeline.datamanager.most_generated
                run_config = lift_folder(config.run, config.capture, folder, most_generated=most)
        except KeyboardInterrupt:
            CONSOLE.print("Stopped; nothing was written.")
            raise SystemExit(130) from None
        command = f"ns-viewer --load-config {shlex.quote(str(run_config))}"
        for line in (f"Wrote {run_config}", f"Open it with: {command}"):
            CONSOLE.print(line, soft_wrap=True, highlight=False, markup=False)
        if config.is_viewer_enabled():
            from lsplat_ns.plugin.demo import open_viewer

            open_viewer(run_config, config.viewer.websocket_port)
