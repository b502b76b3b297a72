"""Reads audio files and writes MP4 files; it needs PyAV."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from letstalk_client import FPS, SAMPLE_RATE, AudioFrame, VideoFrame


def read_audio(path: Path) -> np.ndarray:
    """Read an audio file as `(n,)` int16, 16 kHz mono."""
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    chunks: list[np.ndarray] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            chunks += [chunk.to_ndarray().ravel() for chunk in resampler.resample(frame)]
        chunks += [chunk.to_ndarray().ravel() for chunk in resampler.resample(None)]
    return np.concatenate(chunks)


class Recording:
    """An MP4 file of the frames of a session, synchronised by their numbers.

    Args:
        path: file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = av.open(str(path), "w")
        self._video = self._file.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        self._audio = self._file.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        self._first: int | None = None
        self.frames = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._first is not None:
            self._file.mux(self._video.encode(None))
            self._file.mux(self._audio.encode(None))
        self._file.close()

    def add(self, item: VideoFrame | AudioFrame) -> None:
        """Write a frame at its time."""
        if self._first is None:
            if isinstance(item, AudioFrame):
                return  # the recording begins with a video frame
            self._first = item.number
            self._video.width, self._video.height = item.size
            self._video.pix_fmt = "yuv420p"
        position = item.number - self._first
        if isinstance(item, VideoFrame):
            self._add_video(item, position)
        else:
            self._add_audio(item.pcm, position * SAMPLE_RATE // FPS)

    def _add_video(self, item: VideoFrame, position: int) -> None:
        with av.open(io.BytesIO(item.data), format="mjpeg") as jpeg:
            frame = next(jpeg.decode(video=0)).reformat(*item.size, format="yuv420p")
        frame.pts, frame.time_base = position, Fraction(1, FPS)
        self._file.mux(self._video.encode(frame))
        self.frames += 1

    def _add_audio(self, pcm: np.ndarray, position: int) -> None:
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, position
        frame.time_base = Fraction(1, SAMPLE_RATE)
        self._file.mux(self._audio.encode(frame))
