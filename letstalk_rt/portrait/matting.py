"""Mattes: the person of a prepared portrait, separated from the background by an alpha channel.

The box of the portrait gives an initial mask of head and shoulders. From this mask, GrabCut finds
the outline by colour in a small copy; a guided filter then upsamples it to full size along the
edges of hair and clothes.

Source: Rother et al. 2004, "GrabCut"; He et al. 2010, "Guided image filtering".
"""

import cv2
import numpy as np

from letstalk_rt.types import Portrait

_WORK_PX = 224
"""Longer side of the copy that GrabCut works on; its cost grows with the square."""

_ITERATIONS = 5
_RADIUS_SHARE = 1 / 64
"""Radius of the guided filter as a share of the longer side: the width of soft outlines."""

_SMOOTHNESS = 1e-4
_CLIP = 0.08
"""Coverage below this becomes 0, and above one minus this 1."""

_HOLE_SHARE = 0.004
"""Holes smaller than this share of the image are filled; larger ones stay transparent."""


def person_matte(portrait: Portrait) -> np.ndarray:
    """Return the matte of the person on a portrait's canvas.

    Args:
        portrait: a prepared portrait; its canvas and box are used.

    Returns:
        `(H, W)` uint8, of the size of the canvas: 255 is the person, 0 the background.
    """
    canvas = portrait.canvas
    height, width = canvas.shape[:2]
    scale = min(1.0, _WORK_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    left, top, side = (value * scale for value in portrait.box)
    person = _segment_person(small, _initial_mask(size[1], size[0], left, top, side))
    coarse = cv2.resize(person.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    fine = _guided_filter(canvas, coarse)
    coverage = ((fine - _CLIP) / (1 - 2 * _CLIP)).clip(0, 1)
    matte: np.ndarray = (coverage * 255 + 0.5).astype(np.uint8)
    return matte


BACKGROUND, PERSON, MAYBE_BACKGROUND, MAYBE_PERSON = 0, 1, 2, 3
"""Labels of pixels for GrabCut, with OpenCV's values."""


def _initial_mask(height: int, width: int, left: float, top: float, side: float) -> np.ndarray:
    """Return initial labels, `(H, W)` uint8, from the position of the face's box.

    The centre of the landmarks is at 0.56 of the height of the box, and they are 0.57 high. The
    numbers here are in units of the box, measured on the default avatars.
    """
    y, x = np.mgrid[0:height, 0:width] + 0.5
    u, v = (x - left) / side - 0.5, (y - top) / side
    below_chin = np.clip((v - 0.80) / 0.25, 0, 1)
    head = _ellipse(u, v, 0.50, 0.36, 0.44)
    torso = (v > 0.80) & (np.abs(u) < 0.16 + 0.55 * np.sqrt(below_chin))
    face = _ellipse(u, v, 0.55, 0.21, 0.30)
    neck = (v > 0.80) & (np.abs(u) < 0.12 + 0.22 * np.clip((v - 0.98) / 0.2, 0, 1))
    far = ~_ellipse(u, v, 0.55, 0.62, 0.62) & (v < 0.75)
    beside = (v < 0.80) & ((x < 3) | (x > width - 3)) & ~head
    initial = np.full((height, width), MAYBE_BACKGROUND, np.uint8)
    initial[head | torso] = MAYBE_PERSON
    initial[far | beside] = BACKGROUND
    initial[face | neck] = PERSON
    return initial


def _ellipse(u: np.ndarray, v: np.ndarray, middle: float, wide: float, high: float) -> np.ndarray:
    inside: np.ndarray = np.square(u / wide) + np.square((v - middle) / high) < 1
    return inside


def _segment_person(rgb: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Return the person, `(H, W)` uint8, 0 or 1, as one component without small holes."""
    if not ((initial == BACKGROUND) | (initial == MAYBE_BACKGROUND)).any():
        return np.ones_like(initial)  # the face fills the image
    mask = initial.copy()
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(lab, mask, None, *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    person = np.isin(mask, (PERSON, MAYBE_PERSON)).astype(np.uint8)
    person = cv2.morphologyEx(person, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    person = cv2.morphologyEx(person, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return _fill_holes(_largest_component(person))


def _largest_component(person: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(person)
    if count < 2:
        return person
    largest: np.ndarray = labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    return largest.astype(np.uint8)


def _fill_holes(person: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - person)
    areas = stats[:, cv2.CC_STAT_AREA]
    small = [i for i in range(1, count) if areas[i] < _HOLE_SHARE * person.size]
    filled: np.ndarray = person | np.isin(labels, small).astype(np.uint8)
    return filled


def _guided_filter(rgb: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Apply a guided filter: fit `coarse` locally by a linear function of the colour."""
    radius = max(2, round(_RADIUS_SHARE * max(rgb.shape[:2])))
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(image: np.ndarray) -> np.ndarray:
        averaged: np.ndarray = cv2.blur(image, window, borderType=cv2.BORDER_REFLECT)
        return averaged

    guide = rgb.astype(np.float32) / 255
    guide_mean, coarse_mean = mean(guide), mean(coarse)
    outer = (guide[..., :, None] * guide[..., None, :]).reshape(*coarse.shape, 9)
    variance = np.stack([mean(outer[..., i]) for i in range(9)], -1).reshape(*coarse.shape, 3, 3)
    variance -= guide_mean[..., :, None] * guide_mean[..., None, :]
    variance += _SMOOTHNESS * np.eye(3, dtype=np.float32)
    covariance = mean(guide * coarse[..., None]) - guide_mean * coarse_mean[..., None]
    slope = np.linalg.solve(variance, covariance[..., None])[..., 0]
    offset = coarse_mean - (slope * guide_mean).sum(-1)
    filtered: np.ndarray = (mean(slope) * guide).sum(-1) + mean(offset)
    return filtered
