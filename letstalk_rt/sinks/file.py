"""Writing pictures and sound into one video file, in sync to the sample."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.portrait.watermark import statement_metadata
from letstalk_rt.sinks.av_encoder import AVEncoder, EncoderSettings
from letstalk_rt.sinks.base import ThreadedSink
from letstalk_rt.types import FPS, SAMPLE_RATE

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_LIVE_X264 = {"crf": "20", "preset": "superfast", "bf": "0"}
_KEY_FRAME_S = 1.0
"""A recording that is cut off loses this and what the encoder holds."""


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    audio: np.ndarray,
    rate: int,
    *,
    fps: int = FPS,
    badge: bool = True,
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
        badge: draw the badge "AI avatar" into the pictures.

    Returns:
        How many frames were written.

    Raises:
        ConfigError: the file cannot be written there.
    """
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    with VideoWriter(path, rate, channels=channels, fps=fps, badge=badge) as writer:
        for index, rgb in enumerate(frames):
            sound = audio[index * rate // fps : (index + 1) * rate // fps]
            writer.write(rgb, sound)
        writer.write_audio(audio[writer.frames * rate // fps :])
        return writer.frames


class VideoWriter:
    """Writes a video file frame by frame; use as a context manager.

    The file says in its metadata that it is generated. It grows under `NAME.part` and is renamed
    when the block ends well; after an error nothing is left behind. A file that is `crash_safe`
    grows under its own name and can be played however it ended, up to its last two seconds.
    """

    def __init__(
        self,
        path: str | Path,
        rate: int,
        *,
        channels: int = 1,
        fps: int = FPS,
        badge: bool = True,
        crash_safe: bool = False,
        x264: dict[str, str] | None = None,
    ) -> None:
        """Say where to and what.

        Args:
            path: see `write_video`.
            rate: of the sound, in Hz.
            channels: of the sound; more than two are mixed down to one.
            fps: frames per second.
            badge: draw the badge "AI avatar" into the pictures.
            crash_safe: keep what was written whatever happens.
            x264: options of the picture's encoder.

        Raises:
            ConfigError: the ending of `path` is unknown.
        """
        self.path = Path(path)
        if self.path.suffix.lower() not in CONTAINERS:
            raise ConfigError(
                f"The output {self.path.name} ends in {self.path.suffix!r}; expected one of "
                f"{', '.join(CONTAINERS)}."
            )
        self._crash_safe = crash_safe
        part = self.path.with_name(self.path.name + ".part")
        self._growing = self.path if crash_safe else part
        self._settings = EncoderSettings(
            rate,
            channels,
            fps,
            badge,
            key_frame_s=_KEY_FRAME_S if crash_safe else None,
            **({} if x264 is None else {"x264": x264}),  # type: ignore[arg-type]
        )
        self._encoder: AVEncoder | None = None

    @property
    def frames(self) -> int:
        """How many were written."""
        return 0 if self._encoder is None else self._encoder.frames

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            ConfigError: the file cannot be written there.
            DependencyError: FFmpeg lacks an encoder.
        """
        if self.path.is_dir():
            raise ConfigError(f"Cannot write {self.path}: it is a folder. Name a file.")
        container = CONTAINERS[self.path.suffix.lower()]
        try:
            self._container = av.open(
                str(self._growing),
                "w",
                format=container,
                options=_options(container, self._crash_safe),
            )
        except OSError as error:
            raise self._cannot_write(error) from error
        self._container.metadata.update(statement_metadata())
        try:
            self._encoder = AVEncoder(self._container, self._settings)
        except DependencyError:
            self._close_quietly()
            self._growing.unlink(missing_ok=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file, or remove what there is of it unless it is crash-safe."""
        try:
            if error is None or self._crash_safe:
                self._finish()
            else:
                self._close_quietly()
        finally:
            if not self._crash_safe:
                self._growing.unlink(missing_ok=True)

    def start(self, width: int, height: int) -> None:
        """Write the head of the file now, so that a place that cannot be written is told early.

        Args:
            width: of the pictures that will come.
            height: of them.

        Raises:
            ConfigError: the file cannot be written there.
        """
        assert self._encoder is not None, "use the writer in a with block"
        try:
            self._encoder.start(width, height)
            self._container.start_encoding()
        except OSError as error:
            self._close_quietly()
            raise self._cannot_write(error) from error

    def write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        """Add one frame and any amount of sound.

        Args:
            rgb: `(H, W, 3)` uint8; odd sizes lose their last row or column. None lets the last
                picture stay for another frame.
            pcm: float in [-1, 1], `(n,)` or `(n, channels)`.

        Raises:
            ConfigError: the disk is full, or the like.
        """
        assert self._encoder is not None, "use the writer in a with block"
        try:
            self._encoder.write(rgb, pcm)
        except OSError as error:
            raise self._cannot_write(error) from error

    def write_audio(self, pcm: np.ndarray) -> None:
        """Add sound alone; see `write`."""
        assert self._encoder is not None, "use the writer in a with block"
        try:
            self._encoder.write_audio(pcm)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _finish(self) -> None:
        assert self._encoder is not None
        try:
            self._encoder.finish()
            self._container.close()
            if not self._crash_safe:
                os.replace(self._growing, self.path)
        except OSError as error:
            self._close_quietly()
            raise self._cannot_write(error) from error

    def _close_quietly(self) -> None:
        with suppress(OSError, ValueError):  # the first error is the one to tell
            self._container.close()

    def _cannot_write(self, error: OSError) -> ConfigError:
        reason = error.strerror or error
        return ConfigError(
            f"Cannot write {self.path}: {reason}. Choose a folder that exists, can be written to "
            "and has room."
        )


class Recording(ThreadedSink):
    """Records a live session into an mp4, mov or mkv file that survives a crash.

    The file holds what was shown, without the pauses of a stall; picture and sound stay together.

    Args:
        path: see `write_video`. An older file of that name is replaced at once.
        badge: draw the badge "AI avatar" into the pictures.
        max_pictures: so many pictures may wait to be written; the next ones are left out.
    """

    def __init__(self, path: str | Path, *, badge: bool = True, max_pictures: int = 50) -> None:
        super().__init__("recording", max_pictures=max_pictures)
        self._writer = VideoWriter(
            path, SAMPLE_RATE, badge=badge, crash_safe=True, x264=dict(_LIVE_X264)
        )

    def _open(self, width: int, height: int) -> None:
        self._writer.__enter__()
        self._writer.start(width, height)

    def _write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        self._writer.write(rgb, pcm)

    def _close(self) -> None:
        self._writer.__exit__(None, None, None)


def _options(container: str, crash_safe: bool) -> dict[str, str]:
    if container == "matroska":
        return {"cluster_time_limit": "1000", "flush_packets": "1"} if crash_safe else {}
    if not crash_safe:
        return {"movflags": "+faststart"}
    # Fragments while it grows, a plain file at the end: players then know its length.
    flags = "+frag_keyframe+delay_moov+hybrid_fragmented"
    return {"movflags": flags, "flush_packets": "1"}
