"""The queue of those who wait for a place while the server is full."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from letstalk_server.auth import Caller
from letstalk_server.session.ids import new_id
from letstalk_server.settings import Settings

ABSENT_S = 10.0
"""A ticket lapses when its holder has not asked for so long."""

CALLED_S = 15.0
"""A free place is kept for so long for the first in the queue."""

MAX_TICKETS = 200


@dataclass(slots=True)
class Ticket:
    """A place in the queue.

    Attributes:
        id: secret identifier; in a cluster it names the worker, as that of a session does.
        subject: whom it belongs to.
        asked_s: when its holder asked last.
        called_s: since when a place is free for it; `None` while it waits.
        told: what its holder was told last.
    """

    id: str
    subject: str
    asked_s: float
    called_s: float | None = None
    told: Any = None


class AdmissionQueue:
    """First come, first served; who does not ask any more is left out.

    Args:
        settings: for the form of identifiers.
        clock: monotonic time, s.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._tickets: dict[str, Ticket] = {}  # in the order in which they were given

    def enter(self, caller: Caller, name: str | None, share: int) -> Ticket | None:
        """Return the caller's ticket, a new one if it has none of this id, or None.

        Args:
            caller: who asks.
            name: id of its ticket, if it has one.
            share: maximum number of tickets of the subject; an operator has no such limit.
        """
        self._drop_lapsed()
        ticket = self._find(caller, name)
        if ticket is None:
            own = sum(ticket.subject == caller.subject for ticket in self._tickets.values())
            is_over = own >= share and not caller.is_operator
            if is_over or len(self._tickets) >= MAX_TICKETS:
                return None
            ticket = Ticket(new_id(self._settings), caller.subject, 0.0)
            self._tickets[ticket.id] = ticket
        ticket.asked_s = self._clock()
        return ticket

    def count_before(self, caller: Caller | None = None, name: str | None = None) -> int:
        """Return how many wait before a ticket of the caller; all, without one."""
        self._drop_lapsed()
        ticket = self._find(caller, name)
        return len(self._tickets) if ticket is None else [*self._tickets].index(ticket.id)

    def call(self, ticket: Ticket, is_free: bool) -> None:
        """Note whether a place is free for a ticket."""
        if not is_free:
            ticket.called_s = None
        elif ticket.called_s is None:
            ticket.called_s = self._clock()

    def leave(self, caller: Caller, name: str | None) -> None:
        """Take the caller's ticket out."""
        if self._find(caller, name) is not None:
            del self._tickets[str(name)]

    def _find(self, caller: Caller | None, name: str | None) -> Ticket | None:
        ticket = self._tickets.get(name or "")
        if ticket is None or caller is None or ticket.subject != caller.subject:
            return None
        return ticket

    def _drop_lapsed(self) -> None:
        now_s = self._clock()
        self._tickets = {
            name: ticket
            for name, ticket in self._tickets.items()
            if now_s - ticket.asked_s < ABSENT_S
            and (ticket.called_s is None or now_s - ticket.called_s < CALLED_S)
        }
