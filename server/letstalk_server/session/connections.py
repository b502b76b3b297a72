"""The connections of one session: who is there, who gives way, and what all of them are sent."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from letstalk_server.errors import AtCapacityError, NotFoundError
from letstalk_server.session.connection import EXCLUSIVE_KINDS, Connection

Receiver = Callable[[str | bytes], None]
"""Takes what a client says."""


@dataclass(slots=True)
class _Connection:
    link: Connection
    receive: Receiver
    since_s: float
    stats_at_s: float = 0.0


class Connections:
    """The connections of one session, at most so many.

    Args:
        most: how many there may be at a time.
        clock: monotonic time, s.

    Attributes:
        had_connections: there was a connection before, or there is one.
        empty_since_s: when the last of them went; the beginning, where none has come.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.had_connections = False
        self.empty_since_s = clock()
        self._most, self._clock = most, clock
        self._connections: dict[str, _Connection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter([connection.link for connection in self._connections.values()])

    def with_times(self) -> list[tuple[Connection, float]]:
        """Return the connections, and when each began."""
        return [(one.link, one.since_s) for one in self._connections.values()]

    def find(self, name: str) -> Connection:
        """Return a connection by its id.

        Raises:
            NotFoundError: there is none.
        """
        if name not in self._connections:
            raise NotFoundError("There is no such connection, or it has ended.")
        return self._connections[name].link

    def add(self, link: Connection, receive: Receiver) -> list[Connection]:
        """Take a connection in.

        Returns:
            Those that must give way, for there may be only one of their role.

        Raises:
            AtCapacityError: there are as many as there may be.
        """
        if len(self._connections) >= self._most:
            raise AtCapacityError(
                f"This session has {len(self._connections)} connections already. Close one of them."
            )
        older = [one for one in self if link.kind in EXCLUSIVE_KINDS and one.kind == link.kind]
        self._connections[link.id] = _Connection(link, receive, self._clock())
        self.had_connections = True
        return older

    def remove(self, link: Connection) -> bool:
        """Let a connection go; return whether it was there."""
        if self._connections.pop(link.id, None) is None:
            return False
        self.empty_since_s = self._clock()
        return True

    def clear(self) -> list[Connection]:
        """Let all connections go, and return them."""
        links = list(self)
        self._connections.clear()
        return links

    def receive(self, link: Connection, data: str | bytes) -> None:
        """Hand over what a client says, while its connection is there."""
        if link.id in self._connections:
            self._connections[link.id].receive(data)

    def broadcast(self, text: str) -> None:
        """Send a message to all."""
        for link in self:
            link.send(text)

    def lost(self, now_s: float) -> list[Connection]:
        """Return the connections whose clients are gone without a word."""
        return [link for link in self if link.is_lost(now_s)]

    def take_due_stats(self, now_s: float) -> list[Connection]:
        """Return the connections that want statistics now, each once in its interval."""
        due = [
            one
            for one in self._connections.values()
            if one.link.config.stats_s and now_s - one.stats_at_s >= one.link.config.stats_s
        ]
        for one in due:
            one.stats_at_s = now_s
        return [one.link for one in due]
