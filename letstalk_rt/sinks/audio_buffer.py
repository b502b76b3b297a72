"""Sound on its way from one clock to another: a small buffer that keeps its length.

Frames come by the playout clock, the loudspeaker takes by its own; the two drift apart by up to a
few hundred millionths. The buffer stretches what comes in by as much, too little to hear. After
frames that came late and then all at once, sound would stay behind its pictures: it catches up in
the first pause, and meanwhile by playing two hundredths faster.
"""

import threading
from collections import deque

import numpy as np

_MAX_STRETCH = 0.002
_DEAD_S = 0.004
"""A level so near the target is left alone."""

_FAR_S = 0.02
"""No drift makes the level so wrong."""

_FAR_STRETCH = 0.02
_QUIET = 0.01
"""Sound that is nowhere louder is a pause."""

_SMOOTH = 0.03
"""Share of a new level in the smoothed one; a second or so."""

_OVERFULL_S = 0.2
"""So much is too much to catch up with; the playout's clock moves for as much."""

_RAMP = 96


class AudioBuffer:
    """Takes pieces of mono sound, gives any number of samples; both may come from any thread.

    Silence comes out until `target_s` of sound is in, and again after it ran dry. Where too much is
    in, pauses are shortened; where far too much is in, the oldest is dropped.

    Args:
        rate: in Hz.
        target_s: how much it holds just after a piece came in.

    Attributes:
        underruns: how often it ran dry amid sound.
        overruns: how often sound was dropped.
    """

    def __init__(self, rate: int, target_s: float) -> None:
        self.underruns = self.overruns = 0
        self._rate = rate
        self._target = target_s * rate
        self._pieces: deque[np.ndarray] = deque()
        self._level = 0
        self._smooth = self._target
        self._running = False
        self._last = 0.0
        self._lock = threading.Lock()

    @property
    def level(self) -> int:
        """Samples that wait."""
        return self._level

    @property
    def running(self) -> bool:
        """Sound comes out, not the silence before it."""
        return self._running

    def push(self, samples: np.ndarray) -> None:
        """Add `(n,)` float32."""
        if not samples.size:
            return
        with self._lock:
            samples = self._stretched(self._shortened(samples))
            self._pieces.append(samples)
            self._level += samples.size
            if self._running:
                self._smooth += _SMOOTH * (self._level - self._smooth)
            if self._level - self._target > _OVERFULL_S * self._rate:
                self.overruns += 1
                self._take(int(self._level - self._target))
                self._smooth = self._target
            self._running = self._running or self._level >= self._target

    def pull(self, count: int) -> np.ndarray:
        """Give exactly `count` samples."""
        with self._lock:
            sound = self._take(min(count, self._level) if self._running else 0)
            last = self._last = float(sound[-1]) if sound.size else self._last
            if sound.size == count:
                return sound
            self.underruns += self._running and last != 0
            self._running, self._smooth, self._last = False, self._target, 0.0
            return _faded_out(sound, count, last)

    def clear(self) -> None:
        """Drop all that waits, and fall silent without a click."""
        with self._lock:
            self._take(self._level)
            self._running, self._smooth = False, self._target

    def _shortened(self, samples: np.ndarray) -> np.ndarray:
        """Leave out of a pause what the buffer holds too much."""
        beyond = int(self._level + samples.size - self._target)
        if not self._running or beyond < _FAR_S * self._rate or np.abs(samples).max() > _QUIET:
            return samples
        kept = samples[: max(0, samples.size - beyond)]
        self._smooth -= samples.size - kept.size
        return kept

    def _stretched(self, samples: np.ndarray) -> np.ndarray:
        """Make a piece a little shorter when the buffer is too full, longer when too empty."""
        beyond = self._smooth - self._target
        if not (self._running and samples.size) or abs(beyond) < _DEAD_S * self._rate:
            return samples
        far = abs(beyond) > _FAR_S * self._rate
        most = max(1, int((_FAR_STRETCH if far else _MAX_STRETCH) * samples.size))
        change = round(-0.02 * beyond)
        change = max(-most, min(most, change or (-1 if beyond > 0 else 1)))
        places = np.linspace(0, samples.size - 1, samples.size + change)
        stretched: np.ndarray = np.interp(places, np.arange(samples.size), samples)
        return stretched.astype(np.float32)

    def _take(self, count: int) -> np.ndarray:
        taken = []
        self._level -= count
        while count > 0:
            piece = self._pieces.popleft()
            taken.append(piece[:count])
            if piece.size > count:
                self._pieces.appendleft(piece[count:])
            count -= taken[-1].size
        return np.concatenate(taken) if taken else np.zeros(0, np.float32)


def _faded_out(sound: np.ndarray, count: int, last: float) -> np.ndarray:
    """Fill up with silence, without a click: the last sample dies away."""
    out = np.zeros(count, np.float32)
    out[: sound.size] = sound
    ramp = min(_RAMP, count - sound.size)
    out[sound.size : sound.size + ramp] = np.linspace(last, 0, ramp, dtype=np.float32)
    return out
