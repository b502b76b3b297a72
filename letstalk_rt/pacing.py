"""When a frame is due. Arithmetic only: the caller owns the clock and the sleep."""

from dataclasses import dataclass


@dataclass(slots=True)
class Pacer:
    """Maps frame numbers to a steady playout clock.

    A late frame is sent at once and the next ones close the gap. A stall longer than
    `max_lag_s` moves the clock instead, for a burst of old frames looks worse than a pause.

    Attributes:
        fps: frames per second.
        max_lag_s: longest debt that is paid back.
        stalls: how often the clock was moved.
        moved_s: by how much, in all.
    """

    fps: float = 25
    max_lag_s: float = 0.2
    stalls: int = 0
    moved_s: float = 0.0
    _start_s: float | None = None

    def due_s(self, index: int, now_s: float) -> float:
        """Give the time at which frame `index` is due; the first question starts the clock."""
        if self._start_s is None:
            self._start_s = now_s - index / self.fps
        return self._start_s + index / self.fps

    def delay_s(self, index: int, now_s: float) -> float:
        """Give the seconds to wait, 0 or more, before frame `index` is shown."""
        ahead_s = self.due_s(index, now_s) - now_s
        if ahead_s < -self.max_lag_s:
            assert self._start_s is not None
            self._start_s -= ahead_s
            self.moved_s -= ahead_s
            self.stalls += 1
            return 0.0
        return max(0.0, ahead_s)
