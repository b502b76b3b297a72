"""Writing pictures and sound into one video file, in sync to the sample."""

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
import soxr
from av.codec.codec import UnknownCodecError
from av.video.reformatter import Colorspace

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.types import FPS

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_AAC_RATES_HZ = (
    8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000,
)  # fmt: skip
_BT709 = 1
_LIMITED_RANGE = 1


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    audio: np.ndarray,
    rate: int,
    *,
    fps: int = FPS,
) -> int:
    """Write pictures and their sound as H.264 and AAC.

    Sample 0 and frame 0 start together; the file lasts as long as the longer of the two. It
    appears under its name only when it is complete.

    Args:
        path: ends in .mp4, .m4v, .mov or .mkv.
        frames: `(H, W, 3)` uint8 each, all of one size.
        audio: float in [-1, 1], `(n,)` or `(n, channels)`.
        rate: of `audio`, in Hz. Kept as it is where AAC knows it.
        fps: frames per second.

    Returns:
        How many frames were written.

    Raises:
        ConfigError: the file cannot be written there.
    """
    with VideoWriter(path, rate, channels=_channels(audio), fps=fps) as writer:
        for index, rgb in enumerate(frames):
            sound = audio[index * rate // fps : (index + 1) * rate // fps]
            writer.write(rgb, sound)
        writer.write_sound(audio[writer.frames * rate // fps :])
        return writer.frames


class VideoWriter:
    """Writes a video file frame by frame; use as a context manager.

    The file grows under `NAME.part` and is renamed when the block ends well; after an error
    nothing is left behind.
    """

    def __init__(self, path: str | Path, rate: int, *, channels: int = 1, fps: int = FPS) -> None:
        """Say where to and what.

        Args:
            path: see `write_video`.
            rate: of the sound, in Hz.
            channels: of the sound; more than two are mixed down to one.
            fps: frames per second.

        Raises:
            ConfigError: the ending of `path` is unknown.
        """
        self.path = Path(path)
        self.frames = 0
        if self.path.suffix.lower() not in CONTAINERS:
            raise ConfigError(
                f"The output {self.path.name} ends in {self.path.suffix!r}; expected one of "
                f"{', '.join(CONTAINERS)}."
            )
        self._part = self.path.with_name(self.path.name + ".part")
        self._rate, self._fps = rate, fps
        self._channels = channels
        self._samples = 0

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            ConfigError: the file cannot be written there.
            DependencyError: FFmpeg lacks an encoder.
        """
        if self.path.is_dir():
            raise ConfigError(f"Cannot write {self.path}: it is a folder. Name a file.")
        container = CONTAINERS[self.path.suffix.lower()]
        options = {"movflags": "+faststart"} if container != "matroska" else {}
        try:
            self._container = av.open(str(self._part), "w", format=container, options=options)
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            self._add_streams()
        except UnknownCodecError as error:
            self._close_quietly()
            self._part.unlink(missing_ok=True)
            raise DependencyError(
                f"This FFmpeg has no encoder {error}. Install the package av from PyPI, whose "
                "FFmpeg has libx264 and aac."
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file, or remove what there is of it."""
        try:
            if error is None:
                self._finish()
            else:
                self._close_quietly()
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, rgb: np.ndarray, pcm: np.ndarray) -> None:
        """Add one frame and any amount of sound.

        Args:
            rgb: `(H, W, 3)` uint8; odd sizes lose their last row or column.
            pcm: float in [-1, 1], `(n,)` or `(n, channels)`.

        Raises:
            ConfigError: the disk is full, or the like.
        """
        height, width = (length // 2 * 2 for length in rgb.shape[:2])
        if self.frames == 0:
            self._start_picture(width, height)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = self.frames, Fraction(1, self._fps)
        self._mux(self._video, frame)
        self.frames += 1
        self.write_sound(pcm)

    def write_sound(self, pcm: np.ndarray) -> None:
        """Add sound alone; see `write`."""
        pcm = self._to_layout(np.asarray(pcm, np.float32))
        if self._resampler is not None:
            pcm = self._resampler.resample_chunk(pcm)
        self._encode_sound(pcm)

    def _add_streams(self) -> None:
        self._video = self._container.add_stream(
            "libx264", rate=self._fps, options={"crf": "18", "preset": "veryfast"}
        )
        stereo = self._channels == 2
        self._aac_rate = self._rate if self._rate in _AAC_RATES_HZ else 48_000
        self._audio = self._container.add_stream(
            "aac", rate=self._aac_rate, layout="stereo" if stereo else "mono"
        )
        self._audio.bit_rate = 192_000 if stereo else 128_000
        self._resampler = (
            None
            if self._aac_rate == self._rate
            else soxr.ResampleStream(self._rate, self._aac_rate, 2 if stereo else 1, "float32")
        )

    def _start_picture(self, width: int, height: int) -> None:
        self._video.width, self._video.height = width, height
        self._video.pix_fmt = "yuv420p"
        context = self._video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE

    def _to_layout(self, pcm: np.ndarray) -> np.ndarray:
        assert _channels(pcm) == self._channels, (pcm.shape, self._channels)
        if self._channels == 2:
            return pcm
        return pcm if pcm.ndim == 1 else pcm.mean(1)

    def _encode_sound(self, pcm: np.ndarray) -> None:
        if not len(pcm):
            return
        planes = np.ascontiguousarray(pcm.reshape(len(pcm), -1).T)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=self._audio.layout.name)
        frame.sample_rate = self._aac_rate
        frame.pts, frame.time_base = self._samples, Fraction(1, self._aac_rate)
        self._samples += len(pcm)
        self._mux(self._audio, frame)

    def _mux(
        self,
        stream: av.VideoStream | av.AudioStream,
        frame: av.VideoFrame | av.AudioFrame | None,
    ) -> None:
        try:
            self._container.mux(stream.encode(frame))  # type: ignore[arg-type]
        except OSError as error:
            raise self._cannot_write(error) from error

    def _finish(self) -> None:
        try:
            if self._resampler is not None:
                empty = np.zeros((0, 2) if self._channels == 2 else 0, np.float32)
                self._encode_sound(self._resampler.resample_chunk(empty, last=True))
            if self.frames:
                self._mux(self._video, None)
            self._mux(self._audio, None)
            self._container.close()
            os.replace(self._part, self.path)
        except OSError as error:
            self._close_quietly()
            raise self._cannot_write(error) from error

    def _close_quietly(self) -> None:
        try:
            self._container.close()
        except (OSError, ValueError):
            return  # the first error is the one to tell

    def _cannot_write(self, error: OSError) -> ConfigError:
        reason = error.strerror or error
        return ConfigError(
            f"Cannot write {self.path}: {reason}. Choose a folder that exists, can be written to "
            "and has room."
        )


def _channels(pcm: np.ndarray) -> int:
    return 1 if pcm.ndim == 1 else pcm.shape[1]
