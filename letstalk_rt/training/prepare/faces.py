"""The faces that were found in the frames of a shot, and one of them followed through it."""

from dataclasses import dataclass

import numpy as np

_LOST = 0.35
"""Share of a face's height by which it may move from one frame to the next."""


@dataclass(frozen=True)
class FoundFace:
    """A face in one frame.

    Attributes:
        landmarks: `(478, 2)` float32, px of the frame; our own finder repeats the points it knows
            in the places of those it does not.
        blendshapes: `(52,)` float32 in MediaPipe's order; zeros from our own finder.
        pose: `(4, 4)` float32, the face's transformation.
        beside: Height of the largest other face over this one's; 0 without another. Our own
            tracker only tells that there is one: 1.
    """

    landmarks: np.ndarray
    blendshapes: np.ndarray
    pose: np.ndarray
    beside: float = 0.0

    @property
    def height(self) -> float:
        """Height of the landmarks' bounding box, px."""
        return float(np.ptp(self.landmarks[:, 1]))

    @property
    def middle(self) -> np.ndarray:
        """Middle of the landmarks' bounding box, `(2,)` px."""
        middle: np.ndarray = (self.landmarks.min(0) + self.landmarks.max(0)) / 2
        return middle


def follow_one(shot: list[list[FoundFace]]) -> tuple[list[FoundFace | None], float]:
    """Follow one face through the frames of a shot.

    The face is the one that is largest over the shot; in each frame the nearest one to where it was
    is taken, and none where all have moved too far.

    Returns:
        The face in each frame, or None; and the height of the largest other face over its own, in
        the median of the frames with a face.
    """
    best: list[FoundFace | None] = [None] * len(shot)
    best_size = 0.0
    for seed in _starts(shot):
        track = _track(shot, *seed)
        size = sum(face.height for face in track if face is not None)
        if size > best_size:
            best, best_size = track, size
    others = [
        max([face.beside, *(o.height / face.height for o in faces if o is not face)])
        for faces, face in zip(shot, best, strict=True)
        if face is not None
    ]
    return best, float(np.median(others)) if others else 0.0


def _starts(shot: list[list[FoundFace]]) -> list[tuple[int, FoundFace]]:
    """Return the faces that tracks may begin with: those of the frame with the most of them."""
    if not any(shot):
        return []
    frame = max(range(len(shot)), key=lambda i: len(shot[i]))
    return [(frame, face) for face in shot[frame]]


def _track(shot: list[list[FoundFace]], frame: int, face: FoundFace) -> list[FoundFace | None]:
    track: list[FoundFace | None] = [None] * len(shot)
    track[frame] = face
    for order in (range(frame + 1, len(shot)), range(frame - 1, -1, -1)):
        last, gap = face, 1
        for index in order:
            near = min(
                shot[index],
                key=lambda f: float(np.linalg.norm(f.middle - last.middle)),
                default=None,
            )
            if near is None or not _same(near, last, gap):
                gap += 1
                continue
            track[index] = last = near
            gap = 1
    return track


def _same(face: FoundFace, last: FoundFace, gap: int) -> bool:
    """Return whether a face can be the one of `gap` frames ago."""
    reach = _LOST * min(gap, 4) * last.height
    distance = float(np.linalg.norm(face.middle - last.middle))
    return distance < reach and 0.6 < face.height / max(last.height, 1e-6) < 1.6
