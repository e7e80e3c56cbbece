"""``lsplat export``: the active scene of a run as a file."""

from functools import partial
from pathlib import Path
from typing import Optional

from lsplat_ns.checkpoints.exports import write_npz, write_ply, write_splat
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.plugin.runs import read_run_config, where_it_lies
from lsplat_ns.plugin.scene_model import PredictedScene

WRITERS = (".ply", ".splat", ".npz")


def export_scene(config: Path, output: Path, *, scene: Optional[str] = None, keep_faint: bool = False) -> int:
    """Predict the active scene of a run and write it in nerfstudio's frame, as ``ns-export`` does.

    Args:
        config: The run's config.yml, or its folder. Checkpoints are those beside it, also where the run was moved.
        output: File ending in .ply, .splat or .npz. An npz keeps the network's frame, and the way to nerfstudio's.
        scene: Id or number of another scene; other tools go on with theirs.
        keep_faint: Write Gaussians too faint to be drawn into a PLY, too.

    Returns:
        Number of Gaussians written.

    Raises:
        ConfigError: If there is no such run, it is of another method, there is no such format, or ``output`` is a
            folder.
        SceneDataError: If there is no such scene, or the file cannot be written.
    """
    from nerfstudio.utils.eval_utils import eval_setup

    config, _ = read_run_config(config)
    if output.suffix not in WRITERS:
        raise ConfigError(f"--output must end in {', '.join(WRITERS)}, not {output.name!r}")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; name another file with --output")
    _, pipeline, _, _ = eval_setup(config, test_mode="inference", update_config_callback=partial(where_it_lies, config))
    model = pipeline.model
    prediction = model.prediction() if scene is None else model.predict(pipeline.find_scene(scene))
    if prediction is None:
        raise SceneDataError(f"the run at {config} has no scene to export")
    return write_scene(prediction, output, keep_faint=keep_faint)


def write_scene(prediction: PredictedScene, output: Path, *, keep_faint: bool = False) -> int:
    """Write a predicted scene in the format of the file's ending; arguments and result as for :func:`export_scene`."""
    to_nerfstudio = prediction.scene.network_from_nerfstudio.inverse()
    if output.suffix == ".npz":
        return write_npz(output, prediction.distribution, to_nerfstudio)
    if output.suffix == ".splat":
        return write_splat(output, prediction.gaussians, to_nerfstudio)
    return write_ply(output, prediction.gaussians, to_nerfstudio, keep="finite" if keep_faint else "visible")
