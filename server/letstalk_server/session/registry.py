"""All sessions of this server: who is let in, and how they end."""

import asyncio
from collections.abc import Callable, Iterator

from letstalk_server.auth import Caller
from letstalk_server.errors import NotAllowedError, NotReadyError, UnknownSessionError
from letstalk_server.session.avatar_service import AvatarEntry, AvatarService
from letstalk_server.session.connection import EndReason, ServedSessionOptions
from letstalk_server.session.limits import AdmissionControl, RateLimiter
from letstalk_server.session.session import Session
from letstalk_server.session.transport import Transport
from letstalk_server.settings import Settings

SESSIONS_PER_S = 0.5
"""How often one subject may open a session, for long."""


class SessionRegistry:
    """Opens, finds and ends sessions.

    Args:
        avatar_service: makes the avatars.
        transport: makes the connections.
        settings: capacity and time limits.
        on_end: called with each session that has ended.
    """

    def __init__(
        self,
        avatar_service: AvatarService,
        transport: Transport,
        settings: Settings,
        on_end: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self.admission = AdmissionControl(avatar_service, settings.max_sessions)
        self._avatar_service, self._transport, self._settings = avatar_service, transport, settings
        self._on_end = on_end
        self._running: dict[str, tuple[Session, asyncio.Task[None]]] = {}
        self._rate_limiter = RateLimiter(SESSIONS_PER_S)
        self._is_stopping = False

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Session]:
        return iter([session for session, _ in self._running.values()])

    def check_capacity(self) -> None:
        """Check that one more session could be opened.

        Who has left and may still come back holds no place against who comes now.

        Raises:
            AtCapacityError: all places are taken.
            NotReadyError: the server is stopping.
        """
        if self._is_stopping:
            raise NotReadyError("The server stops now. Try again in a minute.")
        self.admission.check(sum(not session.is_abandoned for session in self))

    def _free_capacity(self) -> None:
        """When all places are taken, end the session that was left first."""
        left = [session for session in self if session.is_abandoned]
        if left and len(self) >= self.admission.capacity:
            left[0].end(EndReason.LOST)

    def open(
        self,
        entry: AvatarEntry,
        caller: Caller,
        options: ServedSessionOptions | None = None,
        *,
        is_lasting: bool = True,
    ) -> Session:
        """Begin a session.

        Args:
            entry: the avatar it begins with.
            caller: whose it is.
            options: what was asked for.
            is_lasting: see `Session`.

        Raises:
            AtCapacityError: all places are taken.
            NotReadyError: the server is stopping.
            TooManyRequestsError: the caller was here too often.
        """
        self._rate_limiter.check(caller)
        self.check_capacity()
        self._free_capacity()
        session = Session(
            self._avatar_service,
            self._transport,
            entry,
            self._settings,
            options=options,
            owner=caller.subject,
            is_lasting=is_lasting,
        )
        task = asyncio.create_task(session.run(), name="session")
        self._running[session.id] = session, task
        task.add_done_callback(lambda _: self._forget(session))
        return session

    def find(self, name: str, caller: Caller) -> Session:
        """Give a session by its id.

        Raises:
            UnknownSessionError: there is none of that id.
            NotAllowedError: it is not the caller's.
        """
        if caller.session is not None and caller.session != name:
            raise NotAllowedError("This token is for another session.")
        if name not in self._running:
            raise UnknownSessionError("There is no such session, or it has ended. Make another.")
        session = self._running[name][0]
        if not (caller.is_operator or caller.session == name or session.owner == caller.subject):
            raise NotAllowedError("This session is another subject's.")
        return session

    async def close(self, session: Session, reason: EndReason = EndReason.DELETED) -> None:
        """End a session and wait until its place is free."""
        if session.id in self._running:
            session.end(reason)
            await self.wait_ended(session)

    async def wait_ended(self, session: Session) -> None:
        """Wait until a session has ended and is removed."""
        if session.id in self._running:
            _, task = self._running[session.id]
            await asyncio.wait([task])

    async def aclose(self) -> None:
        """End all sessions, and open no more."""
        self._is_stopping = True
        await asyncio.gather(*[self.close(session, EndReason.STOPPING) for session in self])

    def _forget(self, session: Session) -> None:
        del self._running[session.id]
        self._on_end(session)
