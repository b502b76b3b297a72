"""The performer of one session: what it was told becomes the change of each window's motion.

It is asked for one window after another. All times are those of frames and of the audio in them, so
the same calls give the same performance, whatever the machine does.
"""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from letstalk_rt.performance.checks import check_number
from letstalk_rt.performance.direction import EYES, NUM_CHANNELS, DirectedWindow, channel
from letstalk_rt.performance.gestures import Gesture
from letstalk_rt.performance.listening import check_listening
from letstalk_rt.performance.moods import MOODS, Mood, Style, mood
from letstalk_rt.types import FPS, SAMPLE_RATE

logger = logging.getLogger(__name__)

GAZE = [channel("gaze_x"), channel("gaze_y")]

EASE_FRAMES = 12
"""Frames in which a mood eases in: half a second."""

MAX_WAITING = 8
"""Gestures and moods that may wait for their time; more drop the oldest."""

MAX_AT_S = 3600.0
MAX_PITCH_HZ = 4000.0
HEARD_S = 0.5
"""Somebody of whom nothing is heard for so long is silent."""

_RELEASE_FRAMES = 6  # in which interrupted gestures fade


class SpokenFrame(Protocol):
    """What is known of the audio of a frame."""

    @property
    def segment_id(self) -> int:
        """The segment that it belongs to."""
        ...

    @property
    def spoken(self) -> int:
        """Number of samples of speech at 16 kHz."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    what: Gesture | Mood
    segment_id: int
    at_s: float | None  # of the segment's audio; None for now


@dataclass(slots=True)
class _Running:
    gesture: Gesture
    frame: int = 0


class Performer:
    """Decides what is added to the motion of one session.

    Args:
        mood: the first mood; see `letstalk_rt.performance.mood`.
        strength: how much of it is shown, from 0 to 1.
        listening: how much attention is shown while somebody else speaks.
        max_waiting: gestures and moods that may wait for their time; more drop the oldest.

    Raises:
        ConfigError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        first: str | Style = "neutral",
        strength: float = 1.0,
        listening: str = "off",
        max_waiting: float = MAX_WAITING,
    ) -> None:
        check_listening(listening)
        self.mood = mood(first, strength)
        self.listening = listening
        self._max_waiting = max_waiting
        self._from = self._levels = self._to = self.mood.levels
        self._eased = EASE_FRAMES
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Running] = []
        self._segment_id, self._heard = 0, 0  # samples of that segment's speech
        self._noticed = False
        self._heard_s = -math.inf

    def set_mood(
        self,
        which: str | Style,
        strength: float = 1.0,
        segment_id: int = 0,
        at_s: float | None = None,
    ) -> None:
        """Change the mood; it eases in over half a second.

        Args:
            which: a name of `MOODS`, or a style.
            strength: how much of it is shown, from 0 to 1.
            segment_id: the segment that `at_s` refers to.
            at_s: when, in seconds of that segment's speech; None for the next window.

        Raises:
            ConfigError: there is no such mood, or a number is out of range.
        """
        chosen = mood(which, strength)
        if at_s is None:
            self._begin_mood(chosen)
        else:
            self._wait_for(chosen, segment_id, at_s)

    def gesture(
        self, name: str, amount: float = 1.0, segment_id: int = 0, at_s: float | None = None
    ) -> None:
        """Make a gesture.

        Args:
            name: one of `GESTURES`.
            amount: how large it is, above 0 and up to 2.
            segment_id: the segment that `at_s` refers to.
            at_s: when its first movement is complete, in seconds of that segment's speech; None to
                begin with the next window.

        Raises:
            ConfigError: there is no such gesture, or a number is out of range.
        """
        self._wait_for(Gesture(name, amount), segment_id, at_s)

    def cue(self, name: str, segment_id: int, at_s: float | None) -> None:
        """Change the mood or make a gesture, whichever the name is of; see `set_mood`, `gesture`.

        Raises:
            ConfigError: there is neither, or a number is out of range.
        """
        if name in MOODS:
            self.set_mood(name, 1.0, segment_id, at_s)
        else:
            self.gesture(name, 1.0, segment_id, at_s)

    def set_listening(self, mode: str) -> None:
        """Change how much attention is shown.

        Raises:
            ConfigError: it is unknown.
        """
        check_listening(mode)
        self.listening = mode

    def hear(self, speaking: bool, pitch_hz: float | None, now_s: float) -> None:
        """Note whether somebody else speaks now; see `AvatarSession.push_listened`.

        Raises:
            ConfigError: the pitch is no positive number.
        """
        if pitch_hz is not None:
            check_number("pitch_hz", pitch_hz, 1.0, MAX_PITCH_HZ)
        self._heard_s = now_s if speaking else -math.inf

    def interrupt(self, unseen: int = 0) -> None:
        """Drop gestures that wait or run."""
        self._waiting.clear()
        self._running.clear()

    def window(self, frames: Sequence[SpokenFrame], now_s: float = 0.0) -> DirectedWindow | None:
        """Return how the motion of the next window is changed; None if not at all.

        Args:
            frames: the audio of each of its frames.
            now_s: when the first one is shown.
        """
        attends = self.listening != "off" and now_s < self._heard_s + HEARD_S
        added = np.zeros((len(frames), NUM_CHANNELS), np.float32)
        kept, closures = np.ones_like(added), np.zeros((len(frames), len(EYES)), np.float32)
        for number, frame in enumerate(frames):
            self._follow(frame)
            self._ease()
            added[number], kept[number] = self._levels.added, self._levels.kept
            if attends:
                kept[number, GAZE] = 0
            for running in self._running:
                more, closed = running.gesture.at(running.frame)
                added[number] += more
                closures[number] = np.maximum(closures[number], closed)
                running.frame += 1
            self._running = [each for each in self._running if each.frame <= each.gesture.frames]
        style = self._levels.style.astype(np.float32)
        changes = added.any() or closures.any() or style.any() or (kept != 1).any()
        if not changes and self._levels.blink_rate == 1:
            return None
        return DirectedWindow(added, kept, closures, style, self._levels.blink_rate)

    def _wait_for(self, what: Gesture | Mood, segment_id: int, at_s: float | None) -> None:
        if at_s is not None:
            check_number("at", at_s, 0.0, MAX_AT_S)
        if len(self._waiting) >= self._max_waiting:
            self._waiting.popleft()
            if not self._noticed:
                logger.warning("too many gestures wait; the oldest are dropped")
            self._noticed = True
        self._waiting.append(_Waiting(what, segment_id, at_s))

    def _follow(self, frame: SpokenFrame) -> None:
        """Begin what is due in a frame."""
        if frame.segment_id != self._segment_id:
            self._segment_id, self._heard = frame.segment_id, 0
        due = [each for each in self._waiting if self._is_due(each)]
        for each in due:
            self._waiting.remove(each)
            if isinstance(each.what, Mood):
                self._begin_mood(each.what)
            else:
                self._running.append(_Running(each.what))
        self._heard += frame.spoken

    def _is_due(self, waiting: _Waiting) -> bool:
        if waiting.at_s is None or waiting.segment_id < self._segment_id:
            return True
        lead_s = waiting.what.lead_s if isinstance(waiting.what, Gesture) else 0.0
        is_now = self._heard / SAMPLE_RATE + 0.5 / FPS >= waiting.at_s - lead_s
        return waiting.segment_id == self._segment_id and is_now

    def _begin_mood(self, next_mood: Mood) -> None:
        self.mood = next_mood
        self._from, self._to, self._eased = self._levels, next_mood.levels, 0

    def _ease(self) -> None:
        if self._eased < EASE_FRAMES:
            self._eased += 1
            share = self._eased / EASE_FRAMES
            self._levels = self._from.toward(self._to, share * share * (3 - 2 * share))
