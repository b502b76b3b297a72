"""Collects chunks of any length into hops of fixed length."""

import numpy as np

from letstalk_rt.errors import AudioFormatError
from letstalk_rt.types import SAMPLES_PER_FRAME

HOP = 4 * SAMPLES_PER_FRAME
"""Samples consumed by one step: 160 ms at 16 kHz."""


class HopBuffer:
    """A buffer of samples that do not fill a hop yet.

    It is allocated once. The hops that it returns are copies and belong to the caller.

    Args:
        hop: number of samples in a hop.
    """

    def __init__(self, hop: int = HOP) -> None:
        assert hop > 0, hop
        self._buffer = np.zeros(hop, np.float32)
        self._count = 0

    @property
    def pending(self) -> int:
        """Number of buffered samples; less than a hop."""
        return self._count

    @property
    def missing(self) -> int:
        """Number of samples that the next hop still needs; at least 1."""
        return self._buffer.size - self._count

    def push(self, pcm: np.ndarray) -> list[np.ndarray]:
        """Append samples and return the hops that are now full.

        Args:
            pcm: `(n,)` float32; `n` may be 0.

        Returns:
            The hops, each `(hop,)` float32, oldest first.

        Raises:
            AudioFormatError: `pcm` is not `(n,)` float32.
        """
        if not isinstance(pcm, np.ndarray) or pcm.ndim != 1 or pcm.dtype != np.float32:
            raise AudioFormatError(
                f"samples must be (n,) float32, got {_describe(pcm)}; convert them with Resampler"
            )
        hops = []
        while pcm.size:
            part, pcm = pcm[: self.missing], pcm[self.missing :]
            self._buffer[self._count : self._count + part.size] = part
            self._count += part.size
            if self._count == self._buffer.size:
                hops.append(self._buffer.copy())
                self._count = 0
        return hops

    def fill(self, *, front: bool = False) -> np.ndarray:
        """Return the buffered samples as a hop, padded with silence.

        Args:
            front: put the silence before the samples instead of after them.

        Returns:
            `(hop,)` float32; all silence if nothing was pending.
        """
        hop = np.zeros_like(self._buffer)
        start = self.missing if front else 0
        hop[start : start + self._count] = self._buffer[: self._count]
        self._count = 0
        return hop

    def reset(self) -> None:
        """Drop the pending samples."""
        self._count = 0


def _describe(pcm: object) -> str:
    if isinstance(pcm, np.ndarray):
        return f"{pcm.shape} {pcm.dtype}"
    return type(pcm).__name__
