"""What a session tells of itself while it runs, and who hears it."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

EventType = Literal[
    "segment.started",
    "segment.finished",
    "segment.interrupted",
    "avatar.speaking",
    "avatar.listening",
    "avatar.idle",
    "session.warning",
]

logger = logging.getLogger(__name__)

MAX_WAITING = 64
WARN_AGAIN_S = 10.0
"""The same warning is given no more often than this."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, as of the frame played last; see `AvatarSession.notify_played`.

    Attributes:
        type: what; `segment.*` come once per segment, `avatar.*` when the state changes.
        segment_id: of the segment, for `segment.*`.
        played_ms: how much of the segment's speech was played, for `segment.*`.
        dropped_ms: speech that waited and is gone, for `segment.interrupted`.
        code: for `session.warning`: `model-behind`, `speech-late` or `clipped`.
        message: for `session.warning`, what it means and what to do.
    """

    type: EventType
    segment_id: int | None = None
    played_ms: int | None = None
    dropped_ms: int | None = None
    code: str | None = None
    message: str | None = None


EventListener = Callable[[Event], None]


class EventHub:
    """Gives events to all who listen. Listeners run on the event loop and must not block."""

    def __init__(self) -> None:
        self._listeners: list[EventListener] = []
        self._warned_s: dict[str, float] = {}
        self._closed = False
        self._wakers: list[Callable[[], None]] = []

    def listen(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener` with each event from now on; returns what ends that."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    def emit(self, event: Event) -> None:
        """Tell all listeners. What one of them raises is logged, and the others still hear."""
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception as error:
                logger.error("a listener failed", extra={"error": type(error).__name__})

    def warn(self, code: str, message: str, now_s: float) -> None:
        """Tell of a warning, unless it was told a moment ago."""
        if now_s - self._warned_s.get(code, -WARN_AGAIN_S) >= WARN_AGAIN_S:
            self._warned_s[code] = now_s
            self.emit(Event("session.warning", code=code, message=message))

    async def stream(self) -> AsyncIterator[Event]:
        """Give the events from now on until the hub closes.

        Of a reader who does not read, the oldest are dropped.
        """
        waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        arrived = asyncio.Event()

        def on_event(event: Event) -> None:
            waiting.append(event)
            arrived.set()

        stop = self.listen(on_event)
        self._wakers.append(arrived.set)
        try:
            while True:
                while waiting:
                    yield waiting.popleft()
                if self._closed:
                    return
                arrived.clear()
                await arrived.wait()
        finally:
            stop()
            self._wakers.remove(arrived.set)

    def close(self) -> None:
        """End all streams, once they have given what they hold."""
        self._closed = True
        for wake in self._wakers:
            wake()
