"""Finds when the avatar's patch lights up and when a sound begins, and pairs both."""

from collections.abc import Sequence

import numpy as np

from letstalk_rt.types import FPS

PERIOD_S, BEEP_S = 1.0, 0.24
"""From beep to beep, and how long one is."""

LIT, DIM, BRIGHT = 75, 128, 255
"""Shades of the patch: between dark and dim; the flash whose sound begins at once, or at the end
of the frame."""

FARTHEST_S = 0.4
"""A beep that is farther from a flash belongs to another one."""


def voice(rate: int) -> np.ndarray:
    """Return one period of speech, `(rate * PERIOD_S,)` float32: a buzz like a vowel, and silence.

    120 Hz and its harmonics, loud in two formants: voice activity detection takes it for speech.
    """
    times_s = np.arange(int(rate * BEEP_S)) / rate
    hz = 120.0 * np.arange(1, 30)
    gains = 1 / (1 + ((hz - 700) / 200) ** 2) + 0.5 / (1 + ((hz - 1200) / 200) ** 2)
    buzz = (gains[:, None] * np.cos(2 * np.pi * hz[:, None] * times_s)).sum(0)
    buzz *= 0.12 * np.minimum(1.0, (BEEP_S - times_s) * 100)
    period = np.zeros(int(rate * PERIOD_S), np.float32)
    period[: buzz.size] = buzz
    return period


class FlashFinder:
    """Finds the flashes of a video, by the shade of the patch in each frame."""

    def __init__(self) -> None:
        self._is_dark = False

    def look(self, shade: float, at_s: float) -> float | None:
        """Return when the sound of a flash begins; None if the frame shows no new flash.

        Args:
            shade: mean of the patch, 0 to 255.
            at_s: when the frame is due.
        """
        is_new = shade > LIT and self._is_dark
        self._is_dark = shade <= LIT
        if not is_new:
            return None
        return at_s + max(0.0, (shade - DIM) / (BRIGHT - DIM)) / FPS


class BeepFinder:
    """Finds the beginnings of sounds.

    Args:
        rate: sample rate, Hz.
    """

    LOUD = 0.03
    QUIET_S = 0.3

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._quiet = 0

    def listen(self, pcm: np.ndarray, at_s: float) -> list[float]:
        """Return when sounds begin in `(n,)` float32, whose first sample is due at `at_s`."""
        loud = np.flatnonzero(np.abs(pcm) > self.LOUD)
        if not loud.size:
            self._quiet += pcm.size
            return []
        before = np.concatenate([[-1 - self._quiet], loud[:-1]])
        starts = loud[loud - before - 1 > self.QUIET_S * self._rate]
        self._quiet = pcm.size - 1 - int(loud[-1])
        return [at_s + int(start) / self._rate for start in starts]


def skews_ms(flashes_s: Sequence[float], beeps_s: Sequence[float]) -> list[tuple[float, float]]:
    """Return for each flash that has a beep when it was, and how much later its beep was, ms."""
    beeps = np.array(beeps_s)
    if not beeps.size:
        return []
    nearest = [(at_s, float(beeps[np.abs(beeps - at_s).argmin()] - at_s)) for at_s in flashes_s]
    return [(at_s, skew_s * 1000) for at_s, skew_s in nearest if abs(skew_s) < FARTHEST_S]
