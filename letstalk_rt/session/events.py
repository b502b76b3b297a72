"""Events of a session and the hub that distributes them."""

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
    "session.quality",
    "session.warning",
]

logger = logging.getLogger(__name__)

MAX_WAITING = 64
WARN_AGAIN_S = 10.0
"""The shortest time between two warnings with the same code."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a session, as of the last played frame; see `AvatarSession.notify_played`.

    Attributes:
        type: the kind of event; `segment.*` occur once per segment, `avatar.*` when the avatar
            state changes.
        segment_id: the segment, for `segment.*`.
        played_ms: how much of the segment's speech was played, for `segment.*`.
        dropped_ms: how much pushed speech was dropped, for `segment.interrupted`.
        code: `model-behind`, `model-failed`, `speech-late`, `clipped` or `camera-failed`, for
            `session.warning`.
        message: what the warning means and what to do, for `session.warning`; what has changed, for
            `session.quality`.
        quality_level: the new quality level, for `session.quality`; 0 is full quality.
    """

    type: EventType
    segment_id: int | None = None
    played_ms: int | None = None
    dropped_ms: int | None = None
    code: str | None = None
    message: str | None = None
    quality_level: int | None = None


EventListener = Callable[[Event], None]


class EventHub:
    """Distributes events to listeners, which run on the event loop and must not block."""

    def __init__(self) -> None:
        self._listeners: list[EventListener] = []
        self._warned_s: dict[str, float] = {}
        self._closed = False
        self._wakers: list[Callable[[], None]] = []

    def listen(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener` with each event from now on; return a function that stops this."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    def emit(self, event: Event) -> None:
        """Call all listeners; an exception in one is logged and does not affect the others."""
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception as error:
                logger.error("an event listener failed", extra={"error": type(error).__name__})

    def warn(self, code: str, message: str, now_s: float) -> None:
        """Emit a warning, unless one with this code was emitted in the last `WARN_AGAIN_S`."""
        if now_s - self._warned_s.get(code, -WARN_AGAIN_S) >= WARN_AGAIN_S:
            self._warned_s[code] = now_s
            self.emit(Event("session.warning", code=code, message=message))

    async def stream(self) -> AsyncIterator[Event]:
        """Yield the events from now on until the hub is closed.

        When more than `MAX_WAITING` events wait to be read, the oldest are dropped.
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
        """End all streams, after they have yielded the events that wait."""
        self._closed = True
        for wake in self._wakers:
            wake()
