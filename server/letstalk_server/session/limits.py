"""Rate limits and admission control."""

import time
from collections import OrderedDict
from collections.abc import Callable

from letstalk_rt.inference.admission import HEADROOM
from letstalk_server.auth import Caller
from letstalk_server.errors import (
    MODEL_AWAY,
    MODEL_RETRY_S,
    RETRY_AFTER_S,
    AtCapacityError,
    NotReadyError,
    TooManyRequestsError,
)
from letstalk_server.session.avatar_service import AvatarService


class TokenBucket:
    """A token bucket.

    Args:
        per_s: sustained rate, 1/s.
        clock: monotonic time, s.
        burst: capacity of the bucket; two seconds' worth by default.
    """

    def __init__(
        self,
        per_s: float,
        clock: Callable[[], float] = time.monotonic,
        burst: float | None = None,
    ) -> None:
        self._per_s, self._clock = per_s, clock
        self._burst = max(1.0, 2 * per_s) if burst is None else burst
        self._tokens, self._at_s = self._burst, clock()

    def take(self) -> bool:
        """Take a token; return False if the bucket is empty."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at_s) * self._per_s)
        self._at_s = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RateLimiter:
    """A rate limit per subject; operators are not limited.

    Callers whose tokens are for one session share a limit of their own: many people may hold them.

    Args:
        per_s: sustained rate, 1/s; ten seconds' worth at once.
        clock: monotonic time, s.
    """

    MAX_SUBJECTS = 10_000
    BURST_S = 10

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._clock = per_s, clock
        self._buckets: OrderedDict[tuple[str, str | None], TokenBucket] = OrderedDict()

    def check(self, caller: Caller) -> None:
        """Count a request.

        Raises:
            TooManyRequestsError: The subject exceeds the rate.
        """
        if caller.is_operator:
            return
        who = caller.subject, caller.session
        bucket = self._buckets.pop(who, None) or TokenBucket(
            self._per_s, self._clock, burst=max(1.0, self._per_s * self.BURST_S)
        )
        self._buckets[who] = bucket
        if len(self._buckets) > self.MAX_SUBJECTS:
            self._buckets.popitem(last=False)
        if not bucket.take():
            wait_s = max(1, round(1 / self._per_s))
            raise TooManyRequestsError(f"Too many requests. Try again in {wait_s} seconds.", wait_s)


class AdmissionControl:
    """Admits as many sessions as the model can serve in real time.

    Args:
        avatar_service: has the measured cost of a step and the load of the model thread.
        max_sessions: fixed limit; `None` uses the measured cost.
    """

    def __init__(self, avatar_service: AvatarService, max_sessions: int | None) -> None:
        self._avatar_service = avatar_service
        self._max_sessions = max_sessions

    @property
    def capacity(self) -> int:
        """Maximum number of sessions."""
        measured = self._avatar_service.step_cost.places
        return measured if self._max_sessions is None else self._max_sessions

    def check(self, sessions: int) -> None:
        """Check that one more session can be admitted.

        Args:
            sessions: number of running sessions.

        Raises:
            AtCapacityError: The limit is reached, or the model is too busy.
            NotReadyError: The model is being started again.
        """
        if not self._avatar_service.is_model_running:
            raise NotReadyError(MODEL_AWAY, MODEL_RETRY_S)
        if sessions >= self.capacity:
            raise AtCapacityError(
                f"All {self.capacity} places are taken. Try again in {RETRY_AFTER_S} seconds."
            )
        busy = self._avatar_service.worker.busy_ratio() + self._avatar_service.step_cost.share
        if sessions and self._max_sessions is None and busy > HEADROOM:
            raise AtCapacityError(
                "The model is busy: another session would make the others stutter. Try again "
                f"in {RETRY_AFTER_S} seconds."
            )
