"""Photos as people have them: any common file format, any orientation, with or without a focal length in the EXIF."""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lsplat_ns.errors import ConfigError, MissingExtra, SceneDataError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF", "HEIF")
"""What is opened. Formats whose readers start other programs (EPS) are left out: a photo is not trusted."""
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
LONGEST_SIDE = 1600
"""Larger photos are reduced to this many pixels; the networks look at far less, and features are found well."""
DEFAULT_FOV_DEGREES = 65.0
"""Field of view across the longer side where nothing says it: about that of a phone's main camera."""
PLAUSIBLE_FOV_DEGREES = (5.0, 140.0)
FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
MM_PER_RESOLUTION_UNIT = {1: 25.4, 2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
"""EXIF units of resolution: inch (also where none is stated), centimetre, millimetre, micrometre."""
ASPECT_TOLERANCE = 0.02

FocalSource = Literal["stated", "EXIF", "assumed", "refined"]


@dataclass(frozen=True)
class Photo:
    """An upright picture with square pixels, no skew, and the principal point in its middle."""

    path: Path
    image: np.ndarray  # uint8 [height, width, 3], sRGB
    focal_px: float
    focal_source: FocalSource
    notes: tuple[str, ...] = ()  # what the user should know

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def fov_degrees(self) -> float:
        """Field of view across the longer side."""
        return fov_from_focal(self.focal_px / max(self.size))

    @property
    def intrinsics_px(self) -> np.ndarray:
        """Intrinsics [3, 3], float64; (0, 0) is the outer corner of the top-left pixel."""
        height, width = self.size
        return np.array([[self.focal_px, 0, width / 2], [0, self.focal_px, height / 2], [0, 0, 1]], dtype=np.float64)

    @property
    def intrinsics_norm(self) -> np.ndarray:
        """Intrinsics [3, 3] of an image that spans [0, 1] x [0, 1], float64."""
        height, width = self.size
        return self.intrinsics_px / [[width], [height], [1]]


def fov_from_focal(focal: float) -> float:
    """Field of view in degrees across a side, of a focal length in units of that side."""
    return math.degrees(2 * math.atan(0.5 / focal))


def focal_from_fov(degrees: float) -> float:
    """The inverse of :func:`fov_from_focal`."""
    return 0.5 / math.tan(math.radians(degrees) / 2)


def read_photo(path: Path, fov_degrees: float | None = None) -> Photo:
    """Read a photo: upright, in sRGB, transparency on white, at most :data:`LONGEST_SIDE` pixels.

    The focal length is the stated one, else that of the EXIF data, else an assumed one (with a note that says so).

    Args:
        path: A picture in one of :data:`FORMATS`; HEIC wants the package pillow-heif.
        fov_degrees: Field of view across the longer side; goes before EXIF.

    Raises:
        SceneDataError: If there is no such file, or it is no picture, broken or too large.
        MissingExtra: If it is HEIC and pillow-heif is not installed.
        ConfigError: If the stated field of view is impossible.
    """
    low, high = PLAUSIBLE_FOV_DEGREES
    if fov_degrees is not None and not low <= fov_degrees <= high:
        raise ConfigError(f"--fov is {fov_degrees:g}; the field of view must lie between {low:g} and {high:g} degrees")
    if not path.is_file():
        raise SceneDataError(f"no photo at {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=formats_of(path)) as picture:
                stored_size = picture.size
                exif = _exif(picture)
                frames = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1
                picture.draft(None, (LONGEST_SIDE, LONGEST_SIDE))
                image = _upright_srgb(picture)
        except Image.DecompressionBombError:
            raise SceneDataError(f"{path} has too many pixels (more than 170 million); scale it down") from None
        except Image.UnidentifiedImageError:
            raise SceneDataError(f"{path} is not a picture (or of a kind that is not read); save it as JPEG") from None
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise SceneDataError(f"cannot read {path}: {error}; save it anew as JPEG") from None
    notes = ["an animation or a series of pages, of which the first picture is taken"] if frames > 1 else []
    focal, source, note = _focal(fov_degrees, exif, stored_size)
    notes += [note] if note else []
    return Photo(path, image, focal * max(image.shape[:2]), source, tuple(notes))


def describe_photos(photos: Sequence[Photo]) -> list[str]:
    """Lines of a report: size and field of view of each photo, and warnings."""
    lines = [
        f"{photo.path.name}: {photo.size[1]}x{photo.size[0]} pixels, field of view {photo.fov_degrees:.1f} degrees "
        f"across the longer side ({photo.focal_source})"
        for photo in photos
    ]
    for note in dict.fromkeys(note for photo in photos for note in photo.notes):
        names = ", ".join(photo.path.name for photo in photos if note in photo.notes)
        lines.append(f"Warning: {names}: {note}")
    return lines


def formats_of(path: Path) -> list[str]:
    """The formats of :data:`FORMATS` to try; registers pillow-heif's where the file needs it.

    Raises:
        OSError: If the file cannot be read.
        MissingExtra: If it is HEIC and pillow-heif is not installed.
    """
    with path.open("rb") as file:
        head = file.read(12)
    Image.init()
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        try:
            import pillow_heif
        except ImportError:
            raise MissingExtra(f"{path} is a HEIC picture: pip install pillow-heif, or save it as JPEG") from None
        pillow_heif.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def _exif(picture: Image.Image) -> dict[int, object]:
    """The camera's EXIF tags; none where the block is broken."""
    try:
        return dict(picture.getexif().get_ifd(ExifTags.IFD.Exif))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return {}


def _upright_srgb(picture: Image.Image) -> np.ndarray:
    """Pixels uint8 [height, width, 3] with the longer side at most :data:`LONGEST_SIDE`."""
    profile = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(picture)
    if profile and picture.mode in ("RGB", "CMYK") and not picture.has_transparency_data:
        picture = _from_profile(picture, profile)
    picture = eight_bit_rgb(picture)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def eight_bit_rgb(picture: Image.Image) -> Image.Image:
    """A picture in mode RGB: 16 bits of grey become 8, transparency stands on white.

    Raises:
        ValueError: If its pixels are floating-point numbers.
    """
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no agreed brightness")
    if picture.mode.startswith("I"):  # 16 bits of grey; Pillow would clip them
        picture = Image.fromarray((np.asarray(picture, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    return picture.convert("RGB")


def _from_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    """The picture in sRGB; unchanged where its colour profile is broken."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture


def _focal(
    fov_degrees: float | None, exif: dict[int, object], stored_size: tuple[int, int]
) -> tuple[float, FocalSource, str]:
    """Focal length in units of the longer side, where it comes from, and a note or an empty string."""
    if fov_degrees is not None:
        return focal_from_fov(fov_degrees), "stated", ""
    focal, why = _focal_from_exif(exif, stored_size)
    if focal is not None:
        return focal, "EXIF", ""
    note = f"{why}: a field of view of {DEFAULT_FOV_DEGREES:g} degrees is assumed; state it with --fov"
    return focal_from_fov(DEFAULT_FOV_DEGREES), "assumed", note


def _focal_from_exif(exif: dict[int, object], stored_size: tuple[int, int]) -> tuple[float | None, str]:
    """Focal length in units of the longer side, or None and the reason.

    The 35 mm equivalent keeps the angle across the diagonal (CIPA DCG-001), so it serves any aspect ratio.
    """
    shorter, longer = sorted(stored_size)
    stated = [_positive(exif.get(tag)) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)]
    taken_shorter, taken_longer = sorted(stated) if all(stated) else (shorter, longer)
    if abs(longer / shorter * taken_shorter / taken_longer - 1) > ASPECT_TOLERANCE:
        return None, "cropped after it was taken, which makes the EXIF focal length useless"
    equivalent_mm = _positive(exif.get(ExifTags.Base.FocalLengthIn35mmFilm))
    focal_mm = _positive(exif.get(ExifTags.Base.FocalLength))
    per_unit = _positive(exif.get(ExifTags.Base.FocalPlaneXResolution))
    if equivalent_mm is not None:
        focal = equivalent_mm / FULL_FRAME_DIAGONAL_MM * math.hypot(shorter, longer) / longer
    elif focal_mm is not None and per_unit is not None:
        unit_mm = MM_PER_RESOLUTION_UNIT.get(exif.get(ExifTags.Base.FocalPlaneResolutionUnit, 2), 25.4)
        focal = focal_mm * per_unit / unit_mm / taken_longer
    else:
        return None, "no focal length in the EXIF data"
    low, high = PLAUSIBLE_FOV_DEGREES
    if not low <= fov_from_focal(focal) <= high:
        return (
            None,
            f"impossible focal length in the EXIF data (a field of view of {fov_from_focal(focal):.0f} degrees)",
        )
    return focal, ""


def _positive(value: object) -> float | None:
    """An EXIF number, or None where it is absent, zero or no number."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
