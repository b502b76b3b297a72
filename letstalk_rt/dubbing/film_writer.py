"""Writes a film with its own colours, size and frame times, and with another sound."""

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from letstalk_rt import __version__
from letstalk_rt.dubbing.film import FilmFacts, plane_pixels
from letstalk_rt.errors import ConfigError

CONTAINERS: Final = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
STATEMENT = (
    "Dubbed: the mouth of the person in this film was generated from another voice. Digital "
    "source type: http://cv.iptc.org/newscodes/digitalsourcetype/"
    f"compositeWithTrainedAlgorithmicMedia. Made by letstalk_rt {__version__}."
)
"""What the metadata of a dubbed film state, with the source type of the IPTC."""

_RATES_HZ = (16_000, 24_000, 32_000, 44_100, 48_000)
_X264 = {"crf": "18", "preset": "veryfast"}
_BIT_RATES = {1: 128_000, 2: 192_000}


class FilmWriter:
    """A writer of one film, used as a context manager.

    The file is written as `NAME.part` and renamed when the block ends without an error.

    Args:
        path: a path that ends in .mp4, .m4v, .mov or .mkv.
        facts: what the film is like.
        rate: sample rate of the sound in Hz.
        channels: its channels, 1 or 2.

    Raises:
        ConfigError: the extension of `path` is not supported.
    """

    def __init__(self, path: str | Path, facts: FilmFacts, rate: int, channels: int) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in CONTAINERS:
            raise ConfigError(
                f"The output {self.path.name} ends in {self.path.suffix!r}; expected one of "
                f"{', '.join(CONTAINERS)}."
            )
        self._temporary = self.path.with_name(self.path.name + ".part")
        self._facts, self._rate, self._channels = facts, rate, channels
        self._samples = 0

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            ConfigError: the file cannot be written.
        """
        if self.path.is_dir():
            raise ConfigError(f"Cannot write {self.path}: it is a folder. Give the path of a file.")
        container = CONTAINERS[self.path.suffix.lower()]
        options = {} if container == "matroska" else {"movflags": "+faststart"}
        try:
            self._container = av.open(str(self._temporary), "w", format=container, options=options)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._container.metadata["comment"] = STATEMENT
        self._video = self._video_stream()
        self._audio = self._audio_stream()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file; after an error remove it."""
        try:
            if error is None:
                self._finish()
            else:
                with suppress(OSError, ValueError):  # the first error is the one to report
                    self._container.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, planes: tuple[np.ndarray, ...], time: int) -> None:
        """Write a frame.

        Args:
            planes: luma and two of chroma, uint8, in the film's pixel format.
            time: when it is shown, in units of the film's time base; later than all before.

        Raises:
            ConfigError: the file cannot be written, for example because the disk is full.
        """
        width, height = self._video.width, self._video.height
        frame = VideoFrame(width, height, self._facts.pixel_format)
        for plane, pixels in zip(frame.planes, planes, strict=True):
            plane_pixels(plane)[:] = pixels[: plane.height, : plane.width]
        frame.pts, frame.time_base = time, self._facts.time_base
        self._mux(self._video, frame)

    def write_sound(self, pcm: np.ndarray) -> None:
        """Write samples `(n,)` or `(n, channels)`, float32 in [-1, 1]; see `write` for errors."""
        if not len(pcm):
            return
        planes = np.ascontiguousarray(pcm.reshape(len(pcm), -1).T, np.float32)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts, frame.time_base = self._samples, Fraction(1, self._rate)
        self._samples += len(pcm)
        for converted in self._resampler.resample(frame):
            self._mux(self._audio, converted)

    def _video_stream(self) -> VideoStream:
        facts = self._facts
        stream = self._container.add_stream("libx264", rate=facts.rate, options=dict(_X264))
        stream.width, stream.height = facts.width // 2 * 2, facts.height // 2 * 2
        stream.pix_fmt = facts.pixel_format
        codec, tags = stream.codec_context, facts.tags
        codec.time_base = facts.time_base
        codec.colorspace, codec.color_primaries = tags.space, tags.primaries
        codec.color_trc, codec.color_range = tags.transfer, 2 if tags.full_range else 1
        return stream

    def _audio_stream(self) -> AudioStream:
        rate = self._rate if self._rate in _RATES_HZ else 48_000
        self._layout = "stereo" if self._channels == 2 else "mono"
        stream = self._container.add_stream("aac", rate=rate, layout=self._layout)
        stream.bit_rate = _BIT_RATES[self._channels]
        self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=rate)
        return stream

    def _finish(self) -> None:
        if self._samples:
            for converted in self._resampler.resample(None):
                self._mux(self._audio, converted)
        for stream in (self._video, self._audio):
            self._mux(stream, None)
        try:
            self._container.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _mux(
        self, stream: VideoStream | AudioStream, frame: VideoFrame | av.AudioFrame | None
    ) -> None:
        try:
            self._container.mux(stream.encode(frame))  # type: ignore[arg-type]
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> ConfigError:
        reason = error.strerror or error
        return ConfigError(
            f"Cannot write {self.path}: {reason}. Choose a folder that exists, is writable and has "
            "free space."
        )


class SoundFeed:
    """Passes sound on to a writer, as far as the film has come.

    Args:
        chunks: the samples.
        rate: their sample rate in Hz.
        writer: receives them.
    """

    def __init__(self, chunks: Iterator[np.ndarray], rate: int, writer: FilmWriter) -> None:
        self._chunks, self._rate, self._writer = chunks, rate, writer
        self._sent = 0

    def until(self, time_s: float) -> None:
        """Write all sound up to a time, or a little beyond."""
        while self._sent < time_s * self._rate:
            chunk = next(self._chunks, None)
            if chunk is None:
                return
            self._sent += len(chunk)
            self._writer.write_sound(chunk)
