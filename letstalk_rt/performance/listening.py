"""How the avatar listens while somebody else speaks.

It looks at them and holds its head to them, blinks where they pause rather than while they speak,
nods in pauses of what they say, and raises its brows when their voice rises. When they have been
silent for long, it idles as without them.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.checks import check_number
from letstalk_rt.performance.direction import CHANNELS
from letstalk_rt.performance.gestures import Gesture

Listening = Literal["off", "calm", "attentive"]
"""How much of its attention the avatar shows."""

LISTENING: tuple[str, ...] = get_args(Listening)

MAX_PITCH_HZ = 4000.0

HEARD_S = 0.5
"""Somebody of whom nothing is heard for so long is silent."""

ATTENTION_S = 2.5
"""Attention lasts so long after their last word; then the avatar idles."""

_EASE_FRAMES = 12  # in which attention comes and goes
_SPOKEN_S = 0.8  # of speech, before a pause is worth a nod
_PAUSE_S = (0.15, 0.4)  # after which a nod begins, once their voice has stopped
_PITCH_S, _RISE, _PITCHES = 0.45, 1.19, 4  # three semitones in so long, and at least so many values
_BROWS_EVERY_S = 4.0
_BLINK_S = 0.6  # after the begin of a pause: more blinks; fewer while they speak
_BLINKS_IN_SPEECH, _BLINKS_IN_PAUSES = 0.35, 5.0

_KEPT = {"gaze_x": 0.15, "gaze_y": 0.15, "yaw": 0.5, "roll": 0.7}
"""Share of the avatar's own motion that is left: it looks at whoever speaks."""

_ADDED = {"scale": 0.015, "brow_inner": 0.06}
"""It leans towards them a little."""


@dataclass(frozen=True)
class Manner:
    """How much a mode shows.

    Attributes:
        nod: size of nods.
        every_s: least and most seconds from one nod to the next.
        brows: size of raised brows.
    """

    nod: float
    every_s: tuple[float, float]
    brows: float


_MANNERS = {
    "calm": Manner(0.55, (8.0, 13.0), 0.3),
    "attentive": Manner(0.8, (5.5, 9.0), 0.5),
}


@dataclass(frozen=True)
class Listened:
    """What listening adds to one frame.

    Attributes:
        attention: how much of it there is, from 0 to 1.
        blink_rate: factor on the blinks.
        begun: gestures that begin.
    """

    attention: float
    blink_rate: float = 1.0
    begun: tuple[Gesture, ...] = ()

    @property
    def kept(self) -> np.ndarray:
        """The share of each channel's own motion that is left, `(15,)`."""
        return 1 - self.attention * (1 - np.array([_KEPT.get(name, 1.0) for name in CHANNELS]))

    @property
    def added(self) -> np.ndarray:
        """What is added to each channel, `(15,)`."""
        return self.attention * np.array([_ADDED.get(name, 0.0) for name in CHANNELS])


class Listener:
    """Follows the voice of whoever the avatar listens to.

    Args:
        mode: one of `LISTENING`.
        seed: of how long it waits before a nod, and until the next one.
    """

    def __init__(self, mode: str = "off", seed: int = 0) -> None:
        self.set_mode(mode)
        self._draw = np.random.default_rng(seed)
        self._last_s = self._began_s = self._paused_s = -math.inf
        self._is_speaking = False
        self._pitches: deque[tuple[float, float]] = deque()
        self._nod_s = math.inf  # when the next nod begins
        self._may_nod_s = self._may_raise_s = -math.inf
        self._level = 0  # of attention, up to _EASE_FRAMES

    def set_mode(self, mode: str) -> None:
        """Change the mode.

        Raises:
            ConfigError: it is unknown.
        """
        if mode not in LISTENING:
            raise ConfigError(f"listening must be one of {', '.join(LISTENING)}, got {mode!r}")
        self.mode = mode

    def hear(self, speaking: bool, pitch_hz: float | None, now_s: float) -> None:
        """Note whether somebody else speaks now; see `AvatarSession.push_listened`.

        Raises:
            ConfigError: the pitch is no positive number.
        """
        if pitch_hz is not None:
            check_number("pitch_hz", pitch_hz, 1.0, MAX_PITCH_HZ)
        self._expire(now_s)
        if speaking:
            if not self._is_speaking:
                self._is_speaking, self._began_s, self._nod_s = True, now_s, math.inf
            self._last_s = now_s
            if pitch_hz is not None:
                self._pitches.append((now_s, pitch_hz))
        elif self._is_speaking:
            self._pause(now_s)

    def frame(self, now_s: float, *, speaks: bool) -> Listened:
        """Return what listening adds to a frame.

        Args:
            now_s: the time of the frame, by the clock of `hear`, not earlier than the last one.
            speaks: whether the avatar speaks itself; then it does not listen.
        """
        self._expire(now_s)
        attends = self.mode != "off" and not speaks and now_s < self._last_s + ATTENTION_S
        self._level = min(_EASE_FRAMES, max(0, self._level + (1 if attends else -1)))
        share = self._level / _EASE_FRAMES
        attention = share * share * (3 - 2 * share)
        if not attends:
            self._nod_s = math.inf
            return Listened(attention)
        manner, begun = _MANNERS[self.mode], []
        if now_s >= self._nod_s:
            self._nod_s = math.inf
            self._may_nod_s = now_s + self._draw.uniform(*manner.every_s)
            begun.append(Gesture("nod", manner.nod))
        if now_s >= self._may_raise_s and self._rises(now_s):
            self._may_raise_s = now_s + _BROWS_EVERY_S
            begun.append(Gesture("raise_brows", manner.brows))
        return Listened(attention, self._blink_rate(now_s), tuple(begun))

    def _expire(self, now_s: float) -> None:
        """Take somebody of whom nothing was heard for long as silent."""
        if self._is_speaking and now_s > self._last_s + HEARD_S:
            self._pause(self._last_s)

    def _pause(self, at_s: float) -> None:
        self._is_speaking, self._paused_s = False, at_s
        self._pitches.clear()
        nod_s = at_s + self._draw.uniform(*_PAUSE_S)
        if at_s - self._began_s >= _SPOKEN_S and nod_s >= self._may_nod_s:
            self._nod_s = nod_s

    def _rises(self, now_s: float) -> bool:
        """Return whether the pitch has risen within the last half second of their voice."""
        while self._pitches and self._pitches[0][0] < now_s - _PITCH_S:
            self._pitches.popleft()
        values = [pitch for _, pitch in self._pitches]
        if len(values) < 2 * _PITCHES:
            return False
        before, after = np.median(values[:_PITCHES]), np.median(values[-_PITCHES:])
        return bool(_RISE <= after / before < 2)  # an octave is an error of the tracker

    def _blink_rate(self, now_s: float) -> float:
        if self._is_speaking:
            return _BLINKS_IN_SPEECH
        return _BLINKS_IN_PAUSES if now_s < self._paused_s + _BLINK_S else 1.0
