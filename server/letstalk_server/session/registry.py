"""The sessions of the server: admission, lookup, end."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Self

from letstalk_rt.speech.interface import TextToSpeech
from letstalk_server.auth import LOCAL, Caller
from letstalk_server.errors import (
    AtCapacityError,
    NotAllowedError,
    NotReadyError,
    TooManyRequestsError,
    UnknownSessionError,
)
from letstalk_server.session.admission_queue import AdmissionQueue
from letstalk_server.session.avatar_service import AvatarEntry, AvatarService
from letstalk_server.session.connection import EndReason, ServedSessionOptions
from letstalk_server.session.conversation_parts import ConversationParts
from letstalk_server.session.limits import AdmissionControl, RateLimiter
from letstalk_server.session.recorder import RecordingStore
from letstalk_server.session.session import Session
from letstalk_server.session.transport import Transport
from letstalk_server.settings import Settings

SESSIONS_PER_S = 0.5
"""Sustained rate at which one subject may open sessions."""

RELOAD_S = 5.0
"""A session that was left may be taken for somebody in the queue after this time: its page may only
be loaded again."""


@dataclass(frozen=True, slots=True)
class OwnSession:
    """A session of somebody who waits for a place.

    Attributes:
        session: its id.
        avatar: id of its avatar.
        kinds: kinds of its connections, each once, sorted.
    """

    session: str
    avatar: str
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, session: Session) -> Self:
        """Describe a session."""
        kinds = {str(connection.kind) for connection in session.connections}
        return cls(session.id, session.avatar_entry.id, tuple(sorted(kinds)))


@dataclass(frozen=True, slots=True)
class QueueStanding:
    """What somebody who waits for a place is told.

    Attributes:
        ticket: id of the ticket; `None` if the subject has its share of sessions and tickets.
        position: place in the queue, from 1; `None` without a ticket.
        ready: whether a session may be opened with the ticket now.
        places: maximum number of sessions.
        taken: number of places that are taken.
        own: the caller's own sessions that have connections.
    """

    ticket: str | None
    position: int | None
    ready: bool
    places: int
    taken: int
    own: tuple[OwnSession, ...]


class SessionRegistry:
    """Opens, finds and ends sessions.

    Args:
        avatar_service: creates the avatars.
        transport: creates the peer connections.
        settings: capacity and time limits.
        on_end: called with each session that has ended.
        text_to_speech: the engine that speaks text, if there is one.
        recordings: where sessions are recorded, if they are.
        conversations: what conversations are made of, if the server has a chat model.
    """

    def __init__(
        self,
        avatar_service: AvatarService,
        transport: Transport,
        settings: Settings,
        on_end: Callable[[Session], None] = lambda session: None,
        text_to_speech: TextToSpeech | None = None,
        recordings: RecordingStore | None = None,
        conversations: ConversationParts | None = None,
    ) -> None:
        self.admission = AdmissionControl(avatar_service, settings.max_sessions)
        self.queue = AdmissionQueue(settings)
        self._avatar_service, self._transport, self._settings = avatar_service, transport, settings
        self._on_end = on_end
        self._text_to_speech = text_to_speech
        self._recordings, self._conversations = recordings, conversations
        self._running: dict[str, tuple[Session, asyncio.Task[None]]] = {}
        self._rate_limiter = RateLimiter(SESSIONS_PER_S)
        self._is_stopping = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Session]:
        return iter([session for session, _ in self._running.values()])

    def check_capacity(self, caller: Caller | None = None, ticket: str | None = None) -> None:
        """Check that one more session could be opened.

        Sessions in their grace period do not count: a new session replaces them. Who waits in the
        queue, before the caller's ticket if it has one, counts as a session.

        Raises:
            AtCapacityError: There are too many sessions.
            NotReadyError: The server is stopping.
        """
        self._check_running()
        self.admission.check(self.occupied + self.queue.count_before(caller, ticket))

    def _check_running(self) -> None:
        if self._is_stopping:
            raise NotReadyError("The server is stopping. Try again in a minute.")

    @property
    def occupied(self) -> int:
        """Number of places that are taken; a session that ends or that was left takes none."""
        return sum(not (session.is_abandoned or session.is_ending) for session in self)

    def wait_in_queue(
        self, caller: Caller, name: str | None, known: Collection[str]
    ) -> tuple[QueueStanding, bool]:
        """Return how a caller stands in the queue, which it enters, and whether that is news.

        Args:
            caller: who waits.
            name: id of its ticket, if it has one.
            known: sessions of which it knows the secret id.

        Raises:
            NotReadyError: The server is stopping, or its model is being started again.
        """
        self._check_running()
        own = self._connected_of(caller, known)
        ticket = self.queue.enter(caller, name, self.subject_limit - self._held_by(caller))
        before = None if ticket is None else self.queue.count_before(caller, ticket.id)
        standing = QueueStanding(
            ticket=None if ticket is None else ticket.id,
            position=None if before is None else before + 1,
            ready=before is not None and self._has_place_after(before),
            places=self.admission.capacity,
            taken=min(self._held, self.admission.capacity),
            own=tuple(map(OwnSession.of, own)),
        )
        if ticket is None:
            return standing, True
        self.queue.call(ticket, standing.ready)
        is_news, ticket.told = ticket.told != standing, standing
        return standing, is_news

    def _connected_of(self, caller: Caller, known: Collection[str]) -> tuple[Session, ...]:
        """Return a caller's sessions that have connections.

        Without tokens everybody is the same subject, so that only who knows a session's id owns it.
        """
        return tuple(
            session
            for session in self.running
            if session.connections
            and (session.id in known if caller == LOCAL else session.owner == caller.subject)
        )

    def _held_by(self, caller: Caller) -> int:
        """Return how many places a subject has: with connections, or waiting for the first one."""
        return sum(
            session.owner == caller.subject and not session.is_abandoned for session in self.running
        )

    @property
    def _held(self) -> int:
        """Number of places that are taken, or kept for a page that may only be loaded again."""
        now_s = time.monotonic()
        return sum(
            not session.is_abandoned or now_s - session.connections.empty_since_s < RELOAD_S
            for session in self.running
        )

    def _has_place_after(self, others: int) -> bool:
        try:
            self.admission.check(self._held + others)
        except AtCapacityError:
            return False
        return True

    @property
    def running(self) -> list[Session]:
        """The sessions that do not end."""
        return [session for session in self if not session.is_ending]

    @property
    def subject_limit(self) -> int:
        """Maximum number of sessions of one subject."""
        return self._settings.max_subject_sessions or -(-self.admission.capacity // 2)

    def _check_subject(self, caller: Caller) -> None:
        """Check that a caller may have one more session; one without connections gives way.

        Raises:
            TooManyRequestsError: The caller has too many sessions.
        """
        own = [session for session in self.running if session.owner == caller.subject]
        if caller.is_operator or len(own) < self.subject_limit:
            return
        idle = next((session for session in own if not session.connections), None)
        if idle is None:
            raise TooManyRequestsError(
                f"You have {len(own)} of {self.subject_limit} sessions. End one of them."
            )
        idle.end(EndReason.LOST)

    def _free_capacity(self, caller: Caller) -> None:
        """At capacity, end a session that was left: the first of the caller's own, if any."""
        abandoned = [session for session in self.running if session.is_abandoned]
        if abandoned and len(self.running) >= self.admission.capacity:
            own = [session for session in abandoned if session.owner == caller.subject]
            (own or abandoned)[0].end(EndReason.LOST)

    def open(
        self,
        entry: AvatarEntry,
        caller: Caller,
        options: ServedSessionOptions | None = None,
        *,
        is_lasting: bool = True,
        ticket: str | None = None,
    ) -> Session:
        """Open a session.

        Args:
            entry: the first avatar.
            caller: the caller, who becomes its owner.
            options: options of the session.
            is_lasting: see `Session`.
            ticket: id of the caller's ticket of the queue, if it has waited.

        Raises:
            AtCapacityError: There are too many sessions.
            NotReadyError: The server is stopping.
            TooManyRequestsError: The caller opens sessions too often, or has too many.
        """
        self._rate_limiter.check(caller)
        self._check_subject(caller)
        self.check_capacity(caller, ticket)
        self.queue.leave(caller, ticket)
        self._free_capacity(caller)
        session = Session(
            self._avatar_service,
            self._transport,
            entry,
            self._settings,
            options=options,
            owner=caller.subject,
            is_lasting=is_lasting,
            text_to_speech=self._text_to_speech,
            recordings=self._recordings,
            conversations=self._conversations,
        )
        task = asyncio.create_task(session.run(), name="session")
        self._running[session.id] = session, task
        self._is_empty.clear()
        task.add_done_callback(lambda _: self._remove(session))
        return session

    def find(self, name: str, caller: Caller) -> Session:
        """Return a session by its id.

        Raises:
            UnknownSessionError: There is no session with that id.
            NotAllowedError: The session is not the caller's.
        """
        if caller.session is not None and caller.session != name:
            raise NotAllowedError("This token is for another session.")
        if name not in self._running:
            raise UnknownSessionError(
                "There is no such session, or it has ended. Create a new one."
            )
        session = self._running[name][0]
        if not (caller.is_operator or caller.session == name or session.owner == caller.subject):
            raise NotAllowedError("This session belongs to another subject.")
        return session

    async def close(self, session: Session, reason: EndReason = EndReason.DELETED) -> None:
        """End a session and wait until it is removed."""
        if session.id in self._running:
            session.end(reason)
            await self.wait_ended(session)

    async def wait_ended(self, session: Session) -> None:
        """Wait until a session has ended and is removed."""
        if session.id in self._running:
            _, task = self._running[session.id]
            await asyncio.wait([task])

    def drain(self) -> None:
        """Admit no new sessions; those that live go on."""
        self._is_stopping = True

    async def wait_empty(self) -> None:
        """Wait until no session is left."""
        await self._is_empty.wait()

    async def aclose(self) -> None:
        """End all sessions and admit no new ones."""
        self.drain()
        await asyncio.gather(*[self.close(session, EndReason.STOPPING) for session in self])

    def _remove(self, session: Session) -> None:
        del self._running[session.id]
        if not self._running:
            self._is_empty.set()
        self._on_end(session)
