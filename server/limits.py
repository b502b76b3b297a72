"""How much is too much: messages per second, and sessions per machine."""

import time
from collections.abc import Callable

from letstalk_rt.errors import AtCapacity
from letstalk_server.problems import RETRY_AFTER_S
from letstalk_server.studio import Studio

HEADROOM = 0.95
"""Share of the model thread's time that sessions may fill."""


class Rate:
    """A token bucket: so many per second for long, and two seconds' worth at once.

    Args:
        per_s: how many per second.
        clock: monotonic time, s.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._clock = per_s, max(1.0, 2 * per_s), clock
        self._left, self._at_s = self._most, clock()

    def allows(self) -> bool:
        """Count one; tells whether it is within the rate."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at_s) * self._per_s)
        self._at_s = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Admission:
    """Lets in as many sessions as the model can serve without stuttering.

    Args:
        studio: knows how fast the model is, and how busy.
        most: sessions at once, whatever was measured; `None` leaves it to the measurement.
    """

    def __init__(self, studio: Studio, most: int | None) -> None:
        self._studio = studio
        self._most = most

    @property
    def places(self) -> int:
        """How many sessions fit."""
        share = self._studio.speed.share
        measured = max(1, int(HEADROOM / share)) if share > 0 else 1024
        return measured if self._most is None else self._most

    def check(self, sessions: int) -> None:
        """Let one more in.

        Args:
            sessions: how many there are.

        Raises:
            AtCapacity: it would be too many.
        """
        if sessions >= self.places:
            raise AtCapacity(
                f"All {self.places} places are taken. Try again in {RETRY_AFTER_S} seconds."
            )
        busy = self._studio.worker.busy_ratio() + self._studio.speed.share
        if sessions and self._most is None and busy > HEADROOM:
            raise AtCapacity(
                "The model is busy: a further session would make the others stutter. Try again "
                f"in {RETRY_AFTER_S} seconds."
            )
