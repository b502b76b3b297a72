"""Lip values and audio tokens of a speech track at any time, read as a stream."""

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.audio.resample import Resampler, check_pcm, to_mono
from letstalk_rt.models.audio_encoder.interfaces import AudioEncoder
from letstalk_rt.models.batch_state import overwrite
from letstalk_rt.models.motion.denoiser import MotionDenoiser
from letstalk_rt.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

_SETTLE = 52 * SAMPLES_PER_FRAME


class LipValues(Protocol):
    """Lip values over time, and what the denoiser hears."""

    def at(self, time_s: float) -> Tensor:
        """Return the lip values `(Q,)` at a time not before the last one asked for."""
        ...

    def tokens_at(self, times_s: Sequence[float]) -> Tensor | None:
        """Return the audio tokens `(n, K, A)` at such times; None if there are none."""
        ...


@dataclass(frozen=True)
class _FrameSpeech:
    """The speech of one frame.

    Attributes:
        values: lip values, `(Q,)`; None without a motion denoiser.
        tokens: audio tokens, `(K, A)`; None without an audio encoder.
    """

    values: Tensor | None
    tokens: Tensor | None


class LipTrack:
    """Lip values over time, which must be asked for in order; memory does not grow.

    After the end of the speech the lips are those of silence.

    Args:
        motion: the motion denoiser, which hears lip values; None if nothing needs them.
        speech: mono samples in [-1, 1], in chunks.
        sample_rate: of the chunks, Hz.
        encoder: yields audio tokens; None if nothing needs them.
    """

    def __init__(
        self,
        motion: MotionDenoiser | None,
        speech: Iterable[np.ndarray],
        sample_rate: int,
        encoder: AudioEncoder | None = None,
    ) -> None:
        assert motion is not None or encoder is not None, "something is to be heard"
        self._motion, self._encoder = motion, encoder
        ears = [part for part in (motion, encoder) if part is not None]
        self._device = next(ears[0].parameters()).device
        # wav2vec 2.0, which no motion denoiser comes with, takes whole blocks of four frames
        self._unit = SAMPLES_PER_FRAME * (4 if motion is None else 1)
        block = SAMPLE_RATE // self._unit * self._unit
        self._blocks = _blocks(speech, Resampler(sample_rate), block)
        self._frames: deque[_FrameSpeech] = deque()
        self._first = 0  # number of the first frame that is kept
        self._state: Any = [] if motion is None else motion.speech.init_state(1)
        self._encoder_state: Any = [] if encoder is None else encoder.init_state(1)
        with torch.inference_mode():
            self._hear(torch.zeros(1, _SETTLE, device=self._device))
        self._silence = copy.deepcopy((self._state, self._encoder_state))
        aheads = [motion.speech.lookahead_frames] if motion is not None else []
        aheads += [encoder.lookahead_frames] if encoder is not None else []
        assert len(set(aheads)) == 1, "models have one"
        self._skip = aheads[0]
        self._samples = 0
        self._ended = False

    def at(self, time_s: float) -> Tensor:
        """Return the lip values `(Q,)` at a time not before the last one asked for."""
        index, share = self._place(time_s)
        self._forget_before(index - 1)
        below, above = self._frames[index - self._first], self._frames[index - self._first + 1]
        assert below.values is not None and above.values is not None, "no motion denoiser hears"
        return torch.lerp(below.values, above.values, share)

    def tokens_at(self, times_s: Sequence[float]) -> Tensor | None:
        """Return the audio tokens `(n, K, A)` at times not before the last one of `at`.

        None without an audio encoder.
        """
        found = []
        self._forget_before(self._place(times_s[0])[0] - 1)
        for time_s in times_s:
            index, share = self._place(time_s)
            below, above = (self._frames[index - self._first + i].tokens for i in (0, 1))
            if below is None or above is None:
                return None
            found.append(torch.lerp(below, above, share))
        return torch.stack(found)

    def _place(self, time_s: float) -> tuple[int, float]:
        """Return the frame before a time, and how far the time is to the next; read both."""
        position = max(0.0, time_s * FPS - 0.5)
        index = int(position)
        while self._first + len(self._frames) < index + 2:
            self._read()
        return index, position - index

    def _forget_before(self, index: int) -> None:
        while self._first < index:
            self._frames.popleft()
            self._first += 1

    def is_over(self, time_s: float) -> bool:
        """Return whether the speech has ended at a time; reads as far as needed."""
        while not self._ended and self._samples <= time_s * SAMPLE_RATE:
            self._read()
        return self._samples <= time_s * SAMPLE_RATE

    @torch.inference_mode()
    def _read(self) -> None:
        """Read the next block."""
        block = next(self._blocks, None)
        if block is None:
            block = np.zeros(SAMPLE_RATE // self._unit * self._unit, np.float32)
            if not self._ended:
                overwrite((self._state, self._encoder_state), self._silence)
                self._ended = True
        else:
            self._samples += len(block)
        rest = -len(block) % self._unit
        pcm = torch.from_numpy(np.pad(block, (0, rest))).to(self._device)
        frames = self._hear(pcm[None])
        self._frames.extend(frames[self._skip :])
        self._skip = max(0, self._skip - len(frames))

    def _hear(self, pcm: Tensor) -> list[_FrameSpeech]:
        """Return the speech of the frames of the next samples, `(1, n)`."""
        count = pcm.shape[1] // SAMPLES_PER_FRAME
        values: Iterable[Tensor | None] = [None] * count
        tokens: Iterable[Tensor | None] = [None] * count
        if self._motion is not None:
            values = self._motion.lip_values(pcm, self._state)[0]
        if self._encoder is not None:
            tokens = self._encoder(pcm, self._encoder_state)[0]
        return [_FrameSpeech(*both) for both in zip(values, tokens, strict=True)]


def _blocks(speech: Iterable[np.ndarray], resampler: Resampler, block: int) -> Iterator[np.ndarray]:
    """Yield speech at 16 kHz in blocks of so many samples; the last may be shorter."""
    rest = np.zeros(0, np.float32)
    for chunk in speech:
        check_pcm(chunk)
        rest = np.concatenate([rest, resampler.push(to_mono(chunk))])
        while len(rest) >= block:
            yield rest[:block]
            rest = rest[block:]
    rest = np.concatenate([rest, resampler.flush()])
    if len(rest):
        yield rest
