"""Films for cameras that are not there: a face that moves as people do, or a clip of the data."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 480, 360
"""What the page asks a camera for."""

FPS = 25
NUMBER_BITS = 10
"""Bits of the number of a frame; see `numbered`."""

MOVE_FRAMES = 25
"""The face begins to move so often, to one side and back by turns."""

_MOVING_FRAMES = 6  # from rest to rest
_SIDE_PX = 330  # of the face's picture
_FROM_PX, _BY_PX = 62, 26  # its left edge, and how far it moves: little more than a quarter face


def place(number: int) -> float:
    """Return the left edge of the face in a frame, in pixels of a film of `WIDTH`.

    Between two places at rest it moves with the least jerk, as heads do.
    """
    turn, since = divmod(number, MOVE_FRAMES)
    share = min(1.0, since / _MOVING_FRAMES)
    moved = share**3 * (10 - 15 * share + 6 * share**2)
    there = moved if turn % 2 else 1 - moved
    return _FROM_PX + _BY_PX * there


def moving_face(frames: int) -> Iterator[np.ndarray]:
    """Yield frames `(HEIGHT, WIDTH, 3)` uint8 in which the face of a default avatar moves."""
    import cv2
    from PIL import Image

    from letstalk_rt.avatars import list_avatars

    path = next(iter(list_avatars().values()))
    face = np.asarray(Image.open(path).convert("RGB").resize((_SIDE_PX, _SIDE_PX)))
    for number in range(frames):
        to_frame = np.array([[1, 0, place(number)], [0, 1, (HEIGHT - _SIDE_PX) / 2]], np.float32)
        yield cv2.warpAffine(face, to_frame, (WIDTH, HEIGHT), borderValue=(120, 120, 120))


def numbered(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield square frames in the middle of a film, with their numbers at its left edge.

    A number is a column of ten blocks, the lowest bit at the top, white for 1.
    """
    import cv2

    for number, frame in enumerate(frames):
        rgb = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
        left = (WIDTH - HEIGHT) // 2
        rgb[:, left : left + HEIGHT] = cv2.resize(np.asarray(frame), (HEIGHT, HEIGHT))
        for bit in range(NUMBER_BITS):
            side = HEIGHT // NUMBER_BITS
            rgb[bit * side : (bit + 1) * side, :40] = 255 * (number >> bit & 1)
        yield rgb


def write_film(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Write frames `(H, W, 3)` uint8 as a film for Chromium's fake camera (y4m)."""
    import av

    with av.open(str(path), "w", format="yuv4mpegpipe") as container:
        stream = container.add_stream("rawvideo", rate=FPS)
        stream.pix_fmt = "yuv420p"
        for number, rgb in enumerate(frames):
            if number == 0:
                stream.height, stream.width = rgb.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
