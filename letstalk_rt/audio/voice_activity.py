"""Tells voice from silence, frame by frame: by level, or by the Silero network where installed."""

import warnings
from typing import Any, Literal, Protocol

import numpy as np

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.types import SAMPLE_RATE, SAMPLES_PER_FRAME

VoiceActivity = Literal["energy", "silero", "off"]

_BLOCK = SAMPLE_RATE // 100
_QUIETEST_DB, _LOUDEST_DB = -55.0, -36.0
"""The level that counts as voice is never below and never above these."""

_ABOVE_NOISE_DB = 9.0
_RISE_DB = 0.02  # of the noise floor in each block: 2 dB a second
_HOLD_FRAMES = 8  # 320 ms: the pauses within words and the ends of sentences
_SILERO_SAMPLES = 512
_SILERO_VOICE = 0.5


class VoiceActivityDetector(Protocol):
    """Judges one stream of sound."""

    blocking: bool
    """`detect` takes more than a millisecond: it must not run on an event loop."""

    def detect(self, pcm: np.ndarray) -> list[bool]:
        """Say for each frame of `(n * 640,)` float32 whether there is voice in it."""
        ...

    def reset(self) -> None:
        """Begin anew."""
        ...


class AlwaysActive:
    """Takes every sound for voice, and digital silence for none."""

    blocking = False

    def detect(self, pcm: np.ndarray) -> list[bool]:
        """See `VoiceActivityDetector`."""
        return [bool(frame.any()) for frame in pcm.reshape(-1, SAMPLES_PER_FRAME)]

    def reset(self) -> None:
        """See `VoiceActivityDetector`."""


class EnergyVad:
    """Hears voice where the level is well above the noise of the room.

    The noise is the lowest level of late; sound above -36 dB of full scale is voice in any case, so
    a long vowel is not taken for noise. Voice lasts 320 ms longer than it is heard.
    """

    blocking = False

    def __init__(self) -> None:
        self.reset()

    def detect(self, pcm: np.ndarray) -> list[bool]:
        """See `VoiceActivityDetector`."""
        blocks = pcm.reshape(-1, SAMPLES_PER_FRAME // _BLOCK, _BLOCK)
        levels = 10 * np.log10(np.square(blocks).mean(2) + 1e-10)
        return [self._hear_frame(frame) for frame in levels.tolist()]

    def reset(self) -> None:
        """See `VoiceActivityDetector`."""
        self._floor_db = _QUIETEST_DB
        self._hold = 0

    def _hear_frame(self, levels_db: list[float]) -> bool:
        threshold = min(max(self._floor_db + _ABOVE_NOISE_DB, _QUIETEST_DB), _LOUDEST_DB)
        for level in levels_db:
            self._floor_db = max(min(self._floor_db + _RISE_DB, level), -100.0)
        self._hold = _HOLD_FRAMES if max(levels_db) > threshold else max(0, self._hold - 1)
        return self._hold > 0


class SileroVad:
    """Hears voice by the Silero network: noise, music and keyboards do not move the lips.

    Raises:
        DependencyError: the package `silero-vad` is not installed.
    """

    blocking = True

    def __init__(self) -> None:
        import torch

        threads = torch.get_num_threads()
        try:
            import silero_vad  # sets the threads of the whole process to one
        except ImportError as error:
            raise DependencyError(
                "voice_activity='silero' needs the package 'silero-vad'; "
                "install it with: pip install 'letstalk-rt[vad]'"
            ) from error
        finally:
            torch.set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the TorchScript it comes as
            self._model: Any = silero_vad.load_silero_vad()
        self._left = np.zeros(0, np.float32)
        self._hold = 0

    def detect(self, pcm: np.ndarray) -> list[bool]:
        """See `VoiceActivityDetector`."""
        voiced = self._judge(pcm)
        flags = []
        for frame in range(len(pcm) // SAMPLES_PER_FRAME):
            middle = (frame + 0.5) * SAMPLES_PER_FRAME / len(pcm)
            heard = voiced[min(len(voiced) - 1, int(middle * len(voiced)))] if voiced else False
            self._hold = _HOLD_FRAMES if heard else max(0, self._hold - 1)
            flags.append(self._hold > 0)
        return flags

    def reset(self) -> None:
        """See `VoiceActivityDetector`."""
        self._model.reset_states()
        self._left = np.zeros(0, np.float32)
        self._hold = 0

    def _judge(self, pcm: np.ndarray) -> list[bool]:
        import torch

        sound = np.concatenate([self._left, pcm])
        count = len(sound) // _SILERO_SAMPLES
        pieces = torch.from_numpy(sound[: count * _SILERO_SAMPLES].reshape(count, -1))
        self._left = sound[count * _SILERO_SAMPLES :]
        with torch.inference_mode():
            return [self._model(piece, SAMPLE_RATE).item() >= _SILERO_VOICE for piece in pieces]


def hold_frames(name: VoiceActivity) -> int:
    """Return how many frames voice lasts longer than it is heard."""
    return 0 if name == "off" else _HOLD_FRAMES


def check_voice_activity(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        ConfigError: it is none of `energy`, `silero` and `off`.
    """
    if name not in ("energy", "silero", "off"):
        raise ConfigError(f"voice_activity must be 'energy', 'silero' or 'off', got {name!r}")


def make_vad(name: VoiceActivity) -> VoiceActivityDetector:
    """Make a gate for one stream. `silero` loads a network: not for an event loop."""
    check_voice_activity(name)
    gates: dict[str, type[VoiceActivityDetector]] = {
        "energy": EnergyVad,
        "silero": SileroVad,
        "off": AlwaysActive,
    }
    return gates[name]()
