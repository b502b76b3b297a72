"""A WebRTC connection of a session."""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np

from letstalk_rt.types import SAMPLE_RATE
from letstalk_server.auth import Caller
from letstalk_server.errors import ServerError, TooManyRequestsError
from letstalk_server.protocol.client_messages import ConnectionConfig
from letstalk_server.protocol.server_messages import Warn
from letstalk_server.session.connection import ConnectionKind
from letstalk_server.session.limits import TokenBucket
from letstalk_server.session.message_handler import MessageHandler
from letstalk_server.session.session import Session
from letstalk_server.session.transport import CameraTrouble, Handlers, Peer, PeerRole, PeerState
from letstalk_server.webrtc.microphone_path import CLOCK_HZ

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
PATCHES_PER_S, PATCH_BURST = 0.5, 30.0
"""Rate of trickled fragments and ICE restarts; some clients send each candidate by itself."""

MAX_MESSAGES_WAITING = 256
"""Data channel messages queued per peer; further ones are dropped."""

_TROUBLES = {
    CameraTrouble.TOO_LARGE: "The camera's picture is larger than 1920x1200 px, so that it is not "
    "read. Send a smaller one: 640x360 px are enough.",
    CameraTrouble.TOO_MUCH: "The camera sends more than is read of it: at most 30 frames per "
    "second of 1920x1200 px, less while there are many cameras. Send smaller frames, or fewer: "
    "640x360 px at 25 per second are enough.",
}

_PEER_ROLES = {
    ConnectionKind.TALK: PeerRole.TALKER,
    ConnectionKind.PLAY: PeerRole.VIEWER,
    ConnectionKind.SPEAK: PeerRole.PUBLISHER,
}


class WebRTCConnection:
    """A WebRTC connection of a session; `open` it before anything else.

    Args:
        session: the session that it belongs to.
        kind: kind of the connection.
        caller: who opens it, and may change it later.
        has_camera: whether it asks to send a camera, which moves the avatar.
    """

    def __init__(
        self, session: Session, kind: ConnectionKind, caller: Caller, *, has_camera: bool = False
    ) -> None:
        self.id = "c" + secrets.token_urlsafe(12)
        self.kind = kind
        self.may_speak = "speak" in caller.scopes
        self._token_id = caller.token_id
        self.config = ConnectionConfig()
        self._session = session
        self._resumed = session.is_resumed
        self._opened_s = self._last_received_s = time.monotonic()
        self._has_channel = False
        self._restarts = 0
        self._patches = TokenBucket(PATCHES_PER_S, burst=PATCH_BURST)
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue(MAX_MESSAGES_WAITING)
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[None] | None = None
        # A session whose audio leaves at 24 or 48 kHz takes the microphone as it is decoded.
        is_wideband = session.playout.sample_rate > SAMPLE_RATE
        self._microphone_rate = CLOCK_HZ if is_wideband else SAMPLE_RATE
        self._has_camera = has_camera and self.may_speak
        self._peer: Peer

    async def open(self, offer: str) -> str:
        """Answer an offer and attach the connection to the session; call it once.

        Raises:
            ServerError: The offer cannot be used, or the session takes no more connections; the
                connection is closed then.
        """
        with self._session.connections.reserved(self):
            # Only now: a peer takes a certificate, sockets and threads.
            self._peer = self._open_peer()
            try:
                answer = await self._peer.answer(offer)
                await self._session.attach(self, MessageHandler(self._session, self).handle)
            except BaseException:
                await self.aclose()
                raise
        return answer

    def _open_peer(self) -> Peer:
        return self._session.transport.open(
            _PEER_ROLES[self.kind],
            self._session.media,
            Handlers(
                state=self._on_state,
                microphone=self._on_microphone,
                audio=self._on_audio,
                audio_rate=self._microphone_rate,
                video=self._on_video,
                trouble=self._on_camera_trouble,
                has_camera=self._has_camera,
                channel=self._on_channel,
                message=self._on_message,
            ),
        )

    async def trickle(self, fragment: str) -> None:
        """Add trickled candidates of the peer.

        Raises:
            ServerError: The candidates cannot be used, or come too often.
        """
        self._check_patch_rate()
        await self._peer.trickle(fragment)

    async def restart_ice(self, fragment: str) -> str:
        """Restart ICE, so that the peer can go on from another address; return the answer.

        Raises:
            ServerError: The fragment cannot be used, or comes too often.
        """
        self._check_patch_rate()
        answer = await self._peer.restart(fragment)
        self._restarts += 1
        return answer

    def _check_patch_rate(self) -> None:
        if not self._patches.take():
            wait_s = round(1 / PATCHES_PER_S)
            raise TooManyRequestsError(f"Too many candidates. Try again in {wait_s} s.", wait_s)

    def may_be_changed_by(self, caller: Caller) -> bool:
        """Return whether a caller may close it and send it candidates: who opened it, the owner."""
        return self._session.owns(caller) or caller.token_id == self._token_id

    @property
    def etag(self) -> str:
        """The entity tag of the ICE session: another one after each restart (RFC 9725)."""
        return f'"{self.id}"' if self._restarts == 0 else f'"{self.id}.{self._restarts}"'

    @property
    def video_bitrate(self) -> int:
        """Target bitrate of the video, bit/s."""
        return self._peer.stats().bitrate

    def send(self, text: str) -> None:
        """Send a data channel message; drop it if no channel is open or its buffer is full."""
        if self._has_channel:
            self._peer.send(text)

    def is_lost(self, now_s: float) -> bool:
        """Return whether the peer failed to connect in time, or has been silent for too long."""
        settings = self._session.settings
        if self._peer.state is PeerState.CONNECTING:
            return now_s - self._opened_s > settings.connect_timeout_s
        last_received_s = max(self._peer.last_received_s, self._last_received_s)
        if self.kind is ConnectionKind.TALK and self._has_channel:
            # After an outage packets come at once, messages only when SCTP sends them again.
            return (
                now_s - last_received_s > settings.heartbeat_timeout_s
                or now_s - self._last_received_s > 2 * settings.heartbeat_timeout_s
            )
        return now_s - last_received_s > settings.report_timeout_s

    async def aclose(self, error: ServerError | None = None) -> None:
        """Close the peer connection. Safe to call twice."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="session-close-peer")
        await asyncio.wait([self._closing])

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._peer.aclose()
        except Exception as error:
            # aiortc may raise on connections that were not fully set up; the rest must still close.
            log.warning("closing a peer connection failed (%s)", type(error).__name__)

    def _on_state(self, state: PeerState) -> None:
        if state is PeerState.CONNECTED:
            self._last_received_s = time.monotonic()
        elif state in (PeerState.FAILED, PeerState.CLOSED) and self._closing is None:
            is_lost = state is PeerState.FAILED
            self._session.spawn(self._session.detach(self, is_lost=is_lost), "peer-left")

    def _on_microphone(self) -> None:
        if self.may_speak:
            self._session.speech.add_microphone(self.id)

    def _on_audio(self, pcm: np.ndarray) -> None:
        self._session.hear(self.id, pcm, self._microphone_rate)

    def _on_video(self, rgb: np.ndarray, captured_s: float) -> None:
        if self._closing is None:
            self._session.push_video(rgb, captured_s)

    def _on_camera_trouble(self, trouble: CameraTrouble) -> None:
        if self._closing is None:
            self._session.tell_speakers(Warn(trouble, _TROUBLES[trouble]))

    def _on_channel(self) -> None:
        self._has_channel = True
        self._last_received_s = time.monotonic()
        self._start(self._handle_messages(), "messages")
        self._session.send_ready(self, self._resumed)

    def _on_message(self, data: object) -> None:
        self._last_received_s = time.monotonic()
        if isinstance(data, str | bytes) and not self._messages.full():
            self._messages.put_nowait(data)

    async def _handle_messages(self) -> None:
        while True:
            self._session.connections.receive(self, await self._messages.get())

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._session.spawn(work, name)
        if task is not None:
            self._tasks.append(task)
