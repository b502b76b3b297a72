"""Streaming conversion of callers' audio to `(n,)` float32, at 16 kHz or another rate."""

import inspect
from typing import Any

import numpy as np
import soxr

from letstalk_rt.errors import AudioFormatError
from letstalk_rt.types import SAMPLE_RATE

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 192_000


def check_pcm(pcm: np.ndarray) -> None:
    """Check that `pcm` is audio.

    Args:
        pcm: int16, or float32 in [-1, 1]; `(n,)` mono, or `(n, channels)` with one or two
            channels. `n` may be 0.

    Raises:
        AudioFormatError: the type or layout differs, or a value is not finite.
    """
    if not isinstance(pcm, np.ndarray):
        raise AudioFormatError(
            f"audio must be a numpy array, got {type(pcm).__name__}; convert bytes of PCM16 with "
            "np.frombuffer(data, np.int16)"
        )
    if pcm.dtype not in (np.int16, np.float32):
        raise AudioFormatError(f"audio must be int16 or float32, got {pcm.dtype}; convert it first")
    if pcm.ndim not in (1, 2) or (pcm.ndim == 2 and pcm.shape[1] not in (1, 2)):
        raise AudioFormatError(
            f"audio must be (n,), (n, 1) or (n, 2), got {pcm.shape}; samples come first, so "
            "transpose (channels, n)"
        )
    if pcm.dtype == np.float32 and not np.isfinite(pcm).all():
        raise AudioFormatError("audio contains NaN or infinity; check how it was made")


def check_rate(sample_rate: int) -> None:
    """Check a sample rate.

    Raises:
        AudioFormatError: the rate is not an integer from 8000 to 192000.
    """
    whole = isinstance(sample_rate, int | np.integer) and not isinstance(sample_rate, bool)
    if not whole or not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ:
        raise AudioFormatError(
            f"sample_rate must be an integer from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, got "
            f"{sample_rate!r}; resample the audio first"
        )


def to_mono(pcm: np.ndarray) -> np.ndarray:
    """Convert checked audio to `(n,)` float32 in [-1, 1].

    int16 is divided by 32768, channels are averaged, and float32 beyond [-1, 1] is clipped. Mono
    float32 that is in range is returned without a copy.
    """
    samples = pcm.astype(np.float32) / 32768 if pcm.dtype == np.int16 else pcm
    if samples.ndim == 2:
        samples = samples.mean(axis=1, dtype=np.float32)
    if samples.size and (samples.max() > 1 or samples.min() < -1):
        samples = np.clip(samples, -1, 1)
    return samples


def has_constant_delay() -> bool:
    """Return whether this soxr has the variable-rate engine, whose delay is constant.

    soxr 1.1 has it and 1.0 does not. Both convert equally well; from 48 kHz, the variable-rate
    engine delays by 12.5 ms, the other one by 6 to 37 ms, differently for each chunk.
    """
    return "vr" in inspect.signature(soxr.ResampleStream).parameters


class Resampler:
    """A streaming converter of one audio source to mono at another rate.

    One object belongs to one stream and holds its state. The output does not depend on how the
    input is split into chunks. To 16 kHz, the delay is constant if `has_constant_delay`: 0 from
    16 kHz, 12.5 ms from 48 kHz, 10 to 30 ms from other rates; if not, it varies, up to 40 ms, or
    120 ms from 8 and 192 kHz. `flush` returns what is held back; then `n` input samples have become
    exactly `n * target_rate / sample_rate` output samples, rounded half up.

    Args:
        sample_rate: sample rate of the source in Hz, an integer from 8000 to 192000.
        target_rate: sample rate of the output in Hz, likewise.

    Raises:
        AudioFormatError: a rate is out of range.
    """

    def __init__(self, sample_rate: int, target_rate: int = SAMPLE_RATE) -> None:
        check_rate(sample_rate)
        check_rate(target_rate)
        self.sample_rate, self.target_rate = int(sample_rate), int(target_rate)
        self._consumed = self._produced = 0
        self._stream = None
        if self.sample_rate != self.target_rate:
            # At a constant ratio, residue and aliases of both engines measured below -109 dB.
            engine: dict[str, Any] = {"vr": True} if has_constant_delay() else {}
            self._stream = soxr.ResampleStream(
                self.sample_rate, self.target_rate, 1, dtype="float32", quality="HQ", **engine
            )

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Convert the next chunk.

        Args:
            pcm: see `check_pcm`. An empty chunk changes nothing.

        Returns:
            `(m,)` float32 in [-1, 1] at the target rate; `m` may be 0.

        Raises:
            AudioFormatError: see `check_pcm`. The state is unchanged.
        """
        check_pcm(pcm)
        samples = to_mono(pcm)
        if self._stream is None:
            return samples
        return self._convert(samples, last=False)

    def flush(self) -> np.ndarray:
        """Return the samples held back, `(m,)` float32, and reset."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rate = self.sample_rate
        due = (2 * self._consumed * self.target_rate + rate) // (2 * rate)
        missing = due - self._produced
        tail = self._convert(np.zeros(0, np.float32), last=True)
        # The engine's output is up to one sample short or long.
        tail = np.pad(tail[:missing], (0, max(missing - tail.size, 0)))
        self.reset()
        return tail

    def reset(self) -> None:
        """Return to the initial state."""
        self._consumed = self._produced = 0
        if self._stream is not None:
            self._stream.clear()

    def _convert(self, samples: np.ndarray, *, last: bool) -> np.ndarray:
        assert self._stream is not None
        converted: np.ndarray = self._stream.resample_chunk(samples, last=last)
        self._consumed += samples.size
        self._produced += converted.size
        return converted.clip(-1, 1)  # the filter overshoots at full scale
