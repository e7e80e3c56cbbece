"""Points that two pictures have in common."""

from __future__ import annotations

import numpy as np
from demo_captures import photo
from PIL import Image

from lsplat_ns.data.matching import match_points

SIZE = (192, 288)


def test_points_are_counted_from_the_corner_of_the_first_pixel() -> None:
    picture = photo(0, SIZE)
    twice = np.asarray(Image.fromarray(picture).resize((2 * SIZE[1], 2 * SIZE[0]), Image.Resampling.BICUBIC))
    small, large = match_points(picture, twice)
    assert len(small) > 100
    offset = np.median(large - 2 * small, axis=0)  # from pixel centres it would be half a pixel
    assert np.abs(offset).max() < 0.1


def test_matches_are_unique_and_the_same_every_time() -> None:
    first, second = photo(0, SIZE), photo(5, SIZE)
    one, other = match_points(first, second), match_points(first, second)
    assert np.array_equal(np.c_[one], np.c_[other])
    rows = np.c_[one]
    assert len(np.unique(rows, axis=0)) == len(rows) > 30


def test_only_one_of_two_equal_places_is_matched() -> None:
    picture = photo(0, SIZE)
    _, single = match_points(np.concatenate([picture, picture], axis=1), picture)
    assert len(np.unique(single, axis=0)) > 0.95 * len(single) > 30


def test_pictures_without_features_have_no_matches() -> None:
    blank = np.full((64, 80, 3), 200, np.uint8)
    for first, second in ((blank, blank), (blank, photo(0, SIZE)), (photo(0, SIZE), blank)):
        points = match_points(first, second)
        assert points[0].shape == points[1].shape == (0, 2)
