"""An audio file as a source."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import numpy as np

from letstalk_rt.errors import ConfigError

MIN_BLOCK_MS, MAX_BLOCK_MS = 5, 500


class FileSource:
    """An audio file, read chunk by chunk in real time, as a microphone would deliver it.

    Args:
        path: a wav, flac, mp3, m4a, ogg or mp4 file.
        block_ms: length of a chunk, from 5 to 500.
        paced: False yields chunks as fast as they are consumed.
        loop: restart at the end, without limit.

    Attributes:
        sample_rate: sample rate of the chunks in Hz.

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
        self.sample_rate = rate
        self._samples = samples
        self._block = rate * block_ms // 1000
        self._paced, self._loop = paced, loop

    @property
    def seconds(self) -> float:
        """Length of the file in seconds."""
        return len(self._samples) / self.sample_rate

    async def __aenter__(self) -> Self:
        """Do nothing, so that a file may stand where a microphone does."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Do nothing."""

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        """Yield each chunk, `(n,)` float32, when its last sample would have been recorded."""
        clock = asyncio.get_running_loop()
        started_s, yielded = clock.time(), 0
        while True:
            for start in range(0, len(self._samples), self._block):
                chunk = self._samples[start : start + self._block]
                yielded += len(chunk)
                if self._paced:
                    due_s = started_s + yielded / self.sample_rate
                    await asyncio.sleep(max(0.0, due_s - clock.time()))
                yield chunk
            if not (self._loop and len(self._samples)):
                return
