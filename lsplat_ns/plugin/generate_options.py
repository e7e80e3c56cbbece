"""The options of ``lsplat generate``. Light: the command line reads them before anything else is loaded."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, Optional, Tuple, TypeVar

from lsplat_ns.errors import ConfigError

T = TypeVar("T")


@dataclass
class GenerateOptions:
    """What to generate, from what, and how."""

    checkpoint: Path
    """Run folder of MV-LDM: trained here, or made by lsplat import."""
    output: Path
    """Folder to make."""
    data: Optional[Path] = None
    """Dataset of the scene: RealEstate10k chunks, CO3D, or a capture with a transforms.json."""
    scene: Optional[str] = None
    """Scene id; or a number, which counts the scenes of the evaluation index (else of the dataset) from 0."""
    image: Tuple[Path, ...] = ()
    """One photo instead of a scene, or two of one place, a step apart."""
    context: Optional[Tuple[int, ...]] = None
    """Given frames of the scene; by default the first context frame of its entry in the evaluation index."""
    index: Optional[Path] = None
    """Evaluation index (JSON); by default the one that belongs to the data."""
    split: str = "test"
    """Split that holds the scene."""
    trajectory: Optional[Literal["scene", "between", "orbit", "dolly", "truck", "pan", "spiral"]] = None
    """Cameras: the scene's own (default with --scene), a line between two given views (default with two photos), or a
    path away from the first one (default with one photo: orbit)."""
    limit_frames: Optional[int] = None
    """Frames: the first so many of the scene's own cameras (default: all), or the length of a path (default: 40)."""
    reach: float = 0.5
    """How far dolly and truck go, and the radius of the spiral; training views are about 1 apart. Negative: back."""
    degrees: float = 20.0
    """Angle of orbit and pan; negative goes to the left."""
    pivot: float = 2.0
    """Distance of the point that orbit and spiral look at, in the same units as reach."""
    scale: Optional[float] = None
    """Factor on a scene's camera positions; by default 1 / the distance of the given frames, as in training. One given
    frame takes that of the two context frames of the scene's entry, or 1, as published, where the entry has one."""
    fov: Optional[float] = None
    """Field of view in degrees across the longer side of the photos; by default from EXIF."""
    size: Optional[str] = None
    """Size of the views as HEIGHTxWIDTH; by default what the model was trained at."""
    sampling: Literal["anchored", "autoregressive"] = "anchored"
    """Frames spread over the path first and the rest around them, or all in order."""
    num_anchors: Optional[int] = None
    """Frames that anchored sampling generates first; by default 4, or as many as there are."""
    views_per_group: int = 5
    """Given and generated views that the network sees at once; it was trained on 5."""
    solver: Literal["ddim", "dpm-solver++", "unipc"] = "ddim"
    """ddim is the published one; the others need 10 to 25 steps."""
    steps: int = 70
    """Steps of the solver per group of views."""
    guidance: Optional[float] = None
    """Strength of classifier-free guidance, 1 is none; by default the published 3, or what the run notes as better."""
    seed: int = 0
    """The same seed and options give the same views."""
    acceleration: Literal["off", "mixed", "compiled"] = "mixed"
    """off: float32; mixed: lower precision where it does no harm; compiled: mixed and compiled (GPU only)."""
    consistency: bool = True
    """Measure how well neighbouring views agree; needs neither weights nor true views."""
    met3r: bool = False
    """Measure MEt3R as well, by the package met3r where that is installed."""
    lift: Optional[Path] = None
    """Then make a scene of given and generated views, with the networks of this latentSplat run."""
    lift_output: Optional[Path] = None
    """Run folder of that scene; by default OUTPUT/lifted."""


def expanded(options: T) -> T:
    """A command's options with the home folder in paths that begin with ``~``: shells leave it in ``--output=~/views``.

    Raises:
        ConfigError: If a path names the home folder of nobody.
    """

    def of(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(of(part) for part in value)
        return value.expanduser() if isinstance(value, Path) else value

    try:
        return replace(options, **{option.name: of(getattr(options, option.name)) for option in fields(options)})
    except RuntimeError as error:
        raise ConfigError(f"a path begins with ~, but: {error}") from None
