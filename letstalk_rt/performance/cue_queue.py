"""Gestures and moods that wait for their time, which is counted in the audio of a segment."""

import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from letstalk_rt.performance.checks import check_number
from letstalk_rt.performance.gestures import Gesture
from letstalk_rt.performance.moods import Mood
from letstalk_rt.types import FPS, SAMPLE_RATE

logger = logging.getLogger(__name__)

MAX_WAITING = 8
"""Gestures and moods that may wait; more drop the oldest."""

MAX_AT_S = 3600.0


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
    at_s: float | None  # of the segment's speech; None for now


class CueQueue:
    """What waits, and where in the audio the performance is.

    Args:
        max_waiting: how much may wait.
    """

    def __init__(self, max_waiting: float = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._segment_id, self._heard = 0, 0  # samples of that segment's speech
        self._has_dropped = False

    def __len__(self) -> int:
        """Return how much waits."""
        return len(self._waiting)

    def put(self, what: Gesture | Mood, segment_id: int, at_s: float | None) -> None:
        """Let a gesture or a mood wait.

        Args:
            what: the gesture or the mood.
            segment_id: the segment that `at_s` refers to.
            at_s: in seconds of that segment's speech; None for the next frame.

        Raises:
            ConfigError: `at_s` is no number from 0 to an hour.
        """
        if at_s is not None:
            check_number("at", at_s, 0.0, MAX_AT_S)
        if len(self._waiting) >= self._max_waiting:
            self._waiting.popleft()
            self._note_drop()
        self._waiting.append(_Waiting(what, segment_id, at_s))

    def skip(self, frames: Iterable[SpokenFrame]) -> None:
        """Go on by some frames while nothing waits."""
        for frame in frames:
            self._turn_to(frame.segment_id)
            self._heard += frame.spoken

    def take(self, frame: SpokenFrame) -> list[Gesture | Mood]:
        """Return what begins in the next frame, in the order in which it was put."""
        self._turn_to(frame.segment_id)
        due = [one for one in self._waiting if self._is_due(one)]
        for one in due:
            self._waiting.remove(one)
        self._heard += frame.spoken
        return [one.what for one in due]

    def _turn_to(self, segment_id: int) -> None:
        if segment_id != self._segment_id:
            self._segment_id, self._heard = segment_id, 0

    def clear(self) -> None:
        """Drop all that waits."""
        self._waiting.clear()

    def _is_due(self, one: _Waiting) -> bool:
        """Return whether it begins now; what was to come in a segment that is over does."""
        if one.at_s is None or one.segment_id < self._segment_id:
            return True
        lead_s = one.what.lead_s if isinstance(one.what, Gesture) else 0.0
        now_s = self._heard / SAMPLE_RATE + 0.5 / FPS
        return one.segment_id == self._segment_id and now_s >= one.at_s - lead_s

    def _note_drop(self) -> None:
        if not self._has_dropped:
            logger.warning(
                "too many gestures and moods wait; the oldest are dropped",
                extra={"most": self._max_waiting},
            )
        self._has_dropped = True
