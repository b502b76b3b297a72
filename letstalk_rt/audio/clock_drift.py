"""Correction of clock drift, so that a live source neither builds up delay nor runs dry.

A microphone's crystal is some 100 ppm off. The arrival times of its chunks show the drift; single
blocks of samples are removed or duplicated to correct it, where this is least audible. A source
that does not deliver in real time (speech synthesis, a file) is not corrected.
"""

import math

import numpy as np

from letstalk_rt.types import SAMPLE_RATE

BLOCK_S = 5.0
"""Length of a block. Its earliest arrival is measured, because jitter only ever delays."""

MAX_DRIFT = 0.0015
"""Largest change that counts as drift; beyond it the source paused or lost audio."""

AHEAD_S = 0.2
"""A source that is further ahead of real time than this is not live."""

PAUSE_S = 0.5
"""Measurement restarts after a longer pause."""

_TOLERANCE = 40  # samples; jitter alone may look like this much drift
_CORRECTION_INTERVAL = 640  # samples between two corrections: at most 1560 ppm


class ClockDriftCorrector:
    """Measures the drift of one source and corrects its samples.

    Args:
        block: number of samples that are removed or duplicated at once; see `block_sizes`.

    Attributes:
        live: whether the source has never been ahead of real time.
        corrected: number of samples duplicated and removed so far.
    """

    def __init__(self, block: int = 1) -> None:
        assert _CORRECTION_INTERVAL % block == 0, block
        self._block = block
        self.corrected = 0
        self.reset()

    def reset(self) -> None:
        """Forget the source; `corrected` is kept."""
        self.live = True
        self._received = 0.0
        self._last_s: float | None = None
        self._reference_s = 0.0  # earliest arrival in the previous block
        self._earliest_s = math.inf
        self._blocks = 0
        self._block_end_s = 0.0
        self._excess = 0.0  # samples that the source delivered too many; below 0, too few
        self._since_correction = 0

    def observe(self, samples: float, now_s: float) -> None:
        """Record the arrival of a chunk.

        Args:
            samples: length of the chunk at 16 kHz.
            now_s: monotonic time.
        """
        if self._last_s is not None and now_s - self._last_s > PAUSE_S:
            self.reset()
        self._received += samples
        arrival_s = now_s - self._received / SAMPLE_RATE
        if self._last_s is None:
            self._reference_s, self._block_end_s = arrival_s, now_s + BLOCK_S
        self._last_s = now_s
        if samples > PAUSE_S * SAMPLE_RATE:
            self.live = False  # no microphone delivers so much at once
        self._earliest_s = min(self._earliest_s, arrival_s)
        if self._reference_s - arrival_s > AHEAD_S:
            self.live = False
        if now_s >= self._block_end_s:
            self._end_block(now_s)

    def observe_wait(self, now_s: float) -> None:
        """Record that the source was blocked until now, so that this does not count as a pause."""
        self._last_s = now_s

    def kept_blocks(self, pcm: np.ndarray) -> np.ndarray | None:
        """Return which blocks of `pcm` to keep, with blocks removed or repeated where that is due.

        Args:
            pcm: `(n,)` float32, whole blocks.

        Returns:
            Indices of blocks, in order; None if all are kept once.
        """
        if not self._is_due(len(pcm)):
            return None
        starts = range(0, len(pcm), _CORRECTION_INTERVAL)
        return np.concatenate([self._kept(pcm, start) for start in starts])

    def _is_due(self, samples: int) -> bool:
        """Return whether a correction is due within this many samples, and count them if not."""
        due = (
            samples > 0  # nothing is left of a chunk whose pause was shortened by all of it
            and self.live
            and abs(self._excess) > _TOLERANCE
            and self._since_correction + samples >= _CORRECTION_INTERVAL
        )
        if not due:
            self._since_correction += samples
        return due

    def _kept(self, pcm: np.ndarray, start: int) -> np.ndarray:
        """Return the indices of the kept blocks of one interval that begins at `start`."""
        part, block = pcm[start : start + _CORRECTION_INTERVAL], self._block
        blocks = np.arange(start // block, (start + len(part)) // block)
        self._since_correction += len(part)
        due = abs(self._excess) > _TOLERANCE and self._since_correction >= _CORRECTION_INTERVAL
        if not due or len(blocks) < 3:
            return blocks
        self._since_correction = 0
        self.corrected += block
        # The block whose neighbours, which will meet, differ least.
        change = np.abs(part[2 * block :: block] - part[block - 1 : -block - 1 : block])
        number = 1 + int(change.argmin())
        if self._excess > 0:
            self._excess -= block
            return np.delete(blocks, number)
        self._excess += block
        return np.insert(blocks, number, blocks[number])

    def _end_block(self, now_s: float) -> None:
        change_s = self._reference_s - self._earliest_s
        if self._blocks and abs(change_s) <= MAX_DRIFT * BLOCK_S:
            self._excess += change_s * SAMPLE_RATE
        self._blocks += 1
        self._reference_s, self._earliest_s = self._earliest_s, math.inf
        self._block_end_s = now_s + BLOCK_S
