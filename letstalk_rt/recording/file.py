"""Writes video files with audio, in sync to the sample."""

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from letstalk_rt.errors import DependencyError
from letstalk_rt.recording.av_encoder import AVEncoder, EncoderSettings
from letstalk_rt.recording.credentials import SigningCredentials
from letstalk_rt.recording.output_file import OutputFile
from letstalk_rt.recording.provenance import Provenance
from letstalk_rt.recording.threaded_sink import ThreadedSink
from letstalk_rt.types import FPS, SAMPLE_RATE

_LIVE_X264 = {"crf": "20", "preset": "superfast", "bf": "0"}
_KEY_FRAME_S = 1.0
"""A recording that is cut off loses at most this, and what the encoder buffers."""


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    audio: np.ndarray,
    rate: int,
    *,
    fps: int = FPS,
    badge: bool = True,
    provenance: Provenance | None = None,
    credentials: SigningCredentials | None = None,
) -> int:
    """Write frames and their audio as H.264 and AAC.

    Sample 0 and frame 0 start together; the file is as long as the longer of the two. It appears
    under its name only when it is complete.

    Args:
        path: a path that ends in .mp4, .m4v, .mov or .mkv.
        frames: frames of one size, `(H, W, 3)` uint8 each.
        audio: float in [-1, 1], `(n,)` or `(n, channels)`.
        rate: sample rate of `audio` in Hz, kept if AAC supports it.
        fps: frames per second.
        badge: draw the badge "AI avatar" into the frames.
        provenance: see `VideoWriter`.
        credentials: see `VideoWriter`.

    Returns:
        The number of frames written.

    Raises:
        ConfigError: the file cannot be written.
    """
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    with VideoWriter(
        path,
        rate,
        channels=channels,
        fps=fps,
        badge=badge,
        provenance=provenance,
        credentials=credentials,
    ) as writer:
        for index, rgb in enumerate(frames):
            writer.write(rgb, audio[index * rate // fps : (index + 1) * rate // fps])
        writer.write_audio(audio[writer.frames * rate // fps :])
        return writer.frames


class VideoWriter:
    """A writer of a video file, frame by frame, used as a context manager.

    The metadata of the file state that it is generated. The file is written as `NAME.part` and
    renamed when the block ends without an error; after an error it is removed. A `crash_safe` file
    is written under its own name, and after a crash it can be played up to its last two seconds.
    With `credentials` it is signed when it is complete; a failure to sign leaves it unsigned.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rate: int,
        *,
        channels: int = 1,
        fps: int = FPS,
        badge: bool = True,
        crash_safe: bool = False,
        x264: dict[str, str] | None = None,
        provenance: Provenance | None = None,
        credentials: SigningCredentials | None = None,
    ) -> None:
        """Check the path.

        Args:
            path: see `write_video`.
            rate: sample rate of the audio in Hz.
            channels: channels of the audio; more than two are mixed down to one.
            fps: frames per second.
            badge: draw the badge "AI avatar" into the frames.
            crash_safe: keep what was written, also after an error or a crash.
            x264: options of the video encoder.
            provenance: what metadata and signature state; its default knows the badge alone.
            credentials: sign the file with these.

        Raises:
            ConfigError: the extension of `path` is not supported, or cannot be signed.
        """
        self._file = OutputFile(
            Path(path), provenance or Provenance(badge=badge), credentials, crash_safe
        )
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
        """Number of frames written."""
        return 0 if self._encoder is None else self._encoder.frames

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            ConfigError: the file cannot be written.
            DependencyError: this FFmpeg lacks an encoder.
        """
        self._container = self._file.open()
        try:
            self._encoder = AVEncoder(self._container, self._settings)
        except DependencyError:
            self._file.discard(self._container)
            self._file.temporary.unlink(missing_ok=True)  # there is nothing to keep
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file; after an error remove it, unless it is crash-safe."""
        if error is not None and not self._file.crash_safe:
            self._file.discard(self._container)
            return
        try:
            self._finish()
        finally:
            self._file.remove_temporary()

    def start(self, width: int, height: int) -> None:
        """Write the header of the file now, so that an unwritable path is reported early.

        Args:
            width: width of the frames.
            height: height of the frames.

        Raises:
            ConfigError: the file cannot be written.
        """
        assert self._encoder is not None, "use the writer in a with block"
        try:
            self._encoder.start(width, height)
            self._container.start_encoding()
        except OSError as error:
            self._file.discard(self._container)
            raise self._file.cannot_write(error) from error

    def write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        """Write one frame and any amount of audio.

        Args:
            rgb: `(H, W, 3)` uint8; odd sizes lose their last row or column. None keeps the previous
                image for the duration of this frame.
            pcm: float in [-1, 1], `(n,)` or `(n, channels)`.

        Raises:
            ConfigError: the file cannot be written, for example because the disk is full.
        """
        assert self._encoder is not None, "use the writer in a with block"
        try:
            self._encoder.write(rgb, pcm)
        except OSError as error:
            raise self._file.cannot_write(error) from error

    def write_audio(self, pcm: np.ndarray) -> None:
        """Write audio alone; see `write`."""
        assert self._encoder is not None, "use the writer in a with block"
        try:
            self._encoder.write_audio(pcm)
        except OSError as error:
            raise self._file.cannot_write(error) from error

    def _finish(self) -> None:
        assert self._encoder is not None
        try:
            self._encoder.finish()
        except OSError as error:
            self._file.discard(self._container)
            raise self._file.cannot_write(error) from error
        self._file.complete(self._container)


class Recording(ThreadedSink):
    """A recording of a live session as an mp4, mov or mkv file that survives a crash.

    The file contains the frames that were shown, without the gaps of stalls, in sync with audio.

    Args:
        path: see `write_video`. An existing file is overwritten at once.
        badge: draw the badge "AI avatar" into the frames.
        max_video_frames: see `ThreadedSink`.
        sample_rate: `output_sample_rate` of the session, Hz.
        provenance: see `VideoWriter`.
        credentials: see `VideoWriter`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        badge: bool = True,
        max_video_frames: int = 50,
        sample_rate: int = SAMPLE_RATE,
        provenance: Provenance | None = None,
        credentials: SigningCredentials | None = None,
    ) -> None:
        super().__init__("recording", max_video_frames=max_video_frames, sample_rate=sample_rate)
        self._writer = VideoWriter(
            path,
            sample_rate,
            badge=badge,
            crash_safe=True,
            x264=dict(_LIVE_X264),
            provenance=provenance,
            credentials=credentials,
        )

    def _open(self, width: int, height: int) -> None:
        self._writer.__enter__()
        self._writer.start(width, height)

    def _write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        self._writer.write(rgb, pcm)

    def _close(self) -> None:
        self._writer.__exit__(None, None, None)
