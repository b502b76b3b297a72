"""The agent check of HAProxy: a port that tells how much of a worker is free.

HAProxy connects twice a second and reads one line, `up ready 70%`: the worker's weight for new
sessions. Sessions that live reach their worker at any weight.
"""

import asyncio
from collections.abc import Callable

from letstalk_server.errors import AtCapacityError, RetryLaterError
from letstalk_server.session.registry import SessionRegistry

LOADING = "maint"
"""Before the model is loaded: the proxy sends nothing."""

DRAINING = "drain"
"""No new sessions, those that live go on: while stopping, and while the model is away."""


def agent_state(sessions: SessionRegistry) -> str:
    """Return the line that tells HAProxy how many new sessions a worker wants.

    `up ready N%`, where N is the share of places that are free, at least 1 while there is one.
    """
    try:
        sessions.check_capacity()
    except AtCapacityError:
        return "up ready 0%"
    except RetryLaterError:
        return DRAINING
    capacity = sessions.admission.capacity
    free = max(1, capacity - sessions.occupied)
    return f"up ready {max(1, 100 * free // capacity)}%"


class AgentCheck:
    """Answers the agent check.

    Args:
        state: returns the line to answer with.
    """

    def __init__(self, state: Callable[[], str]) -> None:
        self.state = state
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> None:
        """Listen on a port.

        Raises:
            OSError: The port cannot be used.
        """
        self._server = await asyncio.start_server(self._answer, host, port, limit=1024)

    async def aclose(self) -> None:
        """Stop listening. Safe to call before `open`."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{self.state()}\n".encode())
        writer.close()
