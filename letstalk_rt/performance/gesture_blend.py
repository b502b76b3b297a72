"""Gestures that run: their curves are added up, within limits, and fade when they are cut short."""

from dataclasses import dataclass

import numpy as np

from letstalk_rt.performance.direction import CHANNELS, EYES, NUM_CHANNELS
from letstalk_rt.performance.gestures import Gesture

RELEASE_FRAMES = 6
"""Frames in which a gesture fades that is cut short."""

_MOST = {"yaw": 0.3, "pitch": 0.28, "roll": 0.25, "gaze_x": 0.08, "gaze_y": 0.06}
_LIMITS = np.array([_MOST.get(name, 1.0) for name in CHANNELS])
"""The most that gestures together add to a channel."""


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
