"""The time limits of a session and the warnings before them."""

import time
from collections.abc import Callable, Iterator

from letstalk_server.protocol import server_messages
from letstalk_server.session.connection import EndReason
from letstalk_server.session.connections import Connections
from letstalk_server.session.ending import WARNINGS
from letstalk_server.settings import Settings

END_WARNING_S = 60.0
"""Time between a warning and the end of the session."""


class Lifetime:
    """The time limits of one session.

    Args:
        settings: the limits.
        connections: without any, the session ends after the grace period.
        clock: monotonic time, s.

    Attributes:
        started_s: when the session began.
    """

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.started_s = self._active_s = clock()
        self._settings, self._connections, self._clock = settings, connections, clock
        self._warned: set[str] = set()

    @property
    def ends_in_s(self) -> float | None:
        """Time until the session's time limit is reached, s; None without a limit."""
        limit_s = self._settings.session_limit_s
        return max(0.0, self.started_s + limit_s - self._clock()) if limit_s else None

    def touch(self) -> None:
        """Restart the idle time."""
        self._active_s = self._clock()

    def end(self) -> EndReason | None:
        """Return the reason if the session must end now, or None."""
        now_s = self._clock()
        if not self._connections and now_s - self._connections.empty_since_s > self._wait_s:
            return EndReason.LOST
        return next((reason for _, reason, end_s in self._limits() if now_s > end_s), None)

    def warnings(self) -> Iterator[server_messages.Warn]:
        """Yield the warnings that are due; each is repeated only after its limit has moved."""
        now_s = self._clock()
        for code, _, end_s in self._limits():
            if now_s <= end_s - END_WARNING_S:
                self._warned.discard(code)
            elif code not in self._warned:
                self._warned.add(code)
                left_s = max(0, round(end_s - now_s))
                yield server_messages.Warn(code, WARNINGS[code].format(left_s), left_s)

    @property
    def _wait_s(self) -> float:
        """Time for which the session waits for a connection, s."""
        settings, had_connections = self._settings, self._connections.had_connections
        return settings.grace_s + (0 if had_connections else settings.connect_timeout_s)

    def _limits(self) -> Iterator[tuple[str, EndReason, float]]:
        """Yield the warning code, the end reason and the time of each limit."""
        settings = self._settings
        if settings.session_limit_s:
            yield "ends-soon", EndReason.TIME_OVER, self.started_s + settings.session_limit_s
        if settings.idle_limit_s:
            yield "idle-soon", EndReason.IDLE, self._active_s + settings.idle_limit_s
