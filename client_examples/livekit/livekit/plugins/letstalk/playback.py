"""What was heard of each segment, and who is told.

`AvatarRunner` counts audio as played when it is queued, up to 100 ms early, and its reports after
an interrupt still count what was dropped. So the generator reports by itself; the receivers of this
plugin pass its reports on and ignore the runner's.
"""

import time
from collections.abc import Callable
from typing import Protocol


class PlaybackReports(Protocol):
    """Who is told what was played; `LocalAudioOutput` and `RemoteAudioReceiver`."""

    def report_started(self) -> None:
        """A segment becomes audible now."""
        ...

    def report_finished(self, position_s: float) -> None:
        """A segment has been played to its end.

        Args:
            position_s: how much of it was played, in seconds.
        """
        ...

    def report_interrupted(self, position_s: float, segments: int) -> None:
        """All that was not played yet was dropped.

        Args:
            position_s: how much of the first segment was played, in seconds.
            segments: how many segments of the generator this ends.
        """
        ...

    def report_failure(self, error: Exception, position_s: float, segments: int) -> None:
        """The generator has ended with an error, which ends all segments, and takes no more."""
        ...


class NoReports:
    """For generators whose runner reports by itself."""

    def report_started(self) -> None:
        """Do nothing."""

    def report_finished(self, position_s: float) -> None:
        """Do nothing."""

    def report_interrupted(self, position_s: float, segments: int) -> None:
        """Do nothing."""

    def report_failure(self, error: Exception, position_s: float, segments: int) -> None:
        """Do nothing."""


class PlaybackMeter:
    """Computes how much of a segment was heard from what was queued and when.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spoken_s = 0.0  # queued since the segment began
        self._audible_until_s = 0.0  # when all that is queued will have been played

    @property
    def position_s(self) -> float:
        """Seconds of speech that were heard since the last reset."""
        return max(0.0, self._spoken_s - self.remaining_s)

    @property
    def remaining_s(self) -> float:
        """Seconds until all that is queued will have been heard."""
        return max(0.0, self._audible_until_s - self._clock())

    @property
    def spoken_s(self) -> float:
        """Seconds of speech that were queued since the last reset."""
        return self._spoken_s

    def note_queued(self, duration_s: float, spoken_s: float) -> None:
        """Record audio that is queued now.

        Args:
            duration_s: its length.
            spoken_s: how much of it is speech, the rest being padding.
        """
        self._audible_until_s = max(self._audible_until_s, self._clock()) + duration_s
        self._spoken_s += spoken_s

    def begin_segment(self) -> None:
        """Count from zero, while audio of the last segment may still be playing."""
        self._spoken_s = 0.0

    def clear(self) -> None:
        """Forget what is queued, because it was dropped."""
        self._spoken_s = self._audible_until_s = 0.0
