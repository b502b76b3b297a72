"""Rate limits and admission control."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

UPLOAD_RETRY_S = 2
"""When to try an upload again that had to wait for others."""


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


class UploadPlaces:
    """Places for uploads, from their first byte to the prepared portrait.

    A subject has one, so that slow uploads hold up their own subject only; an operator any number.

    Args:
        limit: uploads at once, whose bodies are all in memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: list[str] = []

    @contextmanager
    def take(self, caller: Caller) -> Iterator[None]:
        """Hold a place for an upload of a caller.

        Raises:
            TooManyRequestsError: The subject is uploading already.
            AtCapacityError: All places are taken.
        """
        if caller.subject in self._taken and not caller.is_operator:
            raise TooManyRequestsError(
                "Another upload of yours is not complete. Wait until it is.", UPLOAD_RETRY_S
            )
        if len(self._taken) >= self._limit:
            raise AtCapacityError(
                f"Too many uploads at once. Try again in {UPLOAD_RETRY_S} seconds.", UPLOAD_RETRY_S
            )
        self._taken.append(caller.subject)
        try:
            yield
        finally:
            self._taken.remove(caller.subject)


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
