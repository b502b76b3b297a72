"""A session of the server: one engine session, one playout clock, any number of connections.

Its tasks form one `TaskGroup`: a failure ends the whole session and no other one. The parts are
`Connections`, `Announcer` (messages to clients), `Lifetime` (time limits), `AvatarRunner` (engine),
`PlaybackReporter` (shown frames), `SpeechQueue` (floor control), `TextSpeech` (texts),
`Performance` (moods and gestures) and `Talking` (conversations).
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.protocol import CameraStatus
from letstalk_rt.performance.gestures import Gesture
from letstalk_rt.portrait.watermark import STATEMENT
from letstalk_rt.session.avatar import AvatarSession
from letstalk_rt.speech.interface import TextToSpeech
from letstalk_rt.types import FPS, CameraOptions, Interrupted, MotionOptions
from letstalk_server.auth import Caller
from letstalk_server.errors import ServerError, TakenOverError, UnknownSessionError
from letstalk_server.protocol import server_messages
from letstalk_server.session.announcer import Announcer
from letstalk_server.session.avatar_runner import AvatarRunner
from letstalk_server.session.avatar_service import AvatarEntry, AvatarService
from letstalk_server.session.connection import Connection, EndReason, ServedSessionOptions
from letstalk_server.session.connections import Connections, Receiver
from letstalk_server.session.conversation_parts import ConversationParts
from letstalk_server.session.ending import SessionEnded, closing_error, end_reason_of, log_failures
from letstalk_server.session.ids import new_id
from letstalk_server.session.lifetime import Lifetime
from letstalk_server.session.performance import Performance
from letstalk_server.session.playout import PlayoutSlot, SlotPlayout
from letstalk_server.session.recorder import RecordingStore, SessionRecorder
from letstalk_server.session.reporting import PlaybackReporter
from letstalk_server.session.speech_queue import SpeechQueue
from letstalk_server.session.talking import Talking
from letstalk_server.session.text_speech import TextSpeech
from letstalk_server.session.transport import Media, Transport
from letstalk_server.settings import Settings

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5
LAST_MESSAGE_S = 0.3
"""Time in which the last messages are sent before the connections are closed."""

_NOT_RECORDED = server_messages.Warn(
    "recording-failed", "The recording has ended: it could not be written or signed."
)
_NOT_MOVED = server_messages.Warn(
    "motion-refused", "This model moves in one way only; choose the one called tiny."
)
_STALLED = server_messages.Warn(
    "model-behind", "The server is too slow at the moment: the video is paused."
)


class Session:
    """A session; `SessionRegistry` opens it.

    Args:
        avatar_service: creates the avatars.
        transport: creates media and peer connections.
        entry: the first avatar.
        settings: time limits.
        options: options of the session.
        owner: the subject that opened it.
        is_lasting: whether it goes on without connections, instead of ending when the last one is
            closed.
        text_to_speech: the engine that speaks text, if there is one.
        recordings: where the session is recorded, if it is.
        conversations: what a conversation is made of, if the server has a chat model.
    """

    def __init__(
        self,
        avatar_service: AvatarService,
        transport: Transport,
        entry: AvatarEntry,
        settings: Settings,
        *,
        options: ServedSessionOptions | None = None,
        owner: str = "local",
        is_lasting: bool = True,
        text_to_speech: TextToSpeech | None = None,
        recordings: RecordingStore | None = None,
        conversations: ConversationParts | None = None,
    ) -> None:
        self.id = new_id(settings)
        self.owner = owner
        self._avatar_service = avatar_service
        self.options = options or ServedSessionOptions()
        self.settings = settings
        self.transport = transport
        self.overlay: Mapping[str, Any] = {}
        self.end_reason: EndReason | None = None
        self.connections = Connections(settings.max_connections)
        self.lifetime = Lifetime(settings, self.connections)
        self.announcer = Announcer(self.id, self.connections)
        self.speech = SpeechQueue(settings.max_speech_s)
        self.performance = Performance(self.options, avatar_service.is_directable, self.announcer)
        self.text_speech = TextSpeech(text_to_speech, self.speech, self.performance, settings)
        self._reporter = PlaybackReporter(self.announcer, on_voice=self.lifetime.touch)
        self._runner = AvatarRunner(
            avatar_service,
            entry,
            lambda: self.performance.options,
            has_badge=self.has_badge,
            is_live=self.speech.is_live,
            on_open=self._begin,
            on_slot=self._show,
            on_stall=lambda: self.announcer.broadcast(_STALLED),
        )
        self.talking = Talking(
            conversations,
            self.announcer,
            self.speech,
            self.performance,
            self._runner.opened,
            self._drop_speech,
            self.spawn,
            self.lifetime.touch,
        )
        self._signs = recordings is not None and recordings.signs
        self._recorder = (
            None
            if recordings is None
            else SessionRecorder(
                recordings,
                lambda: self.avatar_entry,
                badge=self.has_badge,
                sample_rate=self.playout.sample_rate,
                on_failure=lambda: self.announcer.broadcast(_NOT_RECORDED),
            )
        )
        self.media: Media = transport.media(self.playout)
        self._ignores_camera = False
        self._camera_status: CameraStatus | None = None
        self._is_lasting = is_lasting
        self._group = asyncio.TaskGroup()
        self._ending: asyncio.Future[EndReason] = asyncio.get_running_loop().create_future()

    # Lifecycle

    async def run(self) -> None:
        """Run the session until it ends; failures are logged and never raised."""
        reason = EndReason.FAILED
        try:
            async with self._group:
                for work, name in (
                    (self._runner.run(), "engine"),
                    (self._runner.change_portraits(self.media.request_key_frame), "portraits"),
                    (self._runner.change_motions(self._refuse_motion), "motions"),
                    (self.speech.run(self._runner.opened), "speech"),
                    (self.text_speech.run(), "texts"),
                    (self._runner.fill_due_slots(), "clock"),
                    (self._watch(), "watch"),
                ):
                    self.spawn(work, name)
                raise SessionEnded(await self._ending)
        except* SessionEnded as ended:
            reason = end_reason_of(ended)
        except* Exception as failures:
            reason = EndReason.FAILED
            log_failures(failures)
        finally:
            self.end_reason = reason
            log.info("session ended: %s", reason)
            await self._close_connections(reason)
            if self._recorder is not None:
                await self._recorder.aclose()
            self.playout.close()

    def _begin(self, avatar: AvatarSession) -> None:
        self._reporter.follow(avatar)
        self.performance.begin(avatar)

    def _show(self, slot: PlayoutSlot) -> None:
        self._reporter.show(slot)
        if self._recorder is not None:
            self._recorder.show(slot)

    def end(self, reason: EndReason) -> None:
        """Request the end of the session without waiting for it. Safe to call twice."""
        if not self._ending.done():
            self._ending.set_result(reason)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Start a task of the session, whose failure ends it; return None if it is ending."""
        try:
            return self._group.create_task(work, name=f"session-{name}")
        except RuntimeError:  # the group is ending
            work.close()
            return None

    async def _watch(self) -> None:
        """Detach lost connections, send what is due, and enforce the time limits."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            now_s = time.monotonic()
            for connection in self.connections.lost(now_s):
                log.info("a connection was lost (%s)", connection.kind)
                self.spawn(self.detach(connection, is_lost=True), "lost")
            for connection in self.connections.take_due_stats(now_s):
                self.announcer.send(connection, self.stats())
            self._announce_camera()
            reason = self.lifetime.end()
            if reason is not None:
                raise SessionEnded(reason)
            for warning in self.lifetime.warnings():
                self.announcer.broadcast(warning)

    def _announce_camera(self) -> None:
        status, before = self._runner.camera_status, self._camera_status
        self._camera_status = status
        if status is not None and status != before:
            self.tell_speakers(server_messages.CameraSeen(status))

    def tell_speakers(self, message: server_messages.ServerMessage) -> None:
        """Send a message to the connections that may speak, and may so have sent the camera."""
        for connection in self.connections:
            if connection.may_speak:
                self.announcer.send(connection, message)

    async def _close_connections(self, reason: EndReason) -> None:
        error = closing_error(reason)
        if error is not None:
            self.announcer.broadcast(server_messages.Fail.of(error, fatal=True))
        self.announcer.broadcast(server_messages.Ended(reason))
        if self.connections and reason is not EndReason.LOST:
            await asyncio.sleep(LAST_MESSAGE_S)
        await asyncio.gather(*[connection.aclose(error) for connection in self.connections.clear()])
        await self.media.aclose()

    # Connections

    @property
    def is_abandoned(self) -> bool:
        """Whether it had connections and has none now, so that it is in its grace period."""
        return self.is_resumed and not self.connections

    @property
    def is_resumed(self) -> bool:
        """Whether a new connection would not be the first."""
        return self.connections.had_connections

    @property
    def is_ending(self) -> bool:
        """Whether its end was requested."""
        return self._ending.done()

    async def attach(self, connection: Connection, receive: Receiver) -> None:
        """Attach a connection; it replaces an older one of the same exclusive kind.

        Args:
            connection: the connection.
            receive: handles its messages.

        Raises:
            UnknownSessionError: The session has ended meanwhile.
            AtCapacityError: The session has the maximum number of connections.
        """
        if self.is_ending or self.end_reason is not None:
            raise UnknownSessionError("The session has ended meanwhile. Create a new one.")
        older = self.connections.add(connection, receive)
        self.lifetime.touch()
        for old in older:
            error = TakenOverError("The session continues in another window or connection.")
            self.announcer.send(old, server_messages.Fail.of(error, fatal=True))
            await self.detach(old, error)

    def send_ready(self, connection: Connection, resumed: bool) -> None:
        """Send `session.ready` to a connection."""
        ready = server_messages.Ready(
            connection=connection.id,
            avatar=_id_for(connection, self.avatar_entry),
            images=self.avatar_entry.shown_id,
            resumed=resumed,
            video=self.video,
            heartbeat_s=self.settings.heartbeat_timeout_s,
            grace_s=self.settings.grace_s,
            disclosure=self.disclosure,
            overlay=self.overlay,
            performance=self.performance.as_json(),
            warnings=self.avatar_entry.portrait.warnings,
        )
        self.announcer.send(connection, ready)

    async def detach(
        self, connection: Connection, error: ServerError | None = None, *, is_lost: bool = False
    ) -> None:
        """Detach a connection and close it."""
        if self.connections.remove(connection):
            self.speech.release(connection.id)
            is_taken_over = isinstance(error, TakenOverError)
            if not (self.connections or self._is_lasting or is_lost or is_taken_over):
                self.end(EndReason.CLOSED)
        await connection.aclose(error)

    def owns(self, caller: Caller) -> bool:
        """Return whether a caller opened the session, or is the operator."""
        return caller.is_operator or (caller.session is None and caller.subject == self.owner)

    # The avatar

    @property
    def avatar_entry(self) -> AvatarEntry:
        """The avatar that is shown."""
        return self._runner.avatar_entry

    @property
    def playout(self) -> SlotPlayout:
        """The playout of the session."""
        return self._runner.playout

    @property
    def video(self) -> dict[str, int]:
        """Size and rate of the video."""
        width, height = self.avatar_entry.size
        return {"width": width, "height": height, "fps": FPS}

    @property
    def has_badge(self) -> bool:
        """Whether the visible badge is drawn into the frames."""
        rule = self.settings.badge
        return rule == "required" or (rule == "on" and self.options.badge)

    @property
    def disclosure(self) -> dict[str, Any]:
        """The disclosure that the video is generated, and whether it is recorded."""
        return {
            "badge": self.has_badge,
            "statement": STATEMENT,
            "recorded": self._recorder is not None and not self._recorder.has_failed,
            "signed": self._signs,
        }

    def select(self, avatar: str | None, portrait: str | None = None) -> None:
        """Change the avatar, and announce it; it replaces a selection that was not applied yet.

        Raises:
            UnknownAvatarError: There is no avatar with that id for the session's owner.
            UnknownPortraitError: The session's owner has no upload with that id.
        """
        entry = self._avatar_service.find(Caller(self.owner, frozenset()), avatar, portrait)
        self._runner.select(entry)
        for connection in self.connections:
            selected = server_messages.Selected(
                _id_for(connection, entry), entry.shown_id, entry.portrait.warnings
            )
            self.announcer.send(connection, selected)

    def interrupt(self) -> server_messages.WasInterrupted:
        """Drop all speech that was not played; return how much was played and dropped."""
        self.text_speech.clear()
        dropped = self._drop_speech()
        self.talking.interrupt()
        return server_messages.WasInterrupted(dropped.played_ms, dropped.dropped_ms)

    def _drop_speech(self) -> Interrupted:
        waiting_ms = round(1000 * self.speech.clear())
        interrupted = self._runner.interrupt()
        self.performance.interrupt()
        return self._reporter.announce_interrupt(interrupted, waiting_ms)

    def hear(self, source: str, pcm: np.ndarray, sample_rate: int) -> None:
        """Take the next audio of a microphone: for the conversation if one is on, else to speak.

        Args:
            source: the connection's id.
            pcm: `(n,)` float32 in [-1, 1].
            sample_rate: Hz.
        """
        if not self.talking.is_on:
            self.speech.push_microphone(source, pcm, sample_rate)
        elif self.speech.is_heard(source):
            self.talking.hear(pcm, sample_rate)

    def push_video(self, rgb: np.ndarray, captured_s: float) -> None:
        """Let a frame of a client's camera move the avatar; it is not kept.

        A model that no camera can drive ignores it, and says so once.
        """
        if self._ignores_camera:
            return
        try:
            self._runner.push_video(rgb, captured_s)
        except ConfigError as error:
            self._ignores_camera = True
            self.announcer.broadcast(server_messages.Warn("camera-ignored", str(error)))

    def set_camera(self, options: CameraOptions) -> None:
        """Change how a camera moves the avatar."""
        self._runner.set_camera(options)

    @property
    def motion(self) -> MotionOptions:
        """How the face moves."""
        return self._runner.motion

    def set_motion(self, motion: MotionOptions) -> None:
        """Change how the face moves, from the next window on."""
        self._runner.set_motion(motion)

    def _refuse_motion(self) -> None:
        self.announcer.broadcast(_NOT_MOVED)

    def take_neutral(self) -> None:
        """Take the look of the next frames of the camera as the neutral one."""
        self._runner.take_neutral()

    def gesture(self, source: str, gesture: Gesture, at_s: float | None) -> None:
        """Make a gesture.

        Args:
            source: the connection's id.
            gesture: the gesture.
            at_s: when, in seconds of the segment that is being pushed; None for at once.

        Raises:
            NotDirectableError: the model has no gestures.
        """
        make = partial(self.performance.gesture, gesture.name, gesture.amount, at=at_s)
        if at_s is None or not self.performance.is_directable:
            make()
        else:
            self.speech.add_cue(source, make, is_first=True)

    def stats(self) -> server_messages.Stats:
        """Return the statistics of the session."""
        return self._reporter.stats(self.playout)


def _id_for(connection: Connection, entry: AvatarEntry) -> str:
    """Return the id of an avatar that a connection is told; viewers learn no id of an upload."""
    return entry.id if connection.may_speak else entry.shown_id
