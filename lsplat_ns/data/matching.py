"""Points that two pictures have in common."""

from __future__ import annotations

import numpy as np

MOST_FEATURES = 8000
"""The strongest ones are kept; more take longer to match and add little."""
CONTRAST = 0.02
"""Half of SIFT's usual threshold: plain walls have few corners."""
RATIO = 0.8
"""A match is kept if its descriptor is this much nearer than the second best (Lowe 2004)."""


def match_points(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matching points of two pictures: SIFT, ratio test, and only mutual best matches. Deterministic.

    Args:
        first: uint8 [height, width, 3].
        second: The same, of any size.

    Returns:
        Image points [n, 2] (x, y) in pixels of each picture, float64, one row per match; (0, 0) is the outer corner of
        the top-left pixel. No two rows are the same. n may be 0.

    Source: Lowe 2004; square-rooted descriptors after Arandjelovic and Zisserman 2012.
    """
    import cv2

    points, descriptors = zip(*(_features(image) for image in (first, second)), strict=True)
    if min(len(part) for part in points) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    back = {match.queryIdx: match.trainIdx for match in matcher.match(descriptors[1], descriptors[0])}
    pairs = [
        (best.queryIdx, best.trainIdx)
        for best, other in matcher.knnMatch(descriptors[0], descriptors[1], k=2)
        if best.distance < RATIO * other.distance and back[best.trainIdx] == best.queryIdx
    ]
    if not pairs:
        return np.empty((0, 2)), np.empty((0, 2))
    rows, columns = np.array(pairs).T
    # A point with two orientations has two descriptors and would count twice.
    matches = np.unique(np.c_[points[0][rows], points[1][columns]], axis=0)
    return matches[:, :2], matches[:, 2:]


def _features(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 2] in pixels and descriptors [n, 128] float32."""
    import cv2

    # Without precise upscaling all points are off by a quarter of a pixel.
    detector = cv2.SIFT_create(nfeatures=MOST_FEATURES, contrastThreshold=CONTRAST, enable_precise_upscale=True)
    keypoints, descriptors = detector.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if descriptors is None:
        return np.empty((0, 2)), np.empty((0, 128), np.float32)
    # OpenCV counts from the centre of the top-left pixel, this package from its outer corner.
    points = np.array([keypoint.pt for keypoint in keypoints], np.float64) + 0.5
    return points, np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-12))
