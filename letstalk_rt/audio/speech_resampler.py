"""Speech at two rates: 16 kHz for the model, and the rate at which it leaves with the frames.

The two are aligned by counting samples, not by delays: each block of `model_block` samples for the
model belongs to exactly `output_block` samples of output.
"""

from dataclasses import dataclass
from math import gcd

import numpy as np

from letstalk_rt.audio.resample import Resampler, check_pcm, to_mono
from letstalk_rt.errors import ConfigError
from letstalk_rt.types import SAMPLE_RATE

OUTPUT_RATES_HZ = (16_000, 24_000, 48_000)
"""Sample rates at which the audio of frames may leave; all are whole numbers per frame."""


def check_output_rate(sample_rate: int) -> None:
    """Check the sample rate of the frames' audio.

    Raises:
        ConfigError: it is not one of `OUTPUT_RATES_HZ`.
    """
    if sample_rate not in OUTPUT_RATES_HZ or isinstance(sample_rate, bool | float):
        known = ", ".join(map(str, OUTPUT_RATES_HZ))
        raise ConfigError(f"output_sample_rate must be one of {known} Hz, got {sample_rate!r}")


def block_sizes(output_rate: int) -> tuple[int, int]:
    """Return how many samples of 16 kHz, and of the output rate, last equally long."""
    common = gcd(SAMPLE_RATE, output_rate)
    return SAMPLE_RATE // common, output_rate // common


@dataclass(frozen=True, slots=True)
class Speech:
    """The same speech at both rates, in whole blocks.

    Attributes:
        pcm: `(n * model_block,)` float32 at 16 kHz.
        output: `(n * output_block,)` float32 at the output rate; the array `pcm` if that is 16 kHz.
    """

    pcm: np.ndarray
    output: np.ndarray

    def take(self, blocks: np.ndarray, sizes: tuple[int, int]) -> "Speech":
        """Return the blocks with these indices.

        Args:
            blocks: indices, `(m,)`; they may repeat.
            sizes: the block sizes.
        """
        pcm = self.pcm.reshape(-1, sizes[0])[blocks].ravel()
        if self.output is self.pcm:
            return Speech(pcm, pcm)
        return Speech(pcm, self.output.reshape(-1, sizes[1])[blocks].ravel())


class SpeechResampler:
    """A streaming converter of one audio source to both rates.

    What one of the two resamplers returns before the other is held back until it has a counterpart.

    Args:
        sample_rate: sample rate of the source in Hz, an integer from 8000 to 192000.
        output_rate: one of `OUTPUT_RATES_HZ`.

    Raises:
        AudioFormatError: `sample_rate` is out of range.
    """

    def __init__(self, sample_rate: int, output_rate: int = SAMPLE_RATE) -> None:
        self.sample_rate = int(sample_rate)
        self.blocks = block_sizes(output_rate)
        self._model = Resampler(sample_rate)
        self._output = Resampler(sample_rate, output_rate) if output_rate != SAMPLE_RATE else None
        self._held = _NOTHING

    def push(self, pcm: np.ndarray) -> Speech:
        """Convert the next chunk; see `Resampler.push`.

        Raises:
            AudioFormatError: see `check_pcm`. The state is unchanged.
        """
        check_pcm(pcm)
        samples = to_mono(pcm)
        converted = self._model.push(samples)
        if self._output is None:
            return Speech(converted, converted)
        return self._pair(converted, self._output.push(samples))

    def flush(self) -> Speech:
        """Return what is held back, and reset.

        The last block is completed with silence. The output is shortened or padded by up to two
        samples, so that it is as long as the samples for the model.
        """
        converted = self._model.flush()
        if self._output is None:
            return Speech(converted, converted)
        pcm = np.concatenate([self._held.pcm, converted])
        output = np.concatenate([self._held.output, self._output.flush()])
        count = -(-pcm.size // self.blocks[0])
        speech = Speech(
            _fit(pcm, count * self.blocks[0]),
            _fit(output, count * self.blocks[1]),
        )
        self.reset()
        return speech

    def reset(self) -> None:
        """Return to the initial state."""
        self._model.reset()
        if self._output is not None:
            self._output.reset()
        self._held = _NOTHING

    def _pair(self, converted: np.ndarray, output: np.ndarray) -> Speech:
        """Return all whole blocks of which both rates are known, and hold back the rest."""
        pcm = np.concatenate([self._held.pcm, converted])
        output = np.concatenate([self._held.output, output])
        count = min(pcm.size // self.blocks[0], output.size // self.blocks[1])
        at, output_at = count * self.blocks[0], count * self.blocks[1]
        self._held = Speech(pcm[at:], output[output_at:])
        return Speech(pcm[:at], output[:output_at])


_NOTHING = Speech(np.zeros(0, np.float32), np.zeros(0, np.float32))


def _fit(samples: np.ndarray, size: int) -> np.ndarray:
    """Cut or pad with silence to a size."""
    return np.pad(samples[:size], (0, max(0, size - samples.size)))
