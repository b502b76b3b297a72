"""When a frame is due, and when its step must begin. Arithmetic only: callers pass in the time."""

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

_TOLERANCE_S = 0.005
"""Shorter delays are not visible, and timers are hardly more precise."""

_MEMORY_S = 5.0
_MARGIN_S = 0.01
"""Added when the clock is moved, or the next frame that is slightly late would move it again."""


@dataclass(frozen=True, slots=True)
class LatePolicy:
    """How a clock treats late frames.

    Attributes:
        max_lag_s: the longest lag that is caught up: a late frame is shown on arrival, and the
            following ones close the gap. A longer lag moves the clock (a stall), because a burst of
            old frames looks worse than a pause.
        patience: how often frames may begin to be late within five seconds before the clock is
            moved by their lag; 0 for never moving it. Once a step was too slow, live frames keep
            being late, and a constant small delay is better than a gap in every window.
    """

    max_lag_s: float = 0.2
    patience: int = 3


@dataclass(frozen=True, slots=True)
class HoldPolicy:
    """How a clock waits for a late frame, for players that must not repeat frames.

    Attributes:
        max_s: how long the clock may be held for one frame.
    """

    max_s: float = 0.04


@dataclass(frozen=True, slots=True)
class CatchUpPolicy:
    """How a clock runs fast while frames wait longer than necessary.

    Attributes:
        faster: the largest relative speed-up; a receiver's jitter buffer absorbs it inaudibly.
        margin_s: how long the latest-arriving frame should wait.
        steady_frames: how many past frames are considered for running fast.
        recent_frames: how many past frames are considered for skipping a frame.
    """

    faster: float = 0.025
    margin_s: float = 0.005
    steady_frames: int = 250
    recent_frames: int = 50


@dataclass(slots=True)
class PlayoutClock:
    """A mapping from frame numbers to the times at which they are due.

    Each player has one, with the policies of its kind: a player that pushes frames to a sink uses
    `delay_s`, which applies `late`; one whose frames are pulled uses `elapsed_s`, with `hold` and
    `resume` (policy `holds`), and `note_arrival` and `run_fast` (policy `catch_up`). The engine has
    one too, which follows the player, to compute when the next frame is needed.

    Attributes:
        fps: frames per second.
        late: how `delay_s` treats late frames.
        holds: how the clock waits; None if it never does.
        catch_up: how it runs fast; None if it never does.
        stalls: how often the clock was moved because a frame was too late.
        moved_s: by how much it was moved for late frames, in total.
        held_s: how long it was held, in total.
    """

    fps: float = 25
    late: LatePolicy = LatePolicy()
    holds: HoldPolicy | None = None
    catch_up: CatchUpPolicy | None = None
    stalls: int = 0
    moved_s: float = 0.0
    held_s: float = 0.0
    _start_s: float | None = None
    _index: int = -1  # of the last call of `delay_s`
    _lag_s: float = 0.0  # of that frame
    _onsets: list[tuple[int, float]] = field(default_factory=list)  # frame number, lag
    _held_since_s: float | None = None
    _arrivals_s: deque[float] = field(default_factory=deque)  # minus `index / fps`

    def due_s(self, number: int, now_s: float) -> float:
        """Return the time at which frame `number` is due; the first call starts the clock there."""
        if self._start_s is None:
            self._start_s = now_s - number / self.fps
        return self._start_s + number / self.fps

    # Policy `late`

    def delay_s(self, number: int, now_s: float) -> float:
        """Return how many seconds to wait, 0 or more, before frame `number` is shown."""
        ahead_s = self.due_s(number, now_s) - now_s
        if ahead_s < -self.late.max_lag_s:
            self._move(-ahead_s)
            self.stalls += 1
            return 0.0
        if self.late.patience and number > self._index:
            self._note_lag(number, -ahead_s)
        return max(0.0, ahead_s)

    def _note_lag(self, number: int, lag_s: float) -> None:
        """Move the clock when frames begin to be late too often."""
        begins = lag_s > self._lag_s + _TOLERANCE_S
        self._index, self._lag_s = number, max(0.0, lag_s)
        if not begins:
            return
        self._onsets = [o for o in self._onsets if number - o[0] <= _MEMORY_S * self.fps] + [
            (number, lag_s)
        ]
        if len(self._onsets) > self.late.patience:
            self._move(max(lag_s for _, lag_s in self._onsets) + _MARGIN_S)
            self._onsets.clear()
            self._lag_s = 0.0

    def _move(self, by_s: float) -> None:
        assert self._start_s is not None
        self._start_s += by_s
        self.moved_s += by_s

    # Policy `holds`

    def elapsed_s(self, now_s: float) -> float:
        """Return the seconds since the clock started, without those in which it was held."""
        held_at_s = now_s if self._held_since_s is None else self._held_since_s
        return held_at_s - self.due_s(0, held_at_s)

    def hold(self, now_s: float) -> None:
        """Hold the clock until `resume`; the caller waits `holds.max_s` at most."""
        assert self.holds is not None
        if self._held_since_s is None:
            self._held_since_s = now_s

    def resume(self, now_s: float) -> bool:
        """Let a held clock run again; return whether it was held."""
        if self._held_since_s is None or self._start_s is None:
            return False
        held_s = now_s - self._held_since_s
        self._held_since_s = None
        self._start_s += held_s
        self.held_s += held_s
        return True

    # Policy `catch_up`

    def note_arrival(self, index: int, came_s: float) -> None:
        """Record the arrival of frame `index` of an unbroken series."""
        assert self.catch_up is not None
        self._arrivals_s.append(came_s - index / self.fps)
        if len(self._arrivals_s) > max(self.catch_up.steady_frames, self.catch_up.recent_frames):
            self._arrivals_s.popleft()

    def forget_arrivals(self) -> None:
        """Discard all arrivals, because the series is broken."""
        self._arrivals_s.clear()

    def may_skip(self, index: int, number: int) -> bool:
        """Return whether recent frames wait so long that `index`, due as `number`, can be skipped.

        `index` counts generated frames, `number` shown frames.
        """
        assert self.catch_up is not None
        return self._spare_s(index, number, self.catch_up.recent_frames) > 1 / self.fps

    def run_fast(self, index: int, number: int) -> None:
        """Advance the clock by at most `faster` of a frame, while frames wait longer than needed.

        Call it with each frame that is shown; the numbers are those of `may_skip`.
        """
        assert self.catch_up is not None and self._start_s is not None
        spare_s = self._spare_s(index, number, self.catch_up.steady_frames)
        self._start_s -= min(max(spare_s, 0.0), self.catch_up.faster / self.fps)

    def _spare_s(self, index: int, number: int, frames: int) -> float:
        """Return how much longer than the margin the latest of the last `frames` frames waits.

        Negative while less than a second of frames is known.
        """
        assert self.catch_up is not None and self._start_s is not None
        if len(self._arrivals_s) < min(self.fps, frames):
            return -self.catch_up.margin_s
        latest_s = max(islice(reversed(self._arrivals_s), frames))
        return self._start_s + (number - index) / self.fps - latest_s - self.catch_up.margin_s


_HISTORY = 32  # steps: five seconds
_QUANTILE = 0.9
_SPARE_S = 0.02


@dataclass(slots=True)
class LeadTime:
    """How long before its first frame is due a step must begin, estimated from the last steps.

    Attributes:
        fps: frames per second.
        spare_s: safety margin on top of the 90th percentile of the last steps.
    """

    fps: float = 25
    spare_s: float = _SPARE_S
    _needed_s: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    def note(self, ready_s: list[float]) -> None:
        """Record the times at which the frames of a step were ready, from the begin of the step."""
        self._needed_s.append(max(at_s - n / self.fps for n, at_s in enumerate(ready_s)))

    @property
    def lead_s(self) -> float:
        """Seconds before its first frame is due at which the next step should begin."""
        if not self._needed_s:
            return self.spare_s
        rank = math.ceil(_QUANTILE * len(self._needed_s)) - 1
        return max(0.0, sorted(self._needed_s)[rank]) + self.spare_s
