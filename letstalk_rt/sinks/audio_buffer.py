"""A small audio buffer between two clocks, which keeps its level constant.

Frames arrive by the playout clock, and the loudspeaker consumes by its own; the two differ by up to
a few hundred ppm. The buffer stretches its input by as much, which is inaudible. When frames arrive
late and then all at once, audio would lag behind video: the buffer catches up in the first pause,
and until then by playing 2 % faster.
"""

import threading
from collections import deque

import numpy as np

_MAX_STRETCH = 0.002
_DEAD_ZONE_S = 0.004
"""Smaller deviations from the target level are not corrected."""

_LAG_S = 0.02
"""Larger deviations from the target level are not caused by drift."""

_LAG_STRETCH = 0.02
_PAUSE_PEAK = 0.01
"""Audio with a peak of at most this is a pause."""

_SMOOTHING = 0.03
"""Weight of a new level in the smoothed level; a time constant of about a second."""

_MAX_EXCESS_S = 0.2
"""Beyond this excess audio is dropped; the playout clock moves at the same limit."""

_FADE = 96  # samples


class AudioBuffer:
    """A buffer of mono audio. `push` and `pull` may be called from different threads.

    It returns silence until it holds `target_s` of audio, and again after an underrun. Above that
    level it shortens pauses; far above it, it drops the oldest audio.

    Args:
        rate: sample rate in Hz.
        target_s: level just after a push, in seconds.

    Attributes:
        underruns: how often it ran dry during audio that was not silent.
        overruns: how often audio was dropped.
    """

    def __init__(self, rate: int, target_s: float) -> None:
        self.underruns = self.overruns = 0
        self._rate = rate
        self._target = target_s * rate
        self._chunks: deque[np.ndarray] = deque()
        self._level = 0
        self._smoothed_level = self._target
        self._running = False
        self._last = 0.0
        self._lock = threading.Lock()

    @property
    def level(self) -> int:
        """Number of buffered samples."""
        return self._level

    @property
    def running(self) -> bool:
        """Whether `pull` returns audio, not the silence before it."""
        return self._running

    def push(self, samples: np.ndarray) -> None:
        """Append audio, `(n,)` float32."""
        if not samples.size:
            return
        with self._lock:
            samples = self._stretch(self._shorten_pause(samples))
            self._chunks.append(samples)
            self._level += samples.size
            if self._running:
                self._smoothed_level += _SMOOTHING * (self._level - self._smoothed_level)
            if self._level - self._target > _MAX_EXCESS_S * self._rate:
                self.overruns += 1
                self._take(int(self._level - self._target))
                self._smoothed_level = self._target
            self._running = self._running or self._level >= self._target

    def pull(self, count: int) -> np.ndarray:
        """Return exactly `count` samples, `(count,)` float32."""
        with self._lock:
            audio = self._take(min(count, self._level) if self._running else 0)
            last = self._last = float(audio[-1]) if audio.size else self._last
            if audio.size == count:
                return audio
            self.underruns += self._running and last != 0
            self._running, self._smoothed_level, self._last = False, self._target, 0.0
            return _fade_out(audio, count, last)

    def clear(self) -> None:
        """Drop all buffered audio and fade to silence."""
        with self._lock:
            self._take(self._level)
            self._running, self._smoothed_level = False, self._target

    def _shorten_pause(self, samples: np.ndarray) -> np.ndarray:
        """Shorten a pause by the excess in the buffer."""
        excess = int(self._level + samples.size - self._target)
        if not self._running or excess < _LAG_S * self._rate or np.abs(samples).max() > _PAUSE_PEAK:
            return samples
        kept = samples[: max(0, samples.size - excess)]
        self._smoothed_level -= samples.size - kept.size
        return kept

    def _stretch(self, samples: np.ndarray) -> np.ndarray:
        """Make the samples slightly shorter if the buffer is too full, longer if too empty."""
        excess = self._smoothed_level - self._target
        if not (self._running and samples.size) or abs(excess) < _DEAD_ZONE_S * self._rate:
            return samples
        lagging = abs(excess) > _LAG_S * self._rate
        limit = max(1, int((_LAG_STRETCH if lagging else _MAX_STRETCH) * samples.size))
        change = round(-0.02 * excess)
        change = max(-limit, min(limit, change or (-1 if excess > 0 else 1)))
        positions = np.linspace(0, samples.size - 1, samples.size + change)
        stretched: np.ndarray = np.interp(positions, np.arange(samples.size), samples)
        return stretched.astype(np.float32)

    def _take(self, count: int) -> np.ndarray:
        taken = []
        self._level -= count
        while count > 0:
            chunk = self._chunks.popleft()
            taken.append(chunk[:count])
            if chunk.size > count:
                self._chunks.appendleft(chunk[count:])
            count -= taken[-1].size
        return np.concatenate(taken) if taken else np.zeros(0, np.float32)


def _fade_out(audio: np.ndarray, count: int, last: float) -> np.ndarray:
    """Pad with silence, after a ramp from the last sample to zero that avoids a click."""
    out = np.zeros(count, np.float32)
    out[: audio.size] = audio
    ramp = min(_FADE, count - audio.size)
    out[audio.size : audio.size + ramp] = np.linspace(last, 0, ramp, dtype=np.float32)
    return out
