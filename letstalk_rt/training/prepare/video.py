"""Reads raw videos: frames at 25 per second, and the sound from the first frame on at 16 kHz."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path

import av
import numpy as np

from letstalk_rt.errors import InputError
from letstalk_rt.types import FPS, SAMPLE_RATE

_EARLY_S = 2.0
"""How long before a segment decoding begins, so that a key frame lies before it."""

_GAP_S = 0.05
"""A jump of time stamps from which on samples are placed anew."""


@dataclass(frozen=True)
class VideoFacts:
    """What a raw video's header says.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        rate: Frames per second.
        duration_s: Length in seconds; 0 if the header does not say.
        has_sound: Whether it has an audio track.
    """

    width: int
    height: int
    rate: float
    duration_s: float
    has_sound: bool


def probe(path: Path) -> VideoFacts:
    """Read a video's header.

    Raises:
        InputError: The file cannot be read, or has no video.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError("the file has no video track")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or FPS)
            length = (container.duration or 0) / 1e6
            return VideoFacts(
                stream.codec_context.width,
                stream.codec_context.height,
                rate,
                length,
                bool(container.streams.audio),
            )
    except (OSError, ValueError) as error:  # FFmpeg's errors are both
        if isinstance(error, InputError):
            raise
        raise InputError(f"the file cannot be read: {error}") from error


def read_frames(
    path: Path, start_s: float = 0.0, end_s: float = float("inf")
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the frames of a segment at 25 per second, whatever the video's own rate is.

    Each is the frame of the video that is nearest in time, so that pictures are on average neither
    early nor late against the sound.

    Yields:
        Number of the frame from the video's beginning, and the frame, `(H, W, 3)` uint8 RGB.
    """
    wanted = ceil(start_s * FPS - 1e-6)
    before: tuple[float, av.VideoFrame] | None = None
    for time, frame in _decoded(path, start_s):
        if before is not None:
            middle = (before[0] + time) / 2
            while wanted / FPS < middle:
                if wanted / FPS >= end_s:
                    return
                if wanted / FPS >= before[0] - 1 / FPS:
                    yield wanted, before[1].to_ndarray(format="rgb24")
                wanted += 1
        before = time, frame
    if (
        before is not None
        and start_s <= wanted / FPS < end_s
        and wanted / FPS < before[0] + 1 / FPS
    ):
        yield wanted, before[1].to_ndarray(format="rgb24")


def _decoded(path: Path, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield decoded frames with their time after the first frame of the video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        origin = _first_time(path)
        if start_s > _EARLY_S:
            container.seek(round((start_s - _EARLY_S + origin) * 1e6))
        for frame in container.decode(stream):
            if frame.time is not None:
                yield frame.time - origin, frame


def _first_time(path: Path) -> float:
    """Return the presentation time of the first frame, in seconds."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            return frame.time or 0.0
    return 0.0


def read_sound(path: Path, start_s: float = 0.0, end_s: float = float("inf")) -> np.ndarray:
    """Return the sound of a segment, `(n,)` float32 at 16 kHz mono; time 0 is the first frame.

    The sound may begin before or after the first frame, and may have gaps: samples are placed where
    their time stamps say, and silence is in between.

    Raises:
        InputError: The sound cannot be decoded.
    """
    origin = _first_time(path)
    first = round(start_s * SAMPLE_RATE)
    parts: list[tuple[int, np.ndarray]] = []
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    try:
        with av.open(str(path)) as container:
            if start_s > _EARLY_S:
                container.seek(round((start_s - _EARLY_S + origin) * 1e6))
            expected: float | None = None  # when the next frame begins if there is no gap
            place = 0
            for frame in container.decode(audio=0):
                time = (frame.time if frame.time is not None else origin) - origin
                if time >= end_s:
                    break
                if expected is None:
                    place = round(time * SAMPLE_RATE)
                elif abs(time - expected) > _GAP_S:
                    place += round((time - expected) * SAMPLE_RATE)
                expected = time + frame.samples / frame.sample_rate
                for piece in resampler.resample(frame):
                    values = piece.to_ndarray()[0]
                    parts.append((place, values))
                    place += len(values)
    except (OSError, ValueError) as error:
        raise InputError(f"the sound cannot be decoded: {error}") from error
    if not parts:
        return np.zeros(0, np.float32)
    stop = max(place + len(values) for place, values in parts)
    if isfinite(end_s):
        stop = min(stop, round(end_s * SAMPLE_RATE))
    sound = np.zeros(max(stop - first, 0), np.float32)
    for place, values in parts:
        low, high = max(place, first), min(place + len(values), stop)
        if low < high:
            sound[low - first : high - first] = values[low - place : high - place]
    return sound
