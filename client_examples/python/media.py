"""Reads audio files, and pairs video and audio frames for a file."""

import io
from pathlib import Path

import av
import numpy as np
from letstalk_client import FPS, SAMPLE_RATE, AudioFrame, VideoFrame

from letstalk_rt.recording.file import VideoWriter


def read_audio(path: Path) -> np.ndarray:
    """Read an audio file as `(n,)` int16, 16 kHz mono."""
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    chunks: list[np.ndarray] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            chunks += [chunk.to_ndarray().ravel() for chunk in resampler.resample(frame)]
        chunks += [chunk.to_ndarray().ravel() for chunk in resampler.resample(None)]
    return np.concatenate(chunks)


class PairedFrames:
    """Pairs the frames of a session by their numbers and writes them into a video file.

    Args:
        writer: of a file with audio of 16 kHz; the server has drawn the badge already.
    """

    def __init__(self, writer: VideoWriter) -> None:
        self._writer = writer
        self._image: VideoFrame | None = None  # the newest that was not written yet
        self._next: int | None = None

    def add(self, item: VideoFrame | AudioFrame) -> None:
        """Write a frame at its time; the file begins with the first audio after an image."""
        if isinstance(item, VideoFrame):
            self._image = item
        elif self._next is not None or self._image is not None:
            for _ in range(item.number - (item.number if self._next is None else self._next)):
                self._write(np.zeros(SAMPLE_RATE // FPS, np.int16))  # a frame that was lost
            self._next = item.number + 1
            self._write(item.pcm)

    def _write(self, pcm: np.ndarray) -> None:
        image, self._image = self._image, None
        rgb = None if image is None else _decode(image.data)
        self._writer.write(rgb, pcm.astype(np.float32) / 32_768)


def _decode(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data), format="mjpeg") as jpeg:
        return next(jpeg.decode(video=0)).to_ndarray(format="rgb24")
