"""When a frame is due, and when to begin it. Arithmetic only: the caller owns clock and sleep."""

import math
from collections import deque
from dataclasses import dataclass, field

_UNSEEN_S = 0.005
"""Nobody sees so short a delay, and timers are hardly finer."""

_MEMORY_S = 5.0
_MARGIN_S = 0.01
"""A clock that gives way gives a little more, or the next one just late would move it again."""


@dataclass(slots=True)
class Pacer:
    """Maps frame numbers to a steady playout clock.

    A late frame is sent at once and the next ones close the gap. A stall longer than
    `max_lag_s` moves the clock instead, for a burst of old frames looks worse than a pause. Where
    frames come late again and again, as live ones must once a step was too slow, the clock gives
    way by as much: a little later is better than a gap in every window.

    Attributes:
        fps: frames per second.
        max_lag_s: longest debt that is paid back.
        patience: how often within five seconds frames may begin to be late; 0 for always.
        stalls: how often the clock was moved.
        moved_s: by how much, in all.
    """

    fps: float = 25
    max_lag_s: float = 0.2
    patience: int = 3
    stalls: int = 0
    moved_s: float = 0.0
    _start_s: float | None = None
    _index: int = -1  # asked for last
    _lag_s: float = 0.0  # of that frame
    _onsets: list[tuple[int, float]] = field(default_factory=list)  # frame, and how late

    def due_s(self, index: int, now_s: float) -> float:
        """Give the time at which frame `index` is due; the first question starts the clock."""
        if self._start_s is None:
            self._start_s = now_s - index / self.fps
        return self._start_s + index / self.fps

    def delay_s(self, index: int, now_s: float) -> float:
        """Give the seconds to wait, 0 or more, before frame `index` is shown."""
        ahead_s = self.due_s(index, now_s) - now_s
        if ahead_s < -self.max_lag_s:
            self._move(-ahead_s)
            self.stalls += 1
            return 0.0
        if self.patience and index > self._index:
            self._note_lag(index, -ahead_s)
        return max(0.0, ahead_s)

    def _note_lag(self, index: int, lag_s: float) -> None:
        """Give way when frames keep beginning to be late."""
        begins = lag_s > max(_UNSEEN_S, self._lag_s)
        self._index, self._lag_s = index, max(0.0, lag_s)
        if not begins:
            return
        self._onsets = [o for o in self._onsets if index - o[0] <= _MEMORY_S * self.fps] + [
            (index, lag_s)
        ]
        if len(self._onsets) > self.patience:
            self._move(max(lag_s for _, lag_s in self._onsets) + _MARGIN_S)
            self._onsets.clear()
            self._lag_s = 0.0

    def _move(self, by_s: float) -> None:
        assert self._start_s is not None
        self._start_s += by_s
        self.moved_s += by_s


_LEARNT = 32  # steps: five seconds
_OFTEN = 0.9
_SPARE_S = 0.02


@dataclass(slots=True)
class Lead:
    """How long before its first frame is due a step must begin, as learnt from the last steps.

    Attributes:
        fps: frames per second.
        spare_s: how much longer than most of the last steps one may take.
    """

    fps: float = 25
    spare_s: float = _SPARE_S
    _needed_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LEARNT))

    def note(self, made_s: list[float]) -> None:
        """Record a step: when each of its frames was there, from its beginning."""
        self._needed_s.append(max(at_s - n / self.fps for n, at_s in enumerate(made_s)))

    @property
    def lead_s(self) -> float:
        """Seconds that the next step is given until its first frame is due."""
        if not self._needed_s:
            return self.spare_s
        rank = math.ceil(_OFTEN * len(self._needed_s)) - 1
        return max(0.0, sorted(self._needed_s)[rank]) + self.spare_s
