"""Cuts the track of a face into clips with a fixed crop, and writes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from letstalk_rt.models.face.detector import FACE_SHARE
from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.training.prepare.faces import FoundFace
from letstalk_rt.types import FPS, SAMPLE_RATE

MAX_GAP = 5
"""Frames without a face that are filled with the nearest face."""

_BELOW_MIDDLE = 0.05
"""How far the middle of a face is below the middle of its crop, in sides of the crop."""

_MARGIN = 0.02
"""How far landmarks may reach out of the crop, in sides of the crop."""

_ZOOM = 1.3
"""Largest ratio between the sizes of a face and their median in a clip."""

_MAX_OUTSIDE = 0.15
"""Largest share of a crop that may lie outside of the picture."""


@dataclass(frozen=True)
class Limits:
    """What a clip must be like.

    Attributes:
        size: Side of its frames, px.
        shortest: Frames it has at least.
        longest: Frames it has at most.
        max_enlarge: By how much a crop may be enlarged to `size`.
    """

    size: int
    shortest: int
    longest: int
    max_enlarge: float


@dataclass(frozen=True)
class Cut:
    """A clip to be written.

    Attributes:
        start: Its first frame, counted from the beginning of the video.
        faces: The face in each frame; where none was found, the nearest one.
        found: Whether one was found, `(T,)` bool.
        box: Left, top and side of its crop, px of the video.
    """

    start: int
    faces: list[FoundFace]
    found: np.ndarray
    box: tuple[int, int, int]

    @property
    def count(self) -> int:
        """The number of frames."""
        return len(self.faces)

    def landmarks(self, size: int) -> np.ndarray:
        """Return the landmarks in pixels of the crop at this size, `(T, 478, 2)` float32."""
        left, top, side = self.box
        points = np.stack([face.landmarks for face in self.faces])
        return ((points - [left, top]) * (size / side)).astype(np.float32)


@dataclass(frozen=True)
class Dropped:
    """A stretch of video that became no clip.

    Attributes:
        source: The segment's or the file's name.
        start_s: Where it begins.
        seconds: How long it is.
        reason: Why, in a few words that are the same for all of a kind.
        detail: The figures behind it.
    """

    source: str
    start_s: float
    seconds: float
    reason: str
    detail: str = ""


def cut_track(
    track: list[FoundFace | None],
    start: int,
    frame_size: tuple[int, int],
    limits: Limits,
    source: str,
) -> tuple[list[Cut], list[Dropped]]:
    """Cut the track of one face through a shot into clips.

    Args:
        track: The face in each frame, or None.
        start: The first frame's number in the video.
        frame_size: Width and height of the video.
        limits: What a clip must be like.
        source: The segment's name, for the report.
    """
    cuts: list[Cut] = []
    dropped: list[Dropped] = []

    def drop(first: int, count: int, reason: str, detail: str = "") -> None:
        begin = (start + first) / FPS
        dropped.append(Dropped(source, round(begin, 2), count / FPS, reason, detail))

    end = 0
    for first, stop in _stretches(track):
        if first > end:
            drop(end, first - end, "no face")
        end = stop
        if stop - first < limits.shortest:
            drop(first, stop - first, "too short")
            continue
        pieces = -(-(stop - first) // limits.longest)
        edges = np.linspace(first, stop, pieces + 1).astype(int).tolist()
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            for a, b in _steady(track, low, high, limits):
                made = _make_cut(track[a:b], start + a, frame_size, limits)
                if isinstance(made, Cut):
                    cuts.append(made)
                else:
                    drop(a, b - a, *made)
    if len(track) > end:
        drop(end, len(track) - end, "no face")
    return cuts, dropped


def _stretches(track: list[FoundFace | None]) -> Iterator[tuple[int, int]]:
    """Yield first frame and end of each stretch with a face, over gaps of up to `MAX_GAP`."""
    seen = [index for index, face in enumerate(track) if face is not None]
    if not seen:
        return
    first = last = seen[0]
    for index in seen[1:]:
        if index - last > MAX_GAP + 1:
            yield first, last + 1
            first = index
        last = index
    yield first, last + 1


def _steady(
    track: list[FoundFace | None], low: int, high: int, limits: Limits
) -> Iterator[tuple[int, int]]:
    """Yield parts in which the face stays in one crop; halve those in which it does not."""
    faces = [face for face in track[low:high] if face is not None]
    if _fits_one_crop(faces) or (high - low) // 2 < limits.shortest:
        yield low, high
        return
    middle = (low + high) // 2
    yield from _steady(track, low, middle, limits)
    yield from _steady(track, middle, high, limits)


def _fits_one_crop(faces: list[FoundFace]) -> bool:
    left, top, side = _crop_box(faces)
    low = np.stack([face.landmarks.min(0) for face in faces])
    high = np.stack([face.landmarks.max(0) for face in faces])
    heights = high[:, 1] - low[:, 1]
    zoom = max(heights.max() / np.median(heights), np.median(heights) / heights.min())
    inside = (low >= np.array([left, top]) - _MARGIN * side).all()
    inside &= (high <= np.array([left, top]) + (1 + _MARGIN) * side).all()
    return bool(inside and zoom <= _ZOOM)


def _crop_box(faces: list[FoundFace]) -> tuple[int, int, int]:
    """Return left, top and side of the crop in which faces have the usual size and place."""
    side = round(float(np.median([face.height for face in faces])) / FACE_SHARE)
    x, y = np.median(np.stack([face.middle for face in faces]), 0)
    return round(x - 0.5 * side), round(y - (0.5 + _BELOW_MIDDLE) * side), max(side, 1)


def _make_cut(
    track: list[FoundFace | None], start: int, frame_size: tuple[int, int], limits: Limits
) -> Cut | tuple[str, str]:
    """Return a clip, or why there is none and the figures."""
    seen = [face for face in track if face is not None]
    if not seen or not _fits_one_crop(seen):
        return "face leaves its crop", f"{len(seen)} frames"
    left, top, side = box = _crop_box(seen)
    if limits.size / side > limits.max_enlarge:
        return "face too small", f"a crop of {side} px for {limits.size} px"
    width, height = frame_size
    across = min(left + side, width) - max(left, 0)
    down = min(top + side, height) - max(top, 0)
    outside = 1 - across * down / side**2
    if outside > _MAX_OUTSIDE:
        return "face at the edge", f"{outside:.0%} of the crop lie outside of the picture"
    found = np.array([face is not None for face in track])
    known = np.flatnonzero(found)
    nearest = [int(known[np.abs(known - index).argmin()]) for index in range(len(track))]
    faces = [face for index in nearest if (face := track[index]) is not None]
    return Cut(start, faces, found, box)


def crop_frame(rgb: np.ndarray, box: tuple[int, int, int], size: int) -> np.ndarray:
    """Return a crop, `(size, size, 3)`; beyond the border of the picture its edge is repeated."""
    left, top, side = box
    height, width = rgb.shape[:2]
    before = max(-top, 0), max(-left, 0)
    after = max(top + side - height, 0), max(left + side - width, 0)
    part = rgb[max(top, 0) : top + side, max(left, 0) : left + side]
    if any(before + after):
        part = cv2.copyMakeBorder(
            part, before[0], after[0], before[1], after[1], cv2.BORDER_REPLICATE
        )
    method = cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC
    resized: np.ndarray = cv2.resize(part, (size, size), interpolation=method)
    return resized


class ClipWriter:
    """Writes the video of one clip; the file appears under its name when it is complete.

    Args:
        path: The file.
        size: Side of its frames, px.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._partial = path, path.with_suffix(".part.mp4")
        self._container = av.open(str(self._partial), "w")
        options = {"crf": "14", "preset": "veryfast"}
        self._stream: VideoStream = self._container.add_stream("libx264", FPS, options=options)
        self._stream.width = self._stream.height = size
        self._stream.pix_fmt = "yuv420p"

    def add(self, rgb: np.ndarray) -> None:
        """Write the next frame."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Complete the file."""
        self._container.mux(self._stream.encode())
        self._container.close()
        self._partial.replace(self._path)


def write_sound(path: Path, pcm: np.ndarray) -> None:
    """Write 16 kHz mono sound as FLAC."""
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        whole = np.round(np.clip(pcm, -1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        frame.time_base = Fraction(1, SAMPLE_RATE)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_tracks(path: Path, cut: Cut, size: int) -> None:
    """Write landmarks, blendshapes, pose and where a face was found."""
    np.savez(
        path,
        landmarks=cut.landmarks(size),
        blendshapes=np.stack([face.blendshapes for face in cut.faces]).astype(np.float16),
        pose=np.stack([face.pose for face in cut.faces]).astype(np.float32),
        ok=cut.found,
    )


def model_points(cut: Cut, size: int) -> np.ndarray:
    """Return the points of a clip that the models use, `(T, L, 2)` px of the crop."""
    points: np.ndarray = cut.landmarks(size)[:, SUBSET]
    return points
