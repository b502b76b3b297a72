"""Writes a film with its own colours, size and frame times, and with another sound."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from letstalk_rt.dubbing.film import FilmFacts, plane_pixels
from letstalk_rt.recording.credentials import SigningCredentials
from letstalk_rt.recording.output_file import OutputFile
from letstalk_rt.recording.provenance import Provenance

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
        provenance: what metadata and signature state.
        credentials: sign the film with these when it is complete.

    Raises:
        ConfigError: the extension of `path` is not supported, or cannot be signed.
    """

    def __init__(
        self,
        path: str | Path,
        facts: FilmFacts,
        rate: int,
        channels: int,
        provenance: Provenance,
        credentials: SigningCredentials | None = None,
    ) -> None:
        self._file = OutputFile(Path(path), provenance, credentials)
        self._facts, self._rate, self._channels = facts, rate, channels
        self._samples = 0

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._container = self._file.open()
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
        if error is not None:
            self._file.discard(self._container)
            return
        try:
            self._finish()
        finally:
            self._file.remove_temporary()

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
        self._file.complete(self._container)

    def _mux(
        self, stream: VideoStream | AudioStream, frame: VideoFrame | av.AudioFrame | None
    ) -> None:
        try:
            self._container.mux(stream.encode(frame))  # type: ignore[arg-type]
        except OSError as error:
            raise self._file.cannot_write(error) from error


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
