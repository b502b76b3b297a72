"""Who is connected: capacity, lifetime and cleanup of avatar sessions.

Each connection is one `TaskGroup`: whatever ends it ends all of it, and nothing of another one.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from typing import Any

from aiortc import RTCDataChannel
from aiortc.mediastreams import MediaStreamTrack

from letstalk_rt.engine import AvatarSession
from letstalk_rt.errors import AtCapacity, SessionClosed
from letstalk_rt.types import AVFrame
from letstalk_server import problems, protocol, rtc
from letstalk_server.playout import PulledPlayout
from letstalk_server.problems import Problem
from letstalk_server.settings import Settings
from letstalk_server.studio import Cast, Studio
from letstalk_server.tracks import AUDIO_RATE, AudioTrack, Microphone, VideoTrack

log = logging.getLogger(__name__)

END_WARNING_S = 60.0
WATCH_INTERVAL_S = 0.5
CLOSE_TIMEOUT_S = 5.0
FAREWELL_S = 0.3
"""Time for a last message to leave before the connection closes."""

MAX_REPLIES_WAITING_BYTES = 65_536
"""Replies to a page that does not read them are dropped beyond this."""


class _End(Exception):
    """Ends a connection's task group; the text is the reason, for the log."""


class Connection:
    """One peer and its avatar.

    Args:
        studio: makes the avatars.
        cast: the portrait to begin with.
        settings: time limits.
    """

    def __init__(self, studio: Studio, cast: Cast, settings: Settings) -> None:
        self.id = secrets.token_urlsafe(16)
        self.answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._studio, self._settings = studio, settings
        self._cast = cast
        self._wanted: asyncio.Queue[Cast] = asyncio.Queue(1)
        self._playout = PulledPlayout(
            cast.portrait.canvas, on_speaking=self._show_speech, on_stall=self._warn_stall
        )
        self._peer = rtc.open_peer(settings, VideoTrack(self._playout), AudioTrack(self._playout))
        self._peer.on("track", self._on_track)
        self._peer.on("datachannel", self._on_channel)
        self._peer.on("connectionstatechange", self._on_state)
        self._channel: RTCDataChannel | None = None
        self._avatar: AvatarSession | None = None
        self._group = asyncio.TaskGroup()
        self._end_reason: asyncio.Queue[str] = asyncio.Queue(1)
        self._started_s = self._heard_s = time.monotonic()

    def end(self, reason: str) -> None:
        """Ask the connection to end; returns at once, and may be called twice."""
        if self._end_reason.empty():
            self._end_reason.put_nowait(reason)

    async def run(self, sdp: str) -> None:
        """Negotiate, animate, listen and watch until the connection ends.

        `answered` gets the SDP answer or the `Problem` with the offer; nothing is raised here.
        """
        try:
            async with self._group:
                self._spawn(self._animate_wanted(), "animate")
                self._spawn(self._watch(), "watch")
                await self._answer(sdp)
                raise _End(await self._end_reason.get())
        except* _End as ends:
            log.info("session ended: %s", ends.exceptions[0])
        except* Exception as failures:
            await self._report(failures)
        finally:
            if not self.answered.done():
                detail = "The avatar could not be started. Try again."
                self.answered.set_exception(Problem(problems.INTERNAL, detail))
            await self.aclose()

    async def _answer(self, sdp: str) -> None:
        try:
            self.answered.set_result(await rtc.answer(self._peer, sdp))
        except Problem as problem:
            self.answered.set_exception(problem)
            raise _End("its offer was refused") from None

    async def aclose(self) -> None:
        """Close the peer connection. Safe to call twice, and before an answer."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._peer.close()
        except Exception as error:
            # aiortc trips over connections that were only half set up; the rest must still end.
            log.warning("a peer connection did not close in order (%s)", type(error).__name__)

    async def _report(self, failures: BaseExceptionGroup) -> None:
        # Only types: the text of an error may hold what a user said or sent.
        names = sorted({type(error).__name__ for error in _leaves(failures)})
        log.error("session failed: %s", ", ".join(names))
        self._send(
            protocol.Fail("engine-failed", "The avatar stopped. Start it again.", fatal=True)
        )
        await asyncio.sleep(FAREWELL_S)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        try:
            return self._group.create_task(work, name=f"session-{name}")
        except RuntimeError:  # the group is ending: there is nothing left to do
            work.close()
            return None

    # The avatar

    async def _animate_wanted(self) -> None:
        """Animate one portrait after another; the tracks and the voice go on."""
        while True:
            animation = self._spawn(self._animate(self._cast), "engine")
            self._cast = await self._wanted.get()
            if animation is not None:
                animation.cancel()
                await asyncio.wait([animation])
            self._playout.clear(0)

    async def _animate(self, cast: Cast) -> None:
        """Run the engine on one portrait; its frames go to the playout."""
        async with self._studio.avatar(cast).session(idle=True) as self._avatar:
            async for item in self._avatar:
                if isinstance(item, AVFrame):
                    await self._playout.put(item)
        raise _End("the avatar ended")

    def _select(self, cast: Cast) -> None:
        """Change the portrait; of several wishes the last one counts."""
        if self._wanted.full():
            self._wanted.get_nowait()
        self._wanted.put_nowait(cast)
        self._send(protocol.Selected(cast.portrait.warnings))

    async def _hear(self, microphone: Microphone) -> None:
        """Carry the peer's voice to the avatar, whichever it is at the time."""
        while True:
            pcm = await microphone.take()
            if self._avatar is None:
                continue
            try:
                await self._avatar.push_audio(pcm, AUDIO_RATE)
            except SessionClosed:
                continue  # between two portraits; a failure is raised where frames are read

    def _interrupt(self) -> protocol.WasInterrupted:
        if self._avatar is None:
            return protocol.WasInterrupted(0, 0)
        cut = self._avatar.interrupt()
        self._playout.clear(self._avatar.epoch)
        return protocol.WasInterrupted(cut.played_ms, cut.dropped_ms)

    # Time limits

    async def _watch(self) -> None:
        """End the connection when it does not come up, falls silent or lasts too long."""
        settings, warned = self._settings, False
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            now = time.monotonic()
            age_s = now - self._started_s
            connected = self._peer.connectionState == "connected"
            if not connected and age_s > settings.connect_timeout_s:
                raise _End("it did not connect in time")
            if self._channel is not None and now - self._heard_s > settings.heartbeat_timeout_s:
                raise _End("the page fell silent")
            if age_s > settings.max_session_s:
                detail = "The time is over. Start a new session."
                self._send(protocol.Fail("session-over", detail, fatal=True))
                await asyncio.sleep(FAREWELL_S)
                raise _End("its time is over")
            if not warned and age_s > settings.max_session_s - END_WARNING_S:
                self._send(protocol.Warn("ends-soon", "This session ends within a minute."))
                warned = True

    # What the peer does. Handlers run on the event loop, outside the group's tasks.

    def _on_state(self) -> None:
        if self._peer.connectionState in ("failed", "closed"):
            self.end("the peer left")

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            microphone = Microphone(track)
            self._spawn(microphone.listen(), "listen")
            self._spawn(self._hear(microphone), "hear")

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channel is not None:
            return  # one is enough; others are not listened to
        self._channel = channel
        self._heard_s = time.monotonic()
        channel.on("message", self._on_message)
        channel.on("close", lambda: self.end("the page closed the channel"))
        self._send(protocol.Ready(self.id, self._cast.portrait.warnings))

    def _on_message(self, text: object) -> None:
        self._heard_s = time.monotonic()
        try:
            self._obey(protocol.parse(text))
        except protocol.BadMessage as error:
            self._send(protocol.Fail("bad-message", str(error)))
        except Problem as problem:
            self._send(protocol.Fail(problem.kind.code, problem.detail))

    def _obey(self, message: protocol.ClientMessage) -> None:
        match message:
            case protocol.Ping():
                self._send(protocol.Pong())
            case protocol.Close():
                self.end("the page said goodbye")
            case protocol.Interrupt():
                self._send(self._interrupt())
            case protocol.Select(avatar, portrait):
                self._select(self._studio.find(avatar, portrait))

    # What the page is told

    def _show_speech(self, speaking: bool) -> None:
        self._send(protocol.Speaking() if speaking else protocol.Idle())

    def _warn_stall(self) -> None:
        self._send(
            protocol.Warn("model-behind", "The server is too slow now: the picture is waiting.")
        )

    def _send(self, message: protocol.ServerMessage) -> None:
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return
        if channel.bufferedAmount < MAX_REPLIES_WAITING_BYTES:
            channel.send(protocol.encode(message))


class Sessions:
    """All connections of this server.

    Args:
        studio: makes the avatars.
        settings: capacity and time limits.
    """

    def __init__(self, studio: Studio, settings: Settings) -> None:
        self._studio, self._settings = studio, settings
        self._running: dict[str, tuple[Connection, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def open(self, cast: Cast, sdp: str) -> tuple[str, str]:
        """Connect a peer; give the session's id and the SDP answer.

        Raises:
            AtCapacity: all places are taken.
            Problem: the offer cannot be used.
        """
        if len(self) >= self._settings.max_sessions:
            raise AtCapacity(
                f"All {self._settings.max_sessions} places are taken. Try again in a minute."
            )
        connection = Connection(self._studio, cast, self._settings)
        task = asyncio.create_task(connection.run(sdp), name="session")
        self._running[connection.id] = connection, task
        task.add_done_callback(lambda _: self._running.pop(connection.id))
        return connection.id, await connection.answered

    async def close(self, name: str) -> bool:
        """End a session and wait until its place is free; False if there is none of that id."""
        if name not in self._running:
            return False
        connection, task = self._running[name]
        connection.end("it was asked to end")
        await asyncio.wait([task])
        return True

    async def aclose(self) -> None:
        """End all sessions."""
        await asyncio.gather(*[self.close(name) for name in list(self._running)])


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:
    """Give the errors inside, and what caused them."""
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _leaves(error)
        else:
            found += [error] if error.__cause__ is None else [error, error.__cause__]
    return found
