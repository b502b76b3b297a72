"""Films: their frames as planes of 8 bits, read as a stream and upright.

Frames stay in the film's own colour space, so that what dubbing does not touch reaches the encoder
bit by bit as it was decoded.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.stream import VideoStream

from letstalk_rt.errors import FilmError

MIN_SIDE_PX, MAX_SIDE_PX = 64, 4096

# Playlists and image lists are excluded: reading one file must not open others.
_CONTAINERS = "mov,matroska,avi,mpegts,flv,ogg,asf,gif,mpeg"
_UPLOAD_CONTAINERS = "mov,matroska,avi"
_UPLOAD_CODECS = "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg4,mjpeg"
_PLANAR = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_FULL_RANGE = 2
_BT709 = 1


@dataclass(frozen=True)
class ColourTags:
    """How the numbers of a film's frames are to be read; numbers as in FFmpeg.

    Attributes:
        space: matrix from RGB; 2 if unknown.
        primaries: primaries; 2 if unknown.
        transfer: transfer characteristic; 2 if unknown.
        full_range: whether 0 is black and 255 white, instead of 16 and 235.
    """

    space: int
    primaries: int
    transfer: int
    full_range: bool


@dataclass(frozen=True)
class FilmFacts:
    """What a film is like.

    Attributes:
        width: of the upright frames, in pixels.
        height: likewise.
        rate: frames per second, on average.
        frames: number of frames; 0 if unknown.
        pixel_format: of the frames, with 8 bits.
        time_base: unit of the frames' times.
        tags: how to read the colours.
        converted: the film's own pixel format, if it is not kept; otherwise None.
    """

    width: int
    height: int
    rate: Fraction
    frames: int
    pixel_format: str
    time_base: Fraction
    tags: ColourTags
    converted: str | None


@dataclass(frozen=True)
class FilmFrame:
    """One upright frame of a film.

    Attributes:
        planes: luma `(H, W)` and two of chroma, uint8.
        rgb: the same as `(H, W, 3)` uint8.
        time: when it is shown, in units of the film's time base, from 0.
    """

    planes: tuple[np.ndarray, ...]
    rgb: np.ndarray
    time: int


class Film:
    """A film file, which is read from its beginning as often as needed.

    Args:
        source: path, or the bytes of a file.
        most_frames: how many frames are decoded at most; `None`: all.
        is_upload: whether strangers may have made it, so that only the containers and codecs of
            telephones and browsers are read.

    Attributes:
        facts: what it is like.

    Raises:
        FilmError: the file cannot be read, has no video, or no frame can be decoded.
    """

    def __init__(
        self,
        source: str | Path | bytes,
        *,
        most_frames: int | None = None,
        is_upload: bool = False,
    ) -> None:
        self._most_frames = most_frames
        self._options = {"format_whitelist": _UPLOAD_CONTAINERS if is_upload else _CONTAINERS}
        if is_upload:
            self._options["codec_whitelist"] = _UPLOAD_CODECS
        self._data = source if isinstance(source, bytes) else None
        self.name = "" if isinstance(source, bytes) else f" {source}"
        self._path = None if isinstance(source, bytes) else Path(source)
        with self._opened() as (container, stream):
            first = next(self._decoded(container, stream), None)
            if first is None:
                raise self._unusable("it has no frame that can be decoded. Export it again.")
            self.facts = self._facts(container, stream, first)

    def frames(self) -> Iterator[FilmFrame]:
        """Yield the frames in the order of their times.

        Raises:
            FilmError: the file is damaged; the frames before were yielded.
        """
        for frame, time in self.decoded():
            yield self.upright(frame, time)

    def decoded(self) -> Iterator[tuple[VideoFrame, int]]:
        """Yield the frames as they are decoded, for `upright`, and their times from 0.

        Raises:
            FilmError: the file is damaged, or has too many frames; those before were yielded.
        """
        with self._opened() as (container, stream):
            start: int | None = None
            last, count = -1, 0
            step = max(1, round(1 / (self.facts.rate * self.facts.time_base)))
            for number, frame in enumerate(self._decoded(container, stream)):
                if number == self._most_frames:
                    raise self._unusable(
                        f"it has more than {number} frames in the part that is used. Export it "
                        "with 25 frames per second."
                    )
                time = frame.pts if frame.pts is not None else (start or 0) + last + step
                start = time if start is None else start
                if time - start <= last:
                    continue  # a frame that is shown for no time
                last, count = time - start, count + 1
                yield frame, last
            self._check_complete(count, _stated_frames(stream, self.facts.rate))

    def upright(self, frame: VideoFrame, time: int) -> FilmFrame:
        """Return a frame with its planes and as RGB.

        Raises:
            FilmError: it has another size than the film.
        """
        turns = round(frame.rotation / 90) % 4
        if frame.format.name != self.facts.pixel_format:
            frame = frame.reformat(format=self.facts.pixel_format)
        rgb = frame.to_ndarray(format="rgb24")
        planes = [plane_pixels(plane).copy() for plane in frame.planes[:3]]
        if turns:
            planes = [np.rot90(plane, turns).copy() for plane in planes]
            rgb = np.rot90(rgb, turns).copy()
        if rgb.shape[:2] != (self.facts.height, self.facts.width):
            raise self._unusable("the size of its frames changes. Export it with one size.")
        return FilmFrame(tuple(planes), rgb, time)

    def _check_complete(self, count: int, stated: int) -> None:
        """Check that about as many frames were decoded as the header says; 0 if it does not."""
        if count < 0.9 * stated - 2:
            raise self._unusable(
                f"it is truncated: its header says {stated} frames, {count} can be "
                "decoded. Copy or download the file again."
            )

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        file = str(self._path) if self._data is None else io.BytesIO(self._data)
        try:
            container = av.open(file, "r", options=self._options)
        except (av.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                raise FilmError(
                    f"Cannot read the film{self.name}: {error.strerror}. Check the path."
                ) from error
            raise self._unusable(
                "it is not a video file, or it is damaged; expected mp4, mov, mkv, webm or avi. "
                "Play the file to check it."
            ) from error
        with container:
            if not container.streams.video:
                raise self._unusable("it has no video track. Use a film, not a sound file.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Decode the frames; a damaged end of the file ends them with an error."""
        try:
            yield from container.decode(stream)
        except (av.FFmpegError, ValueError) as error:
            raise self._unusable(
                f"it is damaged ({getattr(error, 'strerror', None) or error}). Copy or download "
                "the file again."
            ) from error

    def _facts(
        self, container: InputContainer, stream: VideoStream, first: VideoFrame
    ) -> FilmFacts:
        width, height = first.width, first.height
        if not MIN_SIDE_PX <= min(width, height) or max(width, height) > MAX_SIDE_PX:
            raise self._unusable(
                f"its frames have {width}x{height} pixels; each side must have from {MIN_SIDE_PX} "
                f"to {MAX_SIDE_PX}. Scale the film."
            )
        turned = first.rotation % 180 != 0
        pixel_format = _kept_format(first.format.name, turned=turned)
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25).limit_denominator(1001)
        seconds = _seconds(container, stream)
        codec = stream.codec_context
        full = codec.color_range == _FULL_RANGE or pixel_format.startswith("yuvj")
        return FilmFacts(
            width=height if turned else width,
            height=width if turned else height,
            rate=rate,
            frames=_stated_frames(stream, rate) or round(seconds * rate),
            pixel_format=pixel_format,
            time_base=Fraction(stream.time_base or 1 / rate),
            tags=ColourTags(
                int(codec.colorspace), int(codec.color_primaries), int(codec.color_trc), full
            ),
            converted=None if pixel_format == first.format.name else first.format.name,
        )

    def _unusable(self, reason: str) -> FilmError:
        return FilmError(f"Cannot use the film{self.name}: {reason}")


def _kept_format(name: str, *, turned: bool) -> str:
    """Return the 8-bit planar format in which frames of a format are kept."""
    if turned and "422" in name:  # whose chroma has another shape when it is turned
        return "yuv444p"
    return name if name in _PLANAR else "yuv420p"


def _seconds(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _stated_frames(stream: VideoStream, rate: Fraction) -> int:
    """Return how many frames are shown by the header; 0 if it does not say.

    An MP4 file may hold frames before those that are shown, from the last key frame on. Its edit
    list cuts them off, and so limits the duration, but not the number of frames of the track.
    """
    if stream.duration is None or stream.time_base is None:
        return stream.frames
    return min(stream.frames, round(stream.duration * stream.time_base * rate))


def plane_pixels(plane: VideoPlane) -> np.ndarray:
    """Return the pixels of a plane, `(H, W)` uint8, in its own memory."""
    rows = np.frombuffer(memoryview(plane), np.uint8)
    return rows.reshape(-1, plane.line_size)[: plane.height, : plane.width]
