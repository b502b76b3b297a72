"""Sound files in, MP4 files out; needs PyAV."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from letstalk_client import FPS, SAMPLE_RATE, Picture, Sound


def read_sound(path: Path) -> np.ndarray:
    """Read any sound file as `(n,)` int16, 16 kHz mono."""
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    pieces: list[np.ndarray] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            pieces += [part.to_ndarray().ravel() for part in resampler.resample(frame)]
        pieces += [part.to_ndarray().ravel() for part in resampler.resample(None)]
    return np.concatenate(pieces)


class Movie:
    """An MP4 file of pictures and sound as the server sends them, in step by their numbers.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = av.open(str(path), "w")
        self._video = self._file.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        self._audio = self._file.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        self._first: int | None = None
        self.pictures = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._first is not None:
            self._file.mux(self._video.encode(None))
            self._file.mux(self._audio.encode(None))
        self._file.close()

    def add(self, item: Picture | Sound) -> None:
        """Write a picture or a sound at its place."""
        if self._first is None:
            if isinstance(item, Sound):
                return  # the film begins with a picture
            self._first = item.number
            self._video.width, self._video.height = item.size
            self._video.pix_fmt = "yuv420p"
        place = item.number - self._first
        if isinstance(item, Picture):
            self._add_picture(item, place)
        else:
            self._add_sound(item.pcm, place * SAMPLE_RATE // FPS)

    def _add_picture(self, picture: Picture, place: int) -> None:
        with av.open(io.BytesIO(picture.data), format="mjpeg") as jpeg:
            frame = next(jpeg.decode(video=0)).reformat(*picture.size, format="yuv420p")
        frame.pts, frame.time_base = place, Fraction(1, FPS)
        self._file.mux(self._video.encode(frame))
        self.pictures += 1

    def _add_sound(self, pcm: np.ndarray, place: int) -> None:
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, place
        frame.time_base = Fraction(1, SAMPLE_RATE)
        self._file.mux(self._audio.encode(frame))
