"""Events of a session and the hub that distributes them."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self
from weakref import WeakSet

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
        code: `model-behind`, `model-failed`, `speech-late`, `clipped`, `camera-failed` or
            `recording-failed`, for `session.warning`.
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


class EventStream:
    """The events of a hub from the creation of this stream on; see `EventHub.stream`."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self._changed = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event."""
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """End the stream at once; events that wait are dropped."""
        self.end()
        self._waiting.clear()

    def put(self, event: Event) -> None:
        """Take an event; called by the hub."""
        if not self._ended:
            self._waiting.append(event)
            self._changed.set()

    def end(self) -> None:
        """End the stream after the events that wait; called by the hub."""
        self._ended = True
        self._changed.set()


class EventHub:
    """Distributes events to listeners, which run on the event loop and must not block."""

    def __init__(self) -> None:
        self._listeners: list[EventListener] = []
        self._warned_s: dict[str, float] = {}
        self._closed = False
        # Weak, so that a stream which nobody reads any more keeps no events.
        self._streams: WeakSet[EventStream] = WeakSet()

    def listen(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener` with each event from now on; return a function that stops this."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    def emit(self, event: Event) -> None:
        """Call all listeners; an exception in one is logged and does not affect the others."""
        for stream in list(self._streams):
            stream.put(event)
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

    def stream(self) -> EventStream:
        """Return the events from now on until the hub is closed, also those before the first read.

        When more than `MAX_WAITING` events wait to be read, the oldest are dropped.
        """
        stream = EventStream()
        if self._closed:
            stream.end()
        else:
            self._streams.add(stream)
        return stream

    def close(self) -> None:
        """End all streams, after they have yielded the events that wait."""
        self._closed = True
        for stream in list(self._streams):
            stream.end()
        self._streams.clear()
