"""HTML pages that need nothing but themselves: styles, scripts and pictures are inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.evaluation.metrics import METRICS
from lsplat_ns.wording import counted

JPEG_QUALITY = 88


def write_page(template: str, path: Path, **values: Any) -> None:
    """Fill a template of ``assets`` and write it, whole or not at all. All values are escaped.

    Raises:
        SceneDataError: If the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lsplat_ns", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["counted"] = counted
    text = environment.get_template(template).render(**values)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_picture(path: Path) -> np.ndarray | None:
    """A picture as uint8 [height, width, 3]; None where there is none to read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError:
        return None


def embedded(picture: np.ndarray | None, longest_side: int = 384) -> str:
    """A picture uint8 [height, width, 3] as data URI, scaled down to a longest side; empty for None."""
    from PIL import Image

    if picture is None:
        return ""
    image = Image.fromarray(picture)
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a kind (MIME type) as a URI that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def number(metric: str, value: float | None) -> str:
    """A value of a metric with its usual digits; a dash for none."""
    return "–" if value is None else f"{value:.{METRICS[metric].digits}f}"


def metric_columns(metrics: Sequence[str]) -> list[dict[str, str]]:
    """Headings of metric columns."""
    return [{"label": METRICS[name].label, "arrow": "↑" if METRICS[name].higher_is_better else "↓"} for name in metrics]


def sortable(metric: str, value: float | None) -> dict[str, str]:
    """A cell of a sortable table."""
    return {"text": number(metric, value), "value": "" if value is None else f"{value:.6g}"}


def milliseconds(seconds: float | None) -> str:
    """A time in milliseconds; a dash for none."""
    return "–" if seconds is None else f"{1000 * seconds:.3g} ms"
