"""Streaming conversion of callers' audio to `(n,)` float32 at 16 kHz."""

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


def check_rate(sample_rate: int, multiple_of: int = 100) -> None:
    """Check the sample rate of live audio.

    Raises:
        AudioFormatError: the rate is not an integer from 8000 to 192000 that `multiple_of`
            divides. Live audio comes in chunks of 10 ms, which must be a whole number of samples.
    """
    whole = isinstance(sample_rate, int | np.integer) and not isinstance(sample_rate, bool)
    if not whole or not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ or sample_rate % multiple_of:
        raise AudioFormatError(
            f"sample_rate must be a multiple of {multiple_of} from {MIN_RATE_HZ} to {MAX_RATE_HZ} "
            f"Hz, got {sample_rate!r}; resample the audio first"
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


class Resampler:
    """A streaming converter of one audio source to 16 kHz mono.

    One object belongs to one stream and holds its state. The output does not depend on how the
    input is split into chunks. The delay is constant: 0 at 16 kHz, 12.5 ms from 48 kHz, 10 to
    30 ms from other rates. `flush` returns what is held back; then `n` input samples have become
    exactly `n * 16000 / sample_rate` output samples, rounded half up.

    Args:
        sample_rate: sample rate of the source in Hz, an integer from 8000 to 192000.

    Raises:
        AudioFormatError: the rate is out of range.
    """

    def __init__(self, sample_rate: int) -> None:
        check_rate(sample_rate, multiple_of=1)
        self.sample_rate = int(sample_rate)
        self._consumed = self._produced = 0
        self._stream = None
        if self.sample_rate != SAMPLE_RATE:
            # From 48 kHz, soxr's fixed-ratio mode delays by 6 to 37 ms, and each chunk differs. The
            # variable-rate engine at a constant ratio delays by a constant 12.5 ms; residue and
            # aliases measured below -109 dB.
            self._stream = soxr.ResampleStream(
                self.sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ", vr=True
            )

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Convert the next chunk.

        Args:
            pcm: see `check_pcm`. An empty chunk changes nothing.

        Returns:
            `(m,)` float32 in [-1, 1] at 16 kHz; `m` may be 0.

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
        due = (2 * self._consumed * SAMPLE_RATE + self.sample_rate) // (2 * self.sample_rate)
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
