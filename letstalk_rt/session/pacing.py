"""When a frame is due, and when to begin it. Arithmetic only: the caller owns clock and sleep."""

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

_TOLERANCE_S = 0.005
"""Nobody sees so short a delay, and timers are hardly finer."""

_MEMORY_S = 5.0
_MARGIN_S = 0.01
"""A clock that gives way gives a little more, or the next one just late would move it again."""


@dataclass(frozen=True, slots=True)
class LatePolicy:
    """What a clock does about frames that are late.

    Attributes:
        max_lag_s: the longest lag that is caught up on: a frame that is late is shown when it
            comes, and the next ones close the gap. A longer lag moves the clock, which is a stall,
            for a burst of old frames looks worse than a pause.
        patience: how often within five seconds frames may begin to be late before the clock gives
            way by as much; 0 for always. Live frames keep coming late once a step was too slow, and
            a little later is better than a gap in every window.
    """

    max_lag_s: float = 0.2
    patience: int = 3


@dataclass(frozen=True, slots=True)
class HoldPolicy:
    """How a clock waits for a frame that is late, for players whose frames must not be repeated.

    Attributes:
        max_s: how long the clock stands still for one frame.
    """

    max_s: float = 0.04


@dataclass(frozen=True, slots=True)
class CatchUpPolicy:
    """How a clock runs fast while frames wait longer than they must.

    Attributes:
        faster: by how much it runs fast at most; a receiver's jitter buffer takes it up unheard.
        margin_s: how long the latest frame of late should wait.
        steady_frames: how far back the latest frame is looked for, to run fast.
        recent_frames: how far back, to leave out a frame altogether.
    """

    faster: float = 0.025
    margin_s: float = 0.005
    steady_frames: int = 250
    recent_frames: int = 50


@dataclass(slots=True)
class PlayoutClock:
    """Maps frame numbers to the time at which each is due.

    Whoever plays keeps one, with the policies of its kind: a player that pushes frames to a sink
    asks `delay_s`, which applies `late`; one whose frames are pulled reads `elapsed_s`, calls
    `hold` and `resume` (`holds`), and `note_arrival` and `run_fast` (`catch_up`). The engine keeps
    one too, which is told when frames were played, to know when the next one must be there.

    Attributes:
        fps: frames per second.
        late: what becomes of late frames in `delay_s`.
        holds: how the clock stands still; None where it never does.
        catch_up: how it runs fast; None where it never does.
        stalls: how often the clock was moved because frames were too late.
        moved_s: by how much it was moved for late frames, in all.
        held_s: how long it stood still, in all.
    """

    fps: float = 25
    late: LatePolicy = LatePolicy()
    holds: HoldPolicy | None = None
    catch_up: CatchUpPolicy | None = None
    stalls: int = 0
    moved_s: float = 0.0
    held_s: float = 0.0
    _start_s: float | None = None
    _index: int = -1  # asked for last
    _lag_s: float = 0.0  # of that frame
    _onsets: list[tuple[int, float]] = field(default_factory=list)  # frame, and how late
    _held_since_s: float | None = None
    _arrivals_s: deque[float] = field(default_factory=deque)  # of frame 0, as each frame tells it

    def due_s(self, number: int, now_s: float) -> float:
        """Return the time at which frame `number` is due; the first call starts the clock there."""
        if self._start_s is None:
            self._start_s = now_s - number / self.fps
        return self._start_s + number / self.fps

    # Late frames are shown late

    def delay_s(self, number: int, now_s: float) -> float:
        """Return the seconds to wait, 0 or more, before frame `number` is shown."""
        ahead_s = self.due_s(number, now_s) - now_s
        if ahead_s < -self.late.max_lag_s:
            self._move(-ahead_s)
            self.stalls += 1
            return 0.0
        if self.late.patience and number > self._index:
            self._note_lag(number, -ahead_s)
        return max(0.0, ahead_s)

    def _note_lag(self, number: int, lag_s: float) -> None:
        """Give way when frames keep beginning to be late."""
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

    # Late frames are waited for

    def elapsed_s(self, now_s: float) -> float:
        """Return the seconds since the clock started; it stands still while it is held."""
        held_at_s = now_s if self._held_since_s is None else self._held_since_s
        return held_at_s - self.due_s(0, held_at_s)

    def hold(self, now_s: float) -> None:
        """Stand still from now on, until `resume`; the caller waits `holds.max_s` at most."""
        assert self.holds is not None
        if self._held_since_s is None:
            self._held_since_s = now_s

    def resume(self, now_s: float) -> bool:
        """Go on from where the clock stood; return whether it stood still."""
        if self._held_since_s is None or self._start_s is None:
            return False
        held_s = now_s - self._held_since_s
        self._held_since_s = None
        self._start_s += held_s
        self.held_s += held_s
        return True

    # Early frames let the clock run fast

    def note_arrival(self, index: int, came_s: float) -> None:
        """Take the arrival of frame `index` of an unbroken series."""
        assert self.catch_up is not None
        self._arrivals_s.append(came_s - index / self.fps)
        if len(self._arrivals_s) > max(self.catch_up.steady_frames, self.catch_up.recent_frames):
            self._arrivals_s.popleft()

    def forget_arrivals(self) -> None:
        """Begin the series anew: it is broken."""
        self._arrivals_s.clear()

    def may_skip(self, index: int, number: int) -> bool:
        """Return whether recent frames wait so long that `index`, due as `number`, can be left out.

        `index` counts frames as they were made, `number` as they are shown.
        """
        assert self.catch_up is not None
        return self._spare_s(index, number, self.catch_up.recent_frames) > 1 / self.fps

    def run_fast(self, index: int, number: int) -> None:
        """Move the clock towards the latest frame, by what one frame of running fast allows.

        Called with each frame that is shown; the numbers are those of `may_skip`.
        """
        assert self.catch_up is not None and self._start_s is not None
        spare_s = self._spare_s(index, number, self.catch_up.steady_frames)
        self._start_s -= min(max(spare_s, 0.0), self.catch_up.faster / self.fps)

    def _spare_s(self, index: int, number: int, frames: int) -> float:
        """Return how much longer than the margin the latest of so many frames waits.

        Below 0 while less than a second of frames is known.
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
    """How long before its first frame is due a step must begin, as learnt from the last steps.

    Attributes:
        fps: frames per second.
        spare_s: how much longer than most of the last steps one may take.
    """

    fps: float = 25
    spare_s: float = _SPARE_S
    _needed_s: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    def note(self, made_s: list[float]) -> None:
        """Record a step: when each of its frames was there, from its beginning."""
        self._needed_s.append(max(at_s - n / self.fps for n, at_s in enumerate(made_s)))

    @property
    def lead_s(self) -> float:
        """Seconds that the next step is given until its first frame is due."""
        if not self._needed_s:
            return self.spare_s
        rank = math.ceil(_QUANTILE * len(self._needed_s)) - 1
        return max(0.0, sorted(self._needed_s)[rank]) + self.spare_s
