"""The pitch of a voice, followed block by block."""

import numpy as np

from letstalk_rt.types import SAMPLE_RATE

_WINDOW = 1024  # 64 ms: three periods of a low voice
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 420.0
_PERIODIC = 0.5  # of the power at lag 0; noise has less
_NEARLY = 0.9  # as high as the highest peak
_QUIET = 1e-6  # mean power below which there is no voice


class PitchTracker:
    """Follows the pitch in a stream of 16 kHz.

    Source: Boersma 1993, the peak of the autocorrelation over that of the window.
    """

    def __init__(self) -> None:
        self._audio = np.zeros(_WINDOW, np.float32)
        window = np.hanning(_WINDOW + 1)[:-1]
        self._taper, self._own = window, _correlation(window)

    def push(self, pcm: np.ndarray) -> float | None:
        """Return the pitch in Hz at the end of the next audio; None where there is none.

        Args:
            pcm: `(n,)` float32 in [-1, 1] at 16 kHz, of any length.
        """
        self._audio = np.concatenate([self._audio, pcm])[-_WINDOW:]
        signal = (self._audio - self._audio.mean()) * self._taper
        likeness = _correlation(signal)
        if likeness[0] < _QUIET * _WINDOW:
            return None
        shortest, longest = int(SAMPLE_RATE / _HIGHEST_HZ), int(SAMPLE_RATE / _LOWEST_HZ)
        lags = np.arange(shortest, longest + 1)
        strength = likeness[lags] / likeness[0] / (self._own[lags] / self._own[0])
        if strength.max() < _PERIODIC:
            return None
        inner = strength[1:-1]
        peaks = (inner >= strength[:-2]) & (inner > strength[2:])
        # Two periods are as much alike as one: the first peak that is nearly the highest counts.
        near = np.flatnonzero(peaks & (inner > _NEARLY * strength.max()))
        return float(SAMPLE_RATE / lags[1 + near[0]]) if near.size else None


def _correlation(signal: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(signal, 2 * _WINDOW)
    return np.fft.irfft(np.abs(spectrum) ** 2)[:_WINDOW]
