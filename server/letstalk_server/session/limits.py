"""How much is too much: messages per second, and sessions per machine."""

import time
from collections import OrderedDict
from collections.abc import Callable

from letstalk_server.auth import Caller
from letstalk_server.errors import RETRY_AFTER_S, AtCapacityError, TooManyRequestsError
from letstalk_server.session.avatar_service import AvatarService

HEADROOM = 0.95
"""Share of the model thread's time that sessions may fill."""


class TokenBucket:
    """A token bucket: so many per second for long, and more at once.

    Args:
        per_s: how many per second.
        clock: monotonic time, s.
        burst: how many at once; two seconds' worth by default.
    """

    def __init__(
        self,
        per_s: float,
        clock: Callable[[], float] = time.monotonic,
        burst: float | None = None,
    ) -> None:
        self._per_s, self._clock = per_s, clock
        self._most = max(1.0, 2 * per_s) if burst is None else burst
        self._left, self._at_s = self._most, clock()

    def take(self) -> bool:
        """Count one; tells whether it is within the rate."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at_s) * self._per_s)
        self._at_s = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RateLimiter:
    """How often each subject may do something that costs; operators may as often as they like.

    Args:
        per_s: how often for long; ten seconds' worth at once.
        clock: monotonic time, s.
    """

    MAX_SUBJECTS = 10_000
    BURST_S = 10

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._clock = per_s, clock
        self._rates: OrderedDict[str, TokenBucket] = OrderedDict()

    def check(self, caller: Caller) -> None:
        """Count one.

        Raises:
            TooManyRequestsError: it was too often.
        """
        if caller.is_operator:
            return
        rate = self._rates.pop(caller.subject, None) or TokenBucket(
            self._per_s, self._clock, burst=max(1.0, self._per_s * self.BURST_S)
        )
        self._rates[caller.subject] = rate
        if len(self._rates) > self.MAX_SUBJECTS:
            self._rates.popitem(last=False)
        if not rate.take():
            wait_s = max(1, round(1 / self._per_s))
            raise TooManyRequestsError(
                f"That was too often. Try again in {wait_s} seconds.", wait_s
            )


class AdmissionControl:
    """Lets in as many sessions as the model can serve without stuttering.

    Args:
        avatar_service: knows how fast the model is, and how busy.
        most: sessions at once, whatever was measured; `None` leaves it to the measurement.
    """

    def __init__(self, avatar_service: AvatarService, most: int | None) -> None:
        self._avatar_service = avatar_service
        self._most = most

    @property
    def capacity(self) -> int:
        """How many sessions fit."""
        share = self._avatar_service.step_cost.share
        measured = max(1, int(HEADROOM / share)) if share > 0 else 1024
        return measured if self._most is None else self._most

    def check(self, sessions: int) -> None:
        """Let one more in.

        Args:
            sessions: how many there are.

        Raises:
            AtCapacityError: it would be too many.
        """
        if sessions >= self.capacity:
            raise AtCapacityError(
                f"All {self.capacity} places are taken. Try again in {RETRY_AFTER_S} seconds."
            )
        busy = self._avatar_service.worker.busy_ratio() + self._avatar_service.step_cost.share
        if sessions and self._most is None and busy > HEADROOM:
            raise AtCapacityError(
                "The model is busy: a further session would make the others stutter. Try again "
                f"in {RETRY_AFTER_S} seconds."
            )
