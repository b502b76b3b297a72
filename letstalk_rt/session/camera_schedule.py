"""Which frames of a camera are read, and how old motion is when it is shown. Arithmetic only."""

import math
import statistics
from collections import deque

from letstalk_rt.types import FPS

_BUSY = 0.35
"""The largest share of a core that reading may take, beside reading every frame."""

_SLACK_S = 0.005  # a reading ends by so much before its motion is shown
_PATIENCE_S = 0.25  # without a reading; then a frame is read in any case
_KNOWN_COSTS, _KNOWN_AGES = 16, 24  # readings; half steps: two seconds
_KNOWN_SHARE = 0.85  # of the motion that is shown is known, and not held

_STALE_S = 0.5


class ReadSchedule:
    """Chooses the frames to read: the last ones that can be read before motion is shown.

    Steps ask for motion at times that recur with every step. A frame that is read earlier than
    necessary shows older motion, and one that is read too late is not used before the next time.

    Args:
        step_s: the time after which steps recur.
    """

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._costs_s: deque[float] = deque(maxlen=_KNOWN_COSTS)
        self._ages_s: deque[float] = deque(maxlen=_KNOWN_AGES)
        self._asked_s: tuple[float, ...] = ()  # replaced as a whole: another thread reads it
        self._interval_s, self._pushed_s = 1 / FPS, -math.inf
        self._began_s = -math.inf

    def note_frame(self, now_s: float) -> None:
        """Record that the camera has sent a frame."""
        interval_s, self._pushed_s = now_s - self._pushed_s, now_s
        if interval_s < _STALE_S:
            self._interval_s += 0.1 * (interval_s - self._interval_s)

    def note_reading(self, began_s: float, ended_s: float) -> None:
        """Record a reading."""
        self._began_s = began_s
        self._costs_s.append(ended_s - began_s)

    def note_age(self, now_s: float, captured_s: float) -> float:
        """Record that the newest motion is about to be shown; return the age to show it at.

        That is what nearly all of the last ones had, so that motion is seldom held for want of
        newer one.

        Args:
            now_s: the present time.
            captured_s: when the newest motion was captured.
        """
        self._asked_s = (*self._asked_s[-3:], now_s)
        self._ages_s.append(now_s - captured_s)
        rank = math.ceil(_KNOWN_SHARE * len(self._ages_s)) - 1
        return sorted(self._ages_s)[rank]

    def suits(self, now_s: float) -> bool:
        """Return whether a frame that has just come should be read."""
        if not self._costs_s or now_s > self._began_s + _PATIENCE_S:
            return True
        # A reading that took longer than others has waited for a processor, and not used it.
        rest_s = min(self._costs_s) / _BUSY
        if rest_s <= 1 / FPS:
            return True
        if now_s < self._began_s + rest_s - self._interval_s / 2:
            return False
        ready_s = now_s + statistics.median(self._costs_s) + _SLACK_S
        spare_s = [self._next_s(asked_s, ready_s) - ready_s for asked_s in self._recent(now_s)]
        return not spare_s or min(spare_s) < self._interval_s  # the next frame would be too late

    def _recent(self, now_s: float) -> list[float]:
        return [asked_s for asked_s in self._asked_s if asked_s > now_s - _STALE_S]

    def _next_s(self, asked_s: float, after_s: float) -> float:
        """Return when what was asked at a time will be asked again, at the earliest after one."""
        return asked_s + self._step_s * math.ceil((after_s - asked_s) / self._step_s)
