"""Voice activity detection per frame: by level, or by the Silero network."""

from typing import Literal, Protocol

import numpy as np

from letstalk_rt.audio.silero import SileroNetwork
from letstalk_rt.errors import ConfigError
from letstalk_rt.types import SAMPLE_RATE, SAMPLES_PER_FRAME

VoiceActivity = Literal["energy", "silero", "off"]

_BLOCK = SAMPLE_RATE // 100
_MIN_THRESHOLD_DB, _MAX_THRESHOLD_DB = -55.0, -36.0

_ABOVE_NOISE_DB = 9.0
_RISE_DB = 0.02  # rise of the noise floor per block: 2 dB per second
_HOLD_FRAMES = 8  # 320 ms: covers pauses within words and the ends of sentences
_SILERO_THRESHOLD = 0.5


class VoiceActivityDetector(Protocol):
    """A detector of voice in one audio stream."""

    blocking: bool
    """Whether `detect` takes more than a millisecond and must not run on an event loop."""

    def detect(self, pcm: np.ndarray) -> list[bool]:
        """Return for each frame of `(n * 640,)` float32 whether it contains voice."""
        ...

    def reset(self) -> None:
        """Return to the initial state."""
        ...


class AlwaysActive:
    """A detector that treats all audio except digital silence as voice."""

    blocking = False

    def detect(self, pcm: np.ndarray) -> list[bool]:
        """See `VoiceActivityDetector`."""
        return [bool(frame.any()) for frame in pcm.reshape(-1, SAMPLES_PER_FRAME)]

    def reset(self) -> None:
        """See `VoiceActivityDetector`."""


class EnergyVad:
    """A detector of levels well above the background noise.

    The noise floor is the lowest recent level. Audio above -36 dBFS always counts as voice, so that
    a long vowel is not taken for noise. The flag stays set for 320 ms after voice ends.
    """

    blocking = False

    def __init__(self) -> None:
        self.reset()

    def detect(self, pcm: np.ndarray) -> list[bool]:
        """See `VoiceActivityDetector`."""
        blocks = pcm.reshape(-1, SAMPLES_PER_FRAME // _BLOCK, _BLOCK)
        levels = 10 * np.log10(np.square(blocks).mean(2) + 1e-10)
        return [self._detect_frame(frame) for frame in levels.tolist()]

    def reset(self) -> None:
        """See `VoiceActivityDetector`."""
        self._floor_db = _MIN_THRESHOLD_DB
        self._hold = 0

    def _detect_frame(self, levels_db: list[float]) -> bool:
        threshold = min(max(self._floor_db + _ABOVE_NOISE_DB, _MIN_THRESHOLD_DB), _MAX_THRESHOLD_DB)
        for level in levels_db:
            self._floor_db = max(min(self._floor_db + _RISE_DB, level), -100.0)
        self._hold = _HOLD_FRAMES if max(levels_db) > threshold else max(0, self._hold - 1)
        return self._hold > 0


class SileroVad:
    """A detector by the Silero network, which also rejects music and keyboard noise.

    Raises:
        DependencyError: the extra `vad` is not installed.
    """

    blocking = True

    def __init__(self) -> None:
        self._network = SileroNetwork()
        self._hold = 0

    def detect(self, pcm: np.ndarray) -> list[bool]:
        """See `VoiceActivityDetector`."""
        voiced = [probability >= _SILERO_THRESHOLD for probability in self._network.push(pcm)]
        flags = []
        for frame in range(len(pcm) // SAMPLES_PER_FRAME):
            middle = (frame + 0.5) * SAMPLES_PER_FRAME / len(pcm)
            active = voiced[min(len(voiced) - 1, int(middle * len(voiced)))] if voiced else False
            self._hold = _HOLD_FRAMES if active else max(0, self._hold - 1)
            flags.append(self._hold > 0)
        return flags

    def reset(self) -> None:
        """See `VoiceActivityDetector`."""
        self._network.reset()
        self._hold = 0


def hold_frames(name: VoiceActivity) -> int:
    """Return for how many frames the flag stays set after voice ends."""
    return 0 if name == "off" else _HOLD_FRAMES


def check_voice_activity(name: str) -> None:
    """Check the name of a detector.

    Raises:
        ConfigError: the name is not `energy`, `silero` or `off`.
    """
    if name not in ("energy", "silero", "off"):
        raise ConfigError(f"voice_activity must be 'energy', 'silero' or 'off', got {name!r}")


def make_vad(name: VoiceActivity) -> VoiceActivityDetector:
    """Create a detector for one stream; for `silero` this loads a network, so it blocks."""
    check_voice_activity(name)
    detectors: dict[str, type[VoiceActivityDetector]] = {
        "energy": EnergyVad,
        "silero": SileroVad,
        "off": AlwaysActive,
    }
    return detectors[name]()
