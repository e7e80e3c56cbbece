"""Writing videos, without an ffmpeg program: PyAV brings its own encoder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from lsplat_ns.errors import SceneDataError


def write_video(path: Path, frames: Iterable[np.ndarray], frames_per_second: int = 24) -> int:
    """Encode frames uint8 [height, width, 3] (even sides) as H.264.

    The file appears under its name when it is complete; an interrupted job leaves nothing behind.

    Returns:
        The number of frames.

    Raises:
        SceneDataError: If there is no frame, or the file cannot be written.
    """
    import av

    partial = path.with_name(f".{path.name}.partial.mp4")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(frames_per_second))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "16"}
            for frame in frames:
                if count == 0:
                    stream.height, stream.width = frame.shape[:2]
                for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                    container.mux(packet)
                count += 1
            for packet in stream.encode() if count else ():
                container.mux(packet)
        if count == 0:
            raise SceneDataError(f"no frame to write into {path}")
        os.replace(partial, path)
    except OSError as error:
        raise SceneDataError(f"cannot write {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return count
