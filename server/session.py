"""One avatar, one engine session, one playout clock; connections come and go on it.

A session is one `TaskGroup`: whatever ends it ends all of it, and nothing of another one.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from letstalk_rt.badge import STATEMENT, with_badge
from letstalk_rt.engine import AvatarSession
from letstalk_rt.events import Event
from letstalk_rt.types import FPS, AVFrame, SegmentEnd
from letstalk_server import events
from letstalk_server.contract import SINGLE, End, Link, Options
from letstalk_server.endings import WARNINGS, Over, farewell_of, reason_of, report
from letstalk_server.errors import (
    AtCapacityError,
    NotFoundError,
    ServerError,
    TakenOverError,
    UnknownSessionError,
)
from letstalk_server.playout import SLOT_S, PulledPlayout, Slot, is_quiet
from letstalk_server.reception import Reception
from letstalk_server.segments import Segments
from letstalk_server.settings import Settings
from letstalk_server.speech import Speech
from letstalk_server.studio import Cast, Studio
from letstalk_server.transport import Media, Transport

log = logging.getLogger(__name__)

END_WARNING_S = 60.0
WATCH_INTERVAL_S = 0.5
FAREWELL_S = 0.3
"""Time for a last message to leave before the connections close."""

_AFTER_OTHERS_S, _SELDOM_SLOTS = 0.005, 4
"""How long connections are given to ask for a slot, and how often is looked while they do."""

_PASSED_ON = ("speech-late", "clipped")
"""Warnings of the engine that clients are told."""


@dataclass(slots=True)
class _Place:
    """A connection as the session sees it."""

    link: Link
    since_s: float
    reception: Reception
    stats_at_s: float = 0.0


class Session:
    """Use it through `Sessions`.

    Args:
        studio: makes the avatars.
        transport: makes the media.
        cast: the avatar to begin with.
        settings: time limits.
        options: what was asked for.
        owner: the subject that made it.
        is_lasting: waits for its first connection, and for another when one was closed in order.
    """

    def __init__(
        self,
        studio: Studio,
        transport: Transport,
        cast: Cast,
        settings: Settings,
        *,
        options: Options | None = None,
        owner: str = "local",
        is_lasting: bool = True,
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.owner = owner
        self.cast = cast
        self.options = options or Options()
        self.settings = settings
        self.transport = transport
        self.overlay: Mapping[str, Any] = {}
        self.end_reason: End | None = None
        self.started_s = time.monotonic()
        self.speech = Speech(settings.max_speech_s)
        self.segments = Segments(self._tell_of)
        self.playout = PulledPlayout(
            self._dress_still(cast),
            is_live=self.speech.is_live,
            on_speaking=self._show_speech,
            on_stall=self._warn_stall,
            on_slot=self._on_slot,
        )
        self.media: Media = transport.media(self.playout)
        self.avatar: AvatarSession | None = None
        self._avatar_ready = asyncio.Event()
        self._studio = studio
        self._is_lasting = is_lasting
        self._was_linked = False
        self._places: dict[str, _Place] = {}
        self._encode = events.Encoder(self.id)
        self._wanted: asyncio.Queue[Cast] = asyncio.Queue(1)
        self._group = asyncio.TaskGroup()
        self._ending: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._alone_s = self._active_s = self.started_s
        self._last_index = -1
        self._frames = 0

    # Life

    async def run(self) -> None:
        """Animate, listen and watch until the session ends; raises nothing."""
        reason = End.FAILED
        try:
            async with self._group:
                for work, name in (
                    (self._animate(), "engine"),
                    (self._change_faces(), "faces"),
                    (self.speech.feed(self._listener), "speech"),
                    (self._keep_time(), "clock"),
                    (self._watch(), "watch"),
                ):
                    self.spawn(work, name)
                raise Over(await self._ending)
        except* Over as overs:
            reason = reason_of(overs)
        except* Exception as failures:
            reason = End.FAILED
            report(failures)
        finally:
            self.end_reason = reason
            log.info("session ended: %s", reason)
            await self._say_goodbye(reason)

    def end(self, reason: End) -> None:
        """Ask the session to end; returns at once, and may be called twice."""
        if not self._ending.done():
            self._ending.set_result(reason)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Run something for as long as the session lives; its failure ends the session."""
        try:
            return self._group.create_task(work, name=f"session-{name}")
        except RuntimeError:  # the group is ending: there is nothing left to do
            work.close()
            return None

    async def _say_goodbye(self, reason: End) -> None:
        links = [place.link for place in self._places.values()]
        error = farewell_of(reason)
        if error is not None:
            self.tell(events.Fail.of(error, fatal=True))
        self.tell(events.Ended(reason))
        if links and reason is not End.LOST:
            await asyncio.sleep(FAREWELL_S)
        self._places.clear()
        await asyncio.gather(*[link.aclose(error) for link in links])
        await self.media.aclose()

    # Connections

    @property
    def links(self) -> list[tuple[Link, float]]:
        """The connections, and when each began."""
        return [(place.link, place.since_s) for place in self._places.values()]

    @property
    def is_left(self) -> bool:
        """Whether all who were connected have gone; one of them may come back."""
        return self._was_linked and not self._places

    @property
    def is_resumed(self) -> bool:
        """A connection that comes now is not the first."""
        return self._was_linked

    def find(self, name: str) -> Link:
        """Give a connection by its id.

        Raises:
            NotFoundError: there is none.
        """
        if name not in self._places:
            raise NotFoundError("There is no such connection, or it has ended.")
        return self._places[name].link

    async def attach(self, link: Link) -> None:
        """Take a connection in; of those that there may be one of, the older one goes.

        Raises:
            UnknownSessionError: the session has ended meanwhile.
            AtCapacityError: it has as many as it may have.
        """
        if self._ending.done() or self.end_reason is not None:
            raise UnknownSessionError("The session has ended meanwhile. Make another.")
        if len(self._places) >= self.settings.max_connections:
            raise AtCapacityError(
                f"This session has {len(self._places)} connections already. Close one of them."
            )
        older = [
            place.link
            for place in self._places.values()
            if link.role in SINGLE and place.link.role == link.role
        ]
        self._places[link.id] = _Place(link, time.monotonic(), Reception(self, link))
        self._was_linked = True
        self.touch()
        for old in older:
            error = TakenOverError("The session goes on in another window or connection.")
            self.send(old, events.Fail.of(error, fatal=True))
            await self.detach(old, error)

    def welcome(self, link: Link, resumed: bool) -> None:
        """Tell a connection that it is up."""
        ready = events.Ready(
            connection=link.id,
            avatar=self.cast.id,
            resumed=resumed,
            video=self.video,
            heartbeat_s=self.settings.heartbeat_timeout_s,
            grace_s=self.settings.grace_s,
            disclosure=self.disclosure,
            overlay=self.overlay,
            warnings=self.cast.portrait.warnings,
        )
        self.send(link, ready)

    async def detach(
        self, link: Link, error: ServerError | None = None, *, is_lost: bool = False
    ) -> None:
        """Let a connection go, and close it."""
        if self._places.pop(link.id, None) is not None:
            self.speech.release(link.id)
            self._alone_s = time.monotonic()
            is_taken_over = isinstance(error, TakenOverError)
            if not (self._places or self._is_lasting or is_lost or is_taken_over):
                self.end(End.CLOSED)
        await link.aclose(error)

    @property
    def video(self) -> dict[str, int]:
        """Size and rate of the pictures."""
        width, height = self.cast.size
        return {"width": width, "height": height, "fps": FPS}

    @property
    def has_badge(self) -> bool:
        """The visible badge is on the pictures."""
        rule = self.settings.badge
        return rule == "required" or (rule == "on" and self.options.badge)

    @property
    def disclosure(self) -> dict[str, Any]:
        """What says that the pictures are generated."""
        return {"badge": self.has_badge, "statement": STATEMENT}

    # The avatar

    async def _animate(self) -> None:
        """Run the engine; its frames go to the playout."""
        options = self.options
        made = self._studio.avatar(self.cast).session(seed=options.seed, motion=options.motion)
        made.on_event(self._on_event)
        async with made as self.avatar:
            self._avatar_ready.set()
            async for item in made:
                if isinstance(item, AVFrame):
                    self._last_index = item.index
                    await self.playout.put(self._dress(item))
                elif isinstance(item, SegmentEnd):
                    self.segments.ended(item.segment_id, self._last_index)
        raise Over(End.FAILED)

    async def _change_faces(self) -> None:
        """Show the avatars that are asked for; tracks, voice and movement go on."""
        avatar = await self._listener()
        while True:
            cast = await self._wanted.get()
            await avatar.change_portrait(cast.portrait)
            self.cast = cast
            self.media.show_anew()

    def _dress(self, frame: AVFrame) -> AVFrame:
        return replace(frame, rgb=with_badge(frame.rgb)) if self.has_badge else frame

    def _dress_still(self, cast: Cast) -> Any:
        canvas = cast.portrait.canvas
        return with_badge(canvas) if self.has_badge else canvas

    async def _listener(self) -> AvatarSession:
        while self.avatar is None:
            await self._avatar_ready.wait()
        return self.avatar

    def select(self, avatar: str | None, portrait: str | None = None) -> None:
        """Change the portrait; of several wishes the last one counts.

        Raises:
            UnknownAvatarError: there is no avatar of that id.
            UnknownPortraitError: there is no upload of that id.
        """
        cast = self._studio.find(avatar, portrait)
        if self._wanted.full():
            self._wanted.get_nowait()
        self._wanted.put_nowait(cast)
        self.tell(events.Selected(cast.id, cast.portrait.warnings))

    def interrupt(self) -> events.WasInterrupted:
        """Drop all speech that was not shown; gives how much of the segment was."""
        dropped_ms = round(1000 * self.speech.clear())
        if self.avatar is not None:
            cut = self.avatar.interrupt()
            unseen_ms = max(0, cut.played_ms - self.segments.played_ms)
            dropped_ms += cut.dropped_ms + unseen_ms
            self.playout.silence(self.avatar.epoch)
        return events.WasInterrupted(self.segments.cut(dropped_ms), dropped_ms)

    # Time

    async def _keep_time(self) -> None:
        """Fill each slot when it is due where no connection asks for it; else look now and then."""
        number = 0
        while True:
            await self.playout.wait_until(number * SLOT_S + _AFTER_OTHERS_S)
            step = _SELDOM_SLOTS if self.playout.is_filled(number) else 1
            self.playout.slot(number)
            number = max(number + step, int(self.playout.now() / SLOT_S))

    async def _watch(self) -> None:
        """Let lost connections go, and end the session when it must."""
        warned: set[str] = set()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            now = time.monotonic()
            for place in list(self._places.values()):
                if place.link.is_lost(now):
                    log.info("a connection was lost (%s)", place.link.role)
                    self.spawn(self.detach(place.link, is_lost=True), "lost")
                else:
                    self._send_stats(place, now)
            self._check_times(now, warned)

    def _check_times(self, now: float, warned: set[str]) -> None:
        settings = self.settings
        waits_s = settings.grace_s + (0 if self._was_linked else settings.connect_timeout_s)
        if not self._places and now - self._alone_s > waits_s:
            raise Over(End.LOST)
        limits = [("ends-soon", End.TIME_OVER, self.started_s + settings.max_session_s)]
        if settings.max_idle_s:
            limits.append(("idle-soon", End.IDLE, self._active_s + settings.max_idle_s))
        for code, reason, end_s in limits:
            if now > end_s:
                raise Over(reason)
            if now <= end_s - END_WARNING_S:
                warned.discard(code)
            elif code not in warned:
                warned.add(code)
                left_s = max(0, round(end_s - now))
                self.tell(events.Warn(code, WARNINGS[code].format(left_s), left_s))

    @property
    def ends_in_s(self) -> float:
        """Seconds until the longest time of a session is over."""
        return max(0.0, self.started_s + self.settings.max_session_s - time.monotonic())

    # What clients say and are told

    def receive(self, link: Link, data: str | bytes) -> None:
        """Obey a message; whatever is wrong with it is told to its sender."""
        if link.id in self._places:
            self._places[link.id].reception.take(data)

    def touch(self) -> None:
        """Note that the session is in use."""
        self._active_s = time.monotonic()

    def tell(self, message: events.ServerMessage) -> None:
        """Send a message to all connections."""
        self._tell_of(message, self.segments.current)

    def _tell_of(self, message: events.ServerMessage, segment_id: int) -> None:
        text = self._encode(message, segment_id)
        for place in list(self._places.values()):
            place.link.send(text)

    def send(self, link: Link, message: events.ServerMessage, re: str | None = None) -> None:
        """Send a message to one connection; `re` is the `event_id` it answers."""
        link.send(self._encode(message, self.segments.current, re))

    def _on_slot(self, slot: Slot) -> None:
        self._frames += 1
        if slot.frame is not None:
            self.segments.shown(slot.frame)
            if not is_quiet(slot.frame.pcm):
                self._active_s = time.monotonic()

    def _on_event(self, event: Event) -> None:
        """Pass on what only the engine knows; the rest is told when it is shown."""
        if event.type == "avatar.listening":
            self.tell(events.Listening())
        elif event.type == "session.warning" and event.code in _PASSED_ON:
            self.tell(events.Warn(event.code, event.message or ""))

    def _show_speech(self, speaking: bool) -> None:
        self.tell(events.Speaking() if speaking else events.Idle())

    def _warn_stall(self) -> None:
        if self._places:
            self.tell(
                events.Warn("model-behind", "The server is too slow now: the picture is waiting.")
            )

    def stats(self) -> events.Stats:
        """Tell how the session does."""
        metrics = self.avatar.metrics if self.avatar is not None else None
        stages = metrics.stages_ms() if metrics is not None else {}
        shown_s = max(SLOT_S, self.playout.now())
        return events.Stats(
            fps=round((self._frames - self.playout.repeats) / shown_s, 1),
            frames=self._frames,
            repeats=self.playout.repeats,
            held_ms=round(1000 * self.playout.held_s),
            stalls=metrics.stalls if metrics is not None else 0,
            drops=metrics.drops if metrics is not None else 0,
            backlog_ms=self.avatar.backlog_ms if self.avatar is not None else 0,
            stages_ms={
                name: {"p50": value.p50, "p95": value.p95, "p99": value.p99}
                for name, value in stages.items()
            },
        )

    def _send_stats(self, place: _Place, now: float) -> None:
        every_s = place.link.wishes.stats_s
        if every_s and now - place.stats_at_s >= every_s:
            place.stats_at_s = now
            self.send(place.link, self.stats())
