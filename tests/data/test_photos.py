"""Reading photos as people have them."""

from __future__ import annotations

import io
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from lsplat_ns.data.photos import DEFAULT_FOV_DEGREES, LONGEST_SIDE, describe_photos, read_photo
from lsplat_ns.errors import ConfigError, MissingExtra, SceneDataError

Tag = ExifTags.Base


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Red at the top left, green at the top right, blue at the bottom left, grey at the bottom right."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 2, : width // 2] = (200, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 200, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 200)
    return Image.fromarray(pixels)


def with_exif(path: Path, tags: dict[int, object], orientation: int | None = None, size: tuple = (60, 40)) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[Tag.Orientation] = orientation
    camera = exif.get_ifd(ExifTags.IFD.Exif)
    camera.update(tags)
    picture(*size).save(path, exif=exif, quality=100, subsampling=0)
    return path


# ------------------------------------------------------------------------------------------------- focal length


def test_the_35_mm_focal_length_is_an_angle_across_the_diagonal(tmp_path: Path) -> None:
    wide = read_photo(with_exif(tmp_path / "a.jpg", {Tag.FocalLengthIn35mmFilm: 36}))  # 3:2, as the film
    assert wide.focal_px == pytest.approx(60) and wide.focal_source == "EXIF" and not wide.notes
    phone = read_photo(with_exif(tmp_path / "b.jpg", {Tag.FocalLengthIn35mmFilm: 26}, size=(80, 60)))
    diagonal = 2 * math.atan(math.hypot(36, 24) / 2 / 26)
    assert phone.focal_px == pytest.approx(50 / math.tan(diagonal / 2))


@pytest.mark.parametrize(("unit", "per_unit"), [(2, 254.0), (3, 100.0), (4, 10.0)])
def test_focal_length_and_sensor_resolution_give_the_same(tmp_path: Path, unit: int, per_unit: float) -> None:
    tags = {
        Tag.FocalLength: 6.0, Tag.FocalPlaneXResolution: per_unit, Tag.FocalPlaneResolutionUnit: unit,
        Tag.ExifImageWidth: 120, Tag.ExifImageHeight: 80,
    }  # fmt: skip
    photo = read_photo(with_exif(tmp_path / "a.jpg", tags))  # 10 pixels per mm before it was reduced to half its size
    assert photo.focal_px == pytest.approx(6 * 10 / 2)


def test_a_stated_field_of_view_goes_before_exif_and_spans_the_longer_side(tmp_path: Path) -> None:
    for orientation, size in ((1, (40, 60)), (6, (60, 40))):
        path = with_exif(tmp_path / f"{orientation}.jpg", {Tag.FocalLengthIn35mmFilm: 28}, orientation)
        photo = read_photo(path, 90.0)
        assert photo.size == size
        assert photo.focal_px == pytest.approx(30) and photo.focal_source == "stated"
        assert photo.fov_degrees == pytest.approx(90)
        np.testing.assert_allclose(photo.intrinsics_px, [[30, 0, size[1] / 2], [0, 30, size[0] / 2], [0, 0, 1]])
        np.testing.assert_allclose(photo.intrinsics_norm[:2, 2], 0.5)


def test_without_any_hint_a_field_of_view_is_assumed_with_a_warning(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        picture().save(path)
    photos = [read_photo(path) for path in paths]
    assert photos[0].fov_degrees == pytest.approx(DEFAULT_FOV_DEGREES) and photos[0].focal_source == "assumed"
    (warning,) = [line for line in describe_photos(photos) if line.startswith("Warning")]
    for word in ("a.png, b.png", "no focal length", f"{DEFAULT_FOV_DEGREES:g} degrees", "--fov"):
        assert word in warning


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({Tag.FocalLengthIn35mmFilm: 28, Tag.ExifImageWidth: 400, Tag.ExifImageHeight: 300}, "cropped"),
        ({Tag.FocalLengthIn35mmFilm: 2}, "impossible"),
        ({Tag.FocalLengthIn35mmFilm: 0}, "no focal length"),
        ({Tag.FocalLength: 5.0}, "no focal length"),
    ],
    ids=["cropped", "fisheye", "zero", "no sensor size"],
)
def test_exif_that_cannot_be_trusted_is_not_used_and_the_warning_says_why(
    tmp_path: Path, tags: dict[int, object], words: str
) -> None:
    photo = read_photo(with_exif(tmp_path / "a.jpg", tags))
    assert photo.focal_source == "assumed" and words in photo.notes[0]


@pytest.mark.parametrize("degrees", [0.0, -60.0, 4.0, 179.0, float("nan")])
def test_an_impossible_field_of_view_is_refused(tmp_path: Path, degrees: float) -> None:
    picture().save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="--fov"):
        read_photo(tmp_path / "a.png", degrees)


# -------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright_whatever_way_the_camera_was_held(tmp_path: Path, orientation: int) -> None:
    stored = {  # how a camera that notes this orientation stores an upright picture
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[Tag.Orientation] = orientation
    (picture() if stored is None else picture().transpose(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").image, np.asarray(picture()))


def save_sixteen_bits(path: Path) -> None:
    grey = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path)


def save_cut_out(path: Path, mode: str) -> None:
    alpha = Image.fromarray(np.r_[np.full((20, 60), 255), np.zeros((20, 60))].astype(np.uint8))
    cut = picture()
    cut.putalpha(alpha)
    cut.convert(mode).save(path)


def expected(mode: str) -> np.ndarray:
    grey = np.asarray(picture().convert("L").convert("RGB"))
    cut = np.asarray(picture() if mode == "color" else picture().convert("L").convert("RGB")).copy()
    cut[20:] = 255
    return grey if mode == "grey" else cut


@pytest.mark.parametrize(
    ("name", "save", "mode"),
    [
        ("grey.png", lambda path: picture().convert("L").save(path), "grey"),
        ("sixteen.png", save_sixteen_bits, "grey"),
        ("sixteen.tif", save_sixteen_bits, "grey"),
        ("rgba.png", lambda path: save_cut_out(path, "RGBA"), "color"),
        ("la.png", lambda path: save_cut_out(path, "LA"), "cut grey"),
        ("palette.png", lambda path: save_cut_out(path, "P"), "palette"),
        ("rgba.webp", lambda path: save_cut_out(path, "RGBA"), "lossy"),
    ],
)
def test_grey_deep_and_transparent_pictures_become_rgb_on_white(tmp_path: Path, name: str, save, mode: str) -> None:
    save(tmp_path / name)
    tolerance = {"palette": 60, "lossy": 60}.get(mode, 1)
    image = read_photo(tmp_path / name).image
    target = expected("color" if mode in ("palette", "lossy") else mode)
    difference = np.abs(image.astype(int) - target)
    assert image.dtype == np.uint8 and np.median(difference) <= tolerance and difference[25:].max() <= tolerance


def test_cmyk_and_colour_profiles_are_read_as_srgb(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "print.jpg", quality=100, subsampling=0)
    difference = np.abs(read_photo(tmp_path / "print.jpg").image.astype(int) - np.asarray(picture()))
    assert np.median(difference) <= 3
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture().save(tmp_path / "srgb.png", icc_profile=profile)
    assert np.abs(read_photo(tmp_path / "srgb.png").image.astype(int) - np.asarray(picture())).max() <= 1
    picture().save(tmp_path / "odd.png", icc_profile=b"no profile")
    np.testing.assert_array_equal(read_photo(tmp_path / "odd.png").image, np.asarray(picture()))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # does not fit RGB pixels
    picture().save(tmp_path / "misfit.png", icc_profile=lab)
    np.testing.assert_array_equal(read_photo(tmp_path / "misfit.png").image, np.asarray(picture()))


def test_large_photos_are_reduced_with_their_focal_length(tmp_path: Path) -> None:
    picture(4000, 3000).save(tmp_path / "a.jpg")
    photo = read_photo(tmp_path / "a.jpg", 60.0)
    assert photo.size == (LONGEST_SIDE * 3 // 4, LONGEST_SIDE)
    assert photo.focal_px == pytest.approx(LONGEST_SIDE / 2 / math.tan(math.radians(30)))


def test_of_an_animation_the_first_picture_is_taken_and_a_note_says_so(tmp_path: Path) -> None:
    frames = [picture(), Image.new("RGB", (60, 40), "white")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        photo = read_photo(tmp_path / name)
        assert np.median(np.abs(photo.image.astype(int) - np.asarray(picture()))) <= 5, name
        assert any("animation" in note for note in photo.notes), name


def test_the_second_picture_that_phones_put_into_a_jpeg_is_no_animation(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40), "white")])
    assert not any("animation" in note for note in read_photo(tmp_path / "a.jpg").notes)


# ----------------------------------------------------------------------------------------------------- bad files


def bomb() -> bytes:
    """A PNG of a few bytes that says to be 30000x30000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture(400, 300).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.jpg", b"not a picture", "not a picture"),
        ("empty.jpg", b"", "not a picture"),
        ("cut.jpg", encoded("JPEG")[:1500], "cannot read"),
        ("cut.png", encoded("PNG")[:300], "cannot read"),
        ("bomb.png", bomb(), "too many pixels"),
        ("drawing.eps", encoded("EPS"), "not a picture"),
        ("float.tif", None, "floating-point"),
    ],
)
def test_a_file_that_is_no_photo_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is None:
        Image.fromarray(np.zeros((40, 60), np.float32)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(SceneDataError) as raised:
        read_photo(path)
    message = str(raised.value)
    assert words in message and name in message and "\n" not in message


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.jpg", tmp_path):
        with pytest.raises(SceneDataError, match="no photo at"):
            read_photo(path)


def test_a_broken_exif_block_does_not_spoil_the_photo(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff", quality=100, subsampling=0)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.size == (40, 60) and photo.focal_source == "assumed"


def test_heic_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingExtra, match="pip install pillow-heif, or save it as JPEG"):
        read_photo(tmp_path / "a.heic")
