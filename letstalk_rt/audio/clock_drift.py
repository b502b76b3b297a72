"""Keeps a live source in step with the machine's clock, so that delay neither creeps nor runs out.

A microphone's crystal is some 100 ppm off. Its pieces are timed as they arrive; what it gives too
much in the long run is left out sample by sample, and what is missing is doubled, each at the place
where it is heard least. Whatever does not come at the pace of time (speech synthesis in a hurry)
is left alone.
"""

import math

import numpy as np

from letstalk_rt.types import SAMPLE_RATE

BLOCK_S = 5.0
"""The earliest arrival of so many seconds is what counts: jitter only ever delays."""

MAX_DRIFT = 0.0015
"""Faster changes are no drift: the source paused, or lost something."""

AHEAD_S = 0.2
"""A source that has given so much more than time has passed is not a live one."""

PAUSE_S = 0.5
"""After such a pause a source is timed anew."""

_TOLERATED = 40  # samples: what jitter alone may look like
_SLIP_EVERY = 640  # samples between two corrections: at most 1560 ppm


class ClockDriftCorrector:
    """Times one source and corrects its samples.

    Attributes:
        live: the source has not been ahead of time so far.
        corrected: samples doubled and left out so far.
    """

    def __init__(self) -> None:
        self.corrected = 0
        self.reset()

    def reset(self) -> None:
        """Forget the source; the next one may be another."""
        self.live = True
        self._given = 0.0
        self._last_s: float | None = None
        self._reference_s = 0.0  # how early pieces came in the block before
        self._earliest_s = math.inf
        self._blocks = 0
        self._block_end_s = 0.0
        self._owed = 0.0  # samples that the source gave too many; below 0, too few
        self._since_slip = 0

    def observe(self, samples: float, now_s: float) -> None:
        """Note that a piece arrived.

        Args:
            samples: its length at 16 kHz.
            now_s: monotonic time.
        """
        if self._last_s is not None and now_s - self._last_s > PAUSE_S:
            self.reset()
        self._given += samples
        arrival_s = now_s - self._given / SAMPLE_RATE
        if self._last_s is None:
            self._reference_s, self._block_end_s = arrival_s, now_s + BLOCK_S
        self._last_s = now_s
        if samples > PAUSE_S * SAMPLE_RATE:
            self.live = False  # a recording: no microphone gives that much at once
        self._earliest_s = min(self._earliest_s, arrival_s)
        if self._reference_s - arrival_s > AHEAD_S:
            self.live = False
        if now_s >= self._block_end_s:
            self._end_block(now_s)

    def observe_wait(self, now_s: float) -> None:
        """Note that the source was made to wait until now: that is no pause of its own."""
        self._last_s = now_s

    def correct(self, pcm: np.ndarray) -> np.ndarray:
        """Leave out or double a sample where one is due; takes and gives `(n,)` float32."""
        if len(pcm) > _SLIP_EVERY and abs(self._owed) > _TOLERATED:
            pieces = np.split(pcm, range(_SLIP_EVERY, len(pcm), _SLIP_EVERY))
            return np.concatenate([self.correct(piece) for piece in pieces])
        self._since_slip += len(pcm)
        due = self.live and abs(self._owed) > _TOLERATED and self._since_slip >= _SLIP_EVERY
        if not due or len(pcm) < 3:
            return pcm
        self._since_slip = 0
        self.corrected += 1
        change = np.abs(pcm[2:] - pcm[:-2])
        place = 1 + int(change.argmin())  # between its neighbours there is no step
        if self._owed > 0:
            self._owed -= 1
            return np.delete(pcm, place)
        self._owed += 1
        return np.insert(pcm, place, pcm[place])

    def _end_block(self, now_s: float) -> None:
        change_s = self._reference_s - self._earliest_s
        if self._blocks and abs(change_s) <= MAX_DRIFT * BLOCK_S:
            self._owed += change_s * SAMPLE_RATE
        self._blocks += 1
        self._reference_s, self._earliest_s = self._earliest_s, math.inf
        self._block_end_s = now_s + BLOCK_S
