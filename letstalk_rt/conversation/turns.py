"""Turn taking: where utterances begin and end in the audio of a microphone."""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from letstalk_rt.audio.silero import BLOCK, SileroNetwork
from letstalk_rt.audio.voice_activity import EnergyVad
from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.types import SAMPLE_RATE, SAMPLES_PER_FRAME

_BEGIN, _GO_ON = 0.5, 0.35
"""Probability of voice from which an utterance begins, and below which it pauses."""


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """When an utterance begins and ends.

    Attributes:
        begin_ms: voice that begins an utterance; shorter sounds are ignored.
        hangover_ms: pause that ends it.
        preroll_ms: audio before its beginning that belongs to it.
        max_s: longest utterance; a longer one is divided.

    Raises:
        ConfigError: a value is out of range.
    """

    begin_ms: int = 64
    hangover_ms: int = 416
    preroll_ms: int = 500
    max_s: float = 30.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("begin_ms", 1, 1000),
            ("hangover_ms", 100, 5000),
            ("preroll_ms", 0, 2000),
            ("max_s", 1, 600),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class TurnBegins:
    """Somebody begins to speak."""


@dataclass(frozen=True, slots=True)
class TurnAudio:
    """Audio of the utterance: `pcm` is `(n,)` float32 at 16 kHz."""

    pcm: np.ndarray


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """The utterance is over."""


Turn = TurnBegins | TurnAudio | TurnEnds


class VoiceDetector(Protocol):
    """A detector of voice in blocks of one size.

    Attributes:
        block: samples of a block.
        hold_ms: how long it still reports voice after its end.
    """

    block: int
    hold_ms: int

    def probability(self, block: np.ndarray) -> float:
        """Return the probability of voice, from 0 to 1, in `(block,)` float32."""
        ...


class SileroDetector:
    """The Silero network, which tells voice from other sounds.

    Raises:
        DependencyError: the extra `vad` is not installed.
    """

    block, hold_ms = BLOCK, 0

    def __init__(self) -> None:
        self._network = SileroNetwork()

    def probability(self, block: np.ndarray) -> float:
        """See `VoiceDetector`."""
        (probability,) = self._network.push(block)
        return probability


class LevelDetector:
    """A detector by level, which takes every loud sound for voice."""

    block, hold_ms = SAMPLES_PER_FRAME, 320

    def __init__(self) -> None:
        self._vad = EnergyVad()

    def probability(self, block: np.ndarray) -> float:
        """See `VoiceDetector`."""
        (is_voice,) = self._vad.detect(block)
        return float(is_voice)


def make_detector() -> VoiceDetector:
    """Return the best detector that is installed."""
    try:
        return SileroDetector()
    except DependencyError:
        return LevelDetector()


class TurnDetector:
    """Finds the utterances in the audio of one microphone.

    Args:
        detector: detects voice; None takes the best one that is installed.
        options: when an utterance begins and ends.

    Attributes:
        is_voiced: whether the last audio holds voice.
    """

    def __init__(
        self, detector: VoiceDetector | None = None, options: TurnOptions | None = None
    ) -> None:
        options = options or TurnOptions()
        self._detector = detector = detector or make_detector()
        block_ms = 1000 * detector.block / SAMPLE_RATE
        self._begin = max(1, round(options.begin_ms / block_ms))
        self._hangover = max(1, round((options.hangover_ms - detector.hold_ms) / block_ms))
        self._longest = round(1000 * options.max_s / block_ms)
        preroll = round(options.preroll_ms / block_ms)
        self._before: deque[np.ndarray] = deque(maxlen=preroll + self._begin)
        self._remainder = np.zeros(0, np.float32)
        self.is_voiced = False
        self._is_open = False
        self._voiced = self._quiet = self._length = 0

    def push(self, pcm: np.ndarray) -> list[Turn]:
        """Return what begins, goes on and ends in the next audio.

        Args:
            pcm: `(n,)` float32 in [-1, 1] at 16 kHz, of any length.
        """
        audio = np.concatenate([self._remainder, pcm])
        size = self._detector.block
        end = len(audio) // size * size
        self._remainder = audio[end:]
        turns: list[Turn] = []
        for block in audio[:end].reshape(-1, size):
            turns += self._take(block, self._detector.probability(block))
        return turns

    def _take(self, block: np.ndarray, probability: float) -> list[Turn]:
        self.is_voiced = probability >= _GO_ON
        if not self._is_open:
            return self._wait(block, probability)
        self._length += 1
        self._quiet = 0 if probability >= _GO_ON else self._quiet + 1
        turns: list[Turn] = [TurnAudio(block)]
        if self._quiet >= self._hangover or self._length >= self._longest:
            self._is_open, self._voiced = False, 0
            turns.append(TurnEnds())
        return turns

    def _wait(self, block: np.ndarray, probability: float) -> list[Turn]:
        self._before.append(block)
        self._voiced = self._voiced + 1 if probability >= _BEGIN else 0
        if self._voiced < self._begin:
            return []
        audio = np.concatenate(self._before)
        self._before.clear()
        self._is_open, self._quiet, self._length = True, 0, 0
        return [TurnBegins(), TurnAudio(audio)]
