"""Puts changed rectangles into the planes of a frame; what does not change keeps every bit."""

import cv2
import numpy as np

from letstalk_rt.dubbing.film import ColourTags

_KR_KB = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_BT601 = (0.299, 0.114)
"""Shares of red and blue in luma, by FFmpeg's number of the colour space."""


def put(
    planes: tuple[np.ndarray, ...],
    rows: slice,
    columns: slice,
    before: np.ndarray,
    after: np.ndarray,
    tags: ColourTags,
) -> None:
    """Add the change of a rectangle to the planes of a frame, in place.

    The change is linear in RGB, so pixels that are equal in `before` and `after` keep their luma,
    and chroma cells all of whose pixels are equal keep their chroma, however they were rounded.

    Args:
        planes: luma and two of chroma, uint8.
        rows: rows of the rectangle; the first is even.
        columns: its columns, likewise.
        before: the rectangle as it was, `(h, w, 3)` uint8 RGB.
        after: as it will be.
        tags: how the planes are to be read.
    """
    red, blue = _KR_KB.get(tags.space, _BT601)
    luma = np.array([red, 1 - red - blue, blue])
    ranges = (1.0, 1.0) if tags.full_range else (219 / 255, 224 / 255)
    blues, reds = ((np.eye(3)[i] - luma) / (2 * (1 - luma[i])) for i in (2, 0))
    matrix = np.array([ranges[0] * luma, ranges[1] * blues, ranges[1] * reds], np.float32)
    change = cv2.transform(cv2.subtract(after, before, dtype=cv2.CV_32F), matrix)
    _add(planes[0], rows, columns, change[..., 0])
    for plane, number in ((planes[1], 1), (planes[2], 2)):
        chroma = np.ascontiguousarray(change[..., number])
        down = -(-planes[0].shape[0] // plane.shape[0])
        across = -(-planes[0].shape[1] // plane.shape[1])
        size = (-(-chroma.shape[1] // across), -(-chroma.shape[0] // down))
        cells = cv2.resize(chroma, size, interpolation=cv2.INTER_AREA)
        part = (rows.start // down, columns.start // across)
        _add(
            plane,
            slice(part[0], part[0] + size[1]),
            slice(part[1], part[1] + size[0]),
            cells,
        )


def _add(plane: np.ndarray, rows: slice, columns: slice, change: np.ndarray) -> None:
    part = plane[rows, columns]
    change = change[: part.shape[0], : part.shape[1]]
    part[:] = np.clip(np.round(part + change), 0, 255).astype(np.uint8)
