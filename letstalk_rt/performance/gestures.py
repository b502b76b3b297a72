"""Gestures: small curves of the motion code, given by what they reach at some times.

Between two times a curve is a smooth step, so it rests at each of them. Left and right are as the
viewer sees them. Angles are in radians. Gestures that run are added up, within limits, and fade
when they are cut short.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.checks import check_number
from letstalk_rt.performance.direction import CHANNELS, EYES, NUM_CHANNELS, channel
from letstalk_rt.types import FPS

MIN_AMOUNT, MAX_AMOUNT = 0.1, 2.0
"""The smallest and the largest size of a gesture."""

RELEASE_FRAMES = 6
"""Frames in which a gesture fades that is cut short."""

_MOST = {"yaw": 0.3, "pitch": 0.28, "roll": 0.25, "gaze_x": 0.08, "gaze_y": 0.06}
_LIMITS = np.array([_MOST.get(name, 1.0) for name in CHANNELS])
"""The most that gestures together add to a channel."""

Points = tuple[tuple[float, float], ...]
"""Times in seconds and values, from 0 to 0."""


@dataclass(frozen=True)
class GestureShape:
    """The curves of one gesture.

    Attributes:
        apex_s: when its first movement is complete: the moment that falls on a given time.
        curves: what is added to channels of the motion code, by name.
        closures: how far an eye is closed, by its side.
    """

    apex_s: float
    curves: Mapping[str, Points]
    closures: Mapping[str, Points] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """How long it takes."""
        every = [*self.curves.values(), *self.closures.values()]
        return max(points[-1][0] for points in every)


def _held(value: float, rise_s: float, until_s: float, fall_s: float) -> Points:
    """Return a curve that rises to a value, stays there and falls."""
    return (0.0, 0.0), (rise_s, value), (until_s, value), (until_s + fall_s, 0.0)


def _look(x: float, y: float) -> GestureShape:
    """Return a look to one side, which the head follows a little and later."""
    times = (0.16, 1.2, 0.2), (0.4, 1.3, 0.5)
    curves = {
        "gaze_x": _held(0.035 * x, *times[0]),
        "gaze_y": _held(0.014 * y, *times[0]),
        "yaw": _held(0.1 * x, *times[1]),
        "pitch": _held(0.07 * y, *times[1]),
    }
    return GestureShape(0.16, {name: points for name, points in curves.items() if points[1][1]})


def _wink(side: str) -> GestureShape:
    closed = _held(1.0, 0.12, 0.28, 0.16)
    return GestureShape(0.12, {"smile": _held(0.15, 0.16, 0.4, 0.4)}, {side: closed})


_BROWS_UP = _held(0.34, 0.2, 0.8, 0.4)
SHAPES: Mapping[str, GestureShape] = MappingProxyType(
    {
        "nod": GestureShape(
            0.2,
            {"pitch": ((0, 0), (0.2, 0.13), (0.44, -0.03), (0.64, 0.06), (0.9, 0))},
        ),
        "shake": GestureShape(
            0.2,
            {"yaw": ((0, 0), (0.2, -0.12), (0.48, 0.12), (0.76, -0.08), (1.0, 0.04), (1.2, 0))},
        ),
        "tilt": GestureShape(0.32, {"roll": _held(0.12, 0.32, 1.2, 0.5)}),
        "raise_brows": GestureShape(0.2, {"brow_inner": _BROWS_UP, "brow_outer": _BROWS_UP}),
        "frown": GestureShape(0.2, {"brow_down": _held(0.5, 0.2, 1.0, 0.4)}),
        "wink": _wink("right"),
        "wink_left": _wink("left"),
        "smile": GestureShape(0.36, {"smile": _held(0.45, 0.36, 1.6, 0.7)}),
        "look_left": _look(-1, 0),
        "look_right": _look(1, 0),
        "look_up": _look(0, -1),
        "look_down": _look(0, 1),
        "look_away": _look(0.8, 0.6),
        "blink": GestureShape(0.12, {"shut": _held(1.0, 0.12, 0.16, 0.16)}),
    }
)
"""The shapes of all gestures by name."""

GESTURES: tuple[str, ...] = tuple(SHAPES)
"""The names of all gestures."""


@dataclass(frozen=True, slots=True)
class Gesture:
    """One gesture.

    Attributes:
        name: one of `GESTURES`.
        amount: how large it is, from 0.1 to 2; 1 as usual.

    Raises:
        ConfigError: there is no such gesture, or the amount is out of range.
    """

    name: str
    amount: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in SHAPES:
            raise ConfigError(f"gesture must be one of {', '.join(GESTURES)}, got {self.name!r}")
        check_number("amount", self.amount, MIN_AMOUNT, MAX_AMOUNT)

    @property
    def frames(self) -> int:
        """How many frames it takes."""
        return math.ceil(SHAPES[self.name].duration_s * FPS)

    @property
    def lead_s(self) -> float:
        """How long before its moment it begins."""
        return SHAPES[self.name].apex_s

    def at(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what is added to each channel `(15,)`, and each eye's closure `(2,)`.

        Args:
            frame: counted from its beginning.
        """
        shape, added, closures = SHAPES[self.name], np.zeros(NUM_CHANNELS), np.zeros(len(EYES))
        for name, points in shape.curves.items():
            added[channel(name)] = self.amount * value_at(points, frame / FPS)
        for side, points in shape.closures.items():
            closures[EYES.index(side)] = min(1.0, self.amount * value_at(points, frame / FPS))
        return added, closures


def value_at(points: Points, time_s: float) -> float:
    """Return the value of a curve at a time: a smooth step from each of its points to the next."""
    for (before_s, low), (after_s, high) in zip(points, points[1:], strict=False):
        if time_s < after_s:
            share = max(0.0, (time_s - before_s) / (after_s - before_s))
            return low + (high - low) * share * share * (3 - 2 * share)
    return points[-1][1]


@dataclass(slots=True)
class _Running:
    gesture: Gesture
    frame: int = 0
    left: int | None = None  # frames of its release; None before that

    @property
    def is_over(self) -> bool:
        return self.frame > self.gesture.frames or self.left == 0


class GestureBlend:
    """The gestures of one session that run."""

    def __init__(self) -> None:
        self._running: list[_Running] = []

    def __len__(self) -> int:
        """Return how many run."""
        return len(self._running)

    def begin(self, gesture: Gesture) -> None:
        """Begin a gesture; the same one that runs already fades."""
        for one in self._running:
            if one.gesture.name == gesture.name:
                self._release(one)
        self._running.append(_Running(gesture))

    def interrupt(self, unseen: int) -> None:
        """Let all gestures fade, from the last frame that was shown.

        Args:
            unseen: how many of the last frames were never shown.
        """
        for one in self._running:
            one.frame -= unseen
            self._release(one)
        self._running = [one for one in self._running if one.frame > 0]

    def frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what is added to each channel `(15,)` in the next frame, and closures `(2,)`."""
        added, closures = np.zeros(NUM_CHANNELS), np.zeros(len(EYES))
        for one in self._running:
            share = 1.0 if one.left is None else one.left / RELEASE_FRAMES
            curve, closed = one.gesture.at(one.frame)
            added += share * curve
            closures = np.maximum(closures, share * closed)
            one.frame += 1
            one.left = None if one.left is None else one.left - 1
        self._running = [one for one in self._running if not one.is_over]
        return np.clip(added, -_LIMITS, _LIMITS), closures

    def _release(self, one: _Running) -> None:
        if one.left is None:
            one.left = RELEASE_FRAMES - 1
