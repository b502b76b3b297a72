"""A sound file that comes as a microphone does: piece by piece, at the pace of time."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from letstalk_rt.errors import ConfigError

MIN_BLOCK_MS, MAX_BLOCK_MS = 5, 500


class FileSource:
    """A sound file, paced in real time.

    Args:
        path: wav, flac, mp3, m4a, ogg or mp4.
        block_ms: length of the pieces, from 5 to 500.
        paced: False gives the pieces as fast as they are taken.
        loop: begin again at the end, for ever.

    Attributes:
        sample_rate: of the file, in Hz.

    Raises:
        AudioFormatError: the file cannot be read.
        ConfigError: `block_ms` is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        block_ms: int = 10,
        paced: bool = True,
        loop: bool = False,
    ) -> None:
        from letstalk_rt.audio.files import read_audio

        if not MIN_BLOCK_MS <= block_ms <= MAX_BLOCK_MS:
            raise ConfigError(
                f"block_ms must be from {MIN_BLOCK_MS} to {MAX_BLOCK_MS}, got {block_ms}"
            )
        samples, rate = read_audio(Path(path))
        if samples.ndim == 2:  # a file may have six channels
            samples = samples.mean(axis=1, dtype=np.float32)
        if rate % 100:  # live sound comes in whole samples per 10 ms
            samples, rate = _at_48khz(samples, rate), 48_000
        self.sample_rate = rate
        self._samples = samples
        self._block = rate * block_ms // 1000
        self._paced, self._loop = paced, loop

    @property
    def seconds(self) -> float:
        """How long the file is."""
        return len(self._samples) / self.sample_rate

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        """Give each piece once its last sample would have been spoken."""
        clock = asyncio.get_running_loop()
        started_s, given = clock.time(), 0
        while True:
            for start in range(0, len(self._samples), self._block):
                piece = self._samples[start : start + self._block]
                given += len(piece)
                if self._paced:
                    due_s = started_s + given / self.sample_rate
                    await asyncio.sleep(max(0.0, due_s - clock.time()))
                yield piece
            if not (self._loop and len(self._samples)):
                return


def _at_48khz(samples: np.ndarray, rate: int) -> np.ndarray:
    import soxr

    converted: np.ndarray = soxr.resample(samples, rate, 48_000)
    return converted.astype(np.float32)
