"""The open connections of one session."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from letstalk_server.errors import AtCapacityError, NotFoundError
from letstalk_server.session.connection import EXCLUSIVE_KINDS, Connection

KEPT_PLACES = 2
"""Places that connections which only watch leave free, for `talk` and `speak`; at most half."""

Receiver = Callable[[str | bytes], bool]
"""Handles one message of a client."""


@dataclass(slots=True)
class _Member:
    """An open connection with its state."""

    connection: Connection
    receive: Receiver
    since_s: float
    stats_at_s: float = 0.0


class Connections:
    """The open connections of one session.

    Args:
        limit: maximum number of connections.
        clock: monotonic time, s.

    Attributes:
        had_connections: whether there has been a connection.
        empty_since_s: when the last connection was removed; the start, if there has been none.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.had_connections = False
        self.empty_since_s = clock()
        self._limit, self._clock = limit, clock
        self._members: dict[str, _Member] = {}
        self._reserved: set[str] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Connection]:
        return iter([member.connection for member in self._members.values()])

    def with_times(self) -> list[tuple[Connection, float]]:
        """Return each connection with the time when it was added."""
        return [(member.connection, member.since_s) for member in self._members.values()]

    def find(self, name: str) -> Connection:
        """Return a connection by its id.

        Raises:
            NotFoundError: There is no such connection.
        """
        if name not in self._members:
            raise NotFoundError("There is no such connection, or it has ended.")
        return self._members[name].connection

    @contextmanager
    def reserved(self, connection: Connection) -> Iterator[None]:
        """Keep a place for a connection that is being set up, until it is added or fails.

        Raises:
            AtCapacityError: The limit is reached.
        """
        self._check_limit(connection)
        self._reserved.add(connection.id)
        try:
            yield
        finally:
            self._reserved.discard(connection.id)

    def add(self, connection: Connection, receive: Receiver) -> list[Connection]:
        """Add a connection.

        Returns:
            Older connections that must be closed, because there may be only one of their kind.

        Raises:
            AtCapacityError: The limit is reached.
        """
        if connection.id not in self._reserved:
            self._check_limit(connection)
        self._reserved.discard(connection.id)
        kind = connection.kind
        older = [other for other in self if kind in EXCLUSIVE_KINDS and other.kind == kind]
        self._members[connection.id] = _Member(connection, receive, self._clock())
        self.had_connections = True
        return older

    def _check_limit(self, connection: Connection) -> None:
        kept = 0 if connection.may_speak else min(KEPT_PLACES, self._limit // 2)
        taken = len(self._members) + len(self._reserved)
        if taken + kept >= self._limit:
            raise AtCapacityError(
                f"This session already has {taken} connections. Close one of them."
            )

    def remove(self, connection: Connection) -> bool:
        """Remove a connection; return whether it was there."""
        if self._members.pop(connection.id, None) is None:
            return False
        self.empty_since_s = self._clock()
        return True

    def clear(self) -> list[Connection]:
        """Remove all connections, and return them."""
        connections = list(self)
        self._members.clear()
        return connections

    def receive(self, connection: Connection, data: str | bytes) -> bool:
        """Handle a message of a client, unless its connection was removed.

        Returns:
            Whether the next one may be read at once; else the client sends too many.
        """
        member = self._members.get(connection.id)
        return member is None or member.receive(data)

    def broadcast(self, text: str) -> None:
        """Send a message to all connections."""
        for connection in self:
            connection.send(text)

    def lost(self, now_s: float) -> list[Connection]:
        """Return the connections whose clients have gone without closing them."""
        return [connection for connection in self if connection.is_lost(now_s)]

    def take_due_stats(self, now_s: float) -> list[Connection]:
        """Return the connections for which statistics are due, each once per interval."""
        due = [
            member
            for member in self._members.values()
            if (interval_s := member.connection.config.stats_s)
            and now_s - member.stats_at_s >= interval_s
        ]
        for member in due:
            member.stats_at_s = now_s
        return [member.connection for member in due]
