"""Cuts a stream of samples of any piece size into hops of one size. Knows no rates, no segments."""

import numpy as np

from letstalk_rt.errors import AudioFormatError
from letstalk_rt.types import SAMPLES_PER_FRAME

HOP = 4 * SAMPLES_PER_FRAME
"""Samples taken by one step: 160 ms at 16 kHz."""


class HopBuffer:
    """Holds the samples that do not fill a hop yet.

    Its buffer is allocated once. The hops given out are copies and belong to the taker.

    Args:
        hop: samples in a hop.
    """

    def __init__(self, hop: int = HOP) -> None:
        assert hop > 0, hop
        self._held = np.zeros(hop, np.float32)
        self._count = 0

    @property
    def pending(self) -> int:
        """Samples that wait for the hop to fill; less than a hop."""
        return self._count

    @property
    def room(self) -> int:
        """Samples that are missing to the next hop; at least 1."""
        return self._held.size - self._count

    def push(self, pcm: np.ndarray) -> list[np.ndarray]:
        """Take samples and give the hops that are now full.

        Args:
            pcm: `(n,)` float32, any `n`, 0 included.

        Returns:
            Hops, each `(hop,)` float32, oldest first.

        Raises:
            AudioFormatError: `pcm` is not `(n,)` float32.
        """
        if not isinstance(pcm, np.ndarray) or pcm.ndim != 1 or pcm.dtype != np.float32:
            raise AudioFormatError(
                f"a hop is cut from (n,) float32, got {_describe(pcm)}; pass it through Resampler"
            )
        hops = []
        while pcm.size:
            piece, pcm = pcm[: self.room], pcm[self.room :]
            self._held[self._count : self._count + piece.size] = piece
            self._count += piece.size
            if self._count == self._held.size:
                hops.append(self._held.copy())
                self._count = 0
        return hops

    def fill(self, *, front: bool = False) -> np.ndarray:
        """Give the hop that is not full, with silence for what is missing.

        Args:
            front: put the silence before the samples, not after them.

        Returns:
            `(hop,)` float32; all silence when nothing was pending.
        """
        hop = np.zeros_like(self._held)
        start = self.room if front else 0
        hop[start : start + self._count] = self._held[: self._count]
        self._count = 0
        return hop

    def reset(self) -> None:
        """Forget what is pending."""
        self._count = 0


def _describe(pcm: object) -> str:
    if isinstance(pcm, np.ndarray):
        return f"{pcm.shape} {pcm.dtype}"
    return type(pcm).__name__
