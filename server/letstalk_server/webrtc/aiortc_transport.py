"""The `Transport` of this server, with aiortc. No other module uses its peer connections.

`RtpSender` and `RtpReceiver` replace aiortc's in each media section; aiortc does ICE, DTLS, SRTP,
SCTP and SDP.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCDtlsTransport,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpCodecCapability,
    RTCRtpSender,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.codecs import CODECS, is_rtx
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcrtpparameters import RTCRtcpFeedback
from aiortc.sdp import candidate_from_sdp

from letstalk_rt.threads import started_pool
from letstalk_server.errors import BadOfferError, BadRequestError, IceRestartError
from letstalk_server.session.playout import SlotPlayout
from letstalk_server.session.transport import Handlers, Media, PeerRole, PeerState, PeerStats
from letstalk_server.settings import Bitrates, IceServer
from letstalk_server.webrtc.camera_budget import CameraGate, SharedBudget
from letstalk_server.webrtc.camera_path import CameraPath
from letstalk_server.webrtc.encoded_streams import SharedMedia
from letstalk_server.webrtc.hardening import harden, harden_channel, harden_connection
from letstalk_server.webrtc.ice_restart import IceCredentials, restart_ice, write_fragment
from letstalk_server.webrtc.microphone_path import CLOCK_HZ
from letstalk_server.webrtc.moving_peers import MovingPeer
from letstalk_server.webrtc.public_address import PublicAddress
from letstalk_server.webrtc.remote_candidates import (
    CandidatePolicy,
    RemoteCandidates,
    limit_checks,
)
from letstalk_server.webrtc.rtp_receiver import RtpReceiver
from letstalk_server.webrtc.rtp_sender import RtpSender
from letstalk_server.webrtc.sdp import (
    SdpFragment,
    clean_offer,
    is_ice_text,
    media_kinds,
    parse_fragment,
)
from letstalk_server.webrtc.video_buffer import receive_encoded, request_key_frame

log = logging.getLogger(__name__)

ENCODER_THREADS = 4
"""Threads that encode video."""

CLOSE_TIMEOUT_S = 5.0
MAX_UNSENT_BYTES = 65_536
"""Data channel messages are dropped while more than this is buffered."""

_DIRECTIONS = {
    (PeerRole.TALKER, "video"): "sendonly",
    (PeerRole.TALKER, "audio"): "sendrecv",
    (PeerRole.VIEWER, "video"): "sendonly",
    (PeerRole.VIEWER, "audio"): "sendonly",
    (PeerRole.PUBLISHER, "video"): "inactive",
    (PeerRole.PUBLISHER, "audio"): "recvonly",
}
_WITH_CAMERA = {PeerRole.TALKER: "sendrecv", PeerRole.PUBLISHER: "recvonly"}
"""Directions of the video of a peer that sends its camera."""

_CODECS = {"video": ("video/vp8", "video/rtx", "video/h264"), "audio": ("audio/opus",)}


class AiortcTransport:
    """Creates peer connections with aiortc; see `transport.Transport`.

    Args:
        ice_servers: STUN and TURN servers that the server itself uses.
        bitrates: bounds of the video bitrate.
        prefer: preferred video codec, `VP8` or `H264`.
        public_address: address that the answers name for media, where NAT maps it to this machine.
        policy: addresses of peers that may be checked; those of the internet if `None`.
        cameras: what may be decoded of all cameras; by default what suits this machine.
        executor: where video is encoded; `close` shuts it down.
        connect: creates aiortc's peer connections.
    """

    def __init__(
        self,
        ice_servers: Sequence[IceServer] = (),
        bitrates: Bitrates | None = None,
        *,
        prefer: str = "VP8",
        public_address: PublicAddress | None = None,
        policy: CandidatePolicy | None = None,
        cameras: SharedBudget | None = None,
        executor: Executor | None = None,
        connect: Callable[[RTCConfiguration], RTCPeerConnection] = RTCPeerConnection,
    ) -> None:
        self._bitrates = bitrates or Bitrates()
        self._codecs = dict(_CODECS)
        if prefer == "H264":
            self._codecs["video"] = ("video/h264", "video/rtx", "video/vp8")
        self._executor = executor or started_pool(ENCODER_THREADS, "encode")
        self._connect = connect
        self._public_address = public_address
        self._policy = policy or CandidatePolicy()
        self._cameras = cameras or SharedBudget()
        self._configuration = RTCConfiguration(
            iceServers=[
                RTCIceServer(
                    urls=server.url, username=server.username, credential=server.credential
                )
                for server in ice_servers
            ]
        )
        _offer_fir()

    def media(self, playout: SlotPlayout) -> SharedMedia:
        """Create the media of a session."""
        return SharedMedia(playout, self._bitrates, self._executor)

    def open(self, role: PeerRole, media: Media, handlers: Handlers) -> "AiortcPeer":
        """Create the server's end of a connection; nothing is sent before `answer`."""
        assert isinstance(media, SharedMedia), "media must be created by the same transport"
        pc = self._connect(self._configuration)
        peer = AiortcPeer(pc, role, media, handlers, self._bitrates, self._codecs)
        peer.public_address = self._public_address
        peer.candidates = RemoteCandidates(self._policy)
        peer.cameras = self._cameras
        return peer

    def close(self) -> None:
        """Shut down the threads; call after all peers and media are closed."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class AiortcPeer:
    """A peer connection; see `transport.Peer`.

    Attributes:
        public_address: see `AiortcTransport`.
        candidates: decides which candidates of the peer are used.
        cameras: what may be decoded of all cameras.
    """

    public_address: PublicAddress | None = None
    candidates: RemoteCandidates
    cameras: SharedBudget

    def __init__(
        self,
        pc: RTCPeerConnection,
        role: PeerRole,
        media: SharedMedia,
        handlers: Handlers,
        bitrates: Bitrates,
        codecs: dict[str, tuple[str, ...]],
    ) -> None:
        self._pc = pc
        self._role = role
        self._media = media
        self._handlers = handlers
        self._bitrates = bitrates
        self._codecs = codecs
        self._camera: CameraPath | None = None
        self._watching: asyncio.Task[None] | None = None
        self._senders: list[RtpSender] = []
        self._receiver: RtpReceiver | None = None
        self._channel: RTCDataChannel | None = None
        self._ufrag: str | None = None
        self._moving: list[MovingPeer] = []
        self._state = PeerState.CONNECTING
        self._closing = False
        harden_connection(pc)
        pc.on("connectionstatechange", self._on_state)
        pc.on("datachannel", self._on_channel)
        pc.on("track", self._on_track)

    @property
    def state(self) -> PeerState:
        """State of the connection."""
        return self._state

    @property
    def last_received_s(self) -> float:
        """When a packet of the peer last arrived, `time.monotonic`; 0 before the first one."""
        times_s = [sender.last_received_s for sender in self._senders]
        if self._receiver is not None:
            times_s.append(self._receiver.last_received_s)
        return max(times_s, default=0.0)

    async def answer(self, offer: str) -> str:
        """Accept an SDP offer and return the answer with all candidates; call it once.

        Raises:
            BadOfferError: The offer is not valid SDP, or does not match the role.
        """
        sdp = clean_offer(offer, self._role, self.candidates.take)
        try:
            for kind in media_kinds(sdp):
                if kind != "application":
                    self._add(kind)
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except Exception as error:
            # aiortc's parser may raise anything, and the message may quote the SDP.
            log.info("offer refused (%s)", type(error).__name__)
            raise BadOfferError(
                "The offer could not be negotiated. It must be WebRTC SDP with VP8 or H.264 video "
                "and Opus audio."
            ) from None
        self._ufrag = next(
            (line[12:] for line in sdp.split("\r\n") if line.startswith("a=ice-ufrag:")), None
        )
        for transport in self._transports():
            harden(transport)
            limit_checks(transport.transport._connection)
            self._moving.append(MovingPeer(transport.transport._connection))
            self._moving[-1].watch()
        if self._pc.sctp is not None:
            harden_channel(self._pc.sctp, self._on_stream_end)
        sdp = str(self._pc.localDescription.sdp)
        return sdp if self.public_address is None else self.public_address.put_into(sdp)

    async def trickle(self, fragment: str) -> None:
        """Add trickled candidates: the body of a WHIP or WHEP `PATCH` (RFC 8840).

        Raises:
            BadRequestError: The body is not a valid SDP fragment.
            IceRestartError: The fragment has another user name fragment.
        """
        parsed = parse_fragment(fragment)
        if parsed.ufrag is not None and parsed.ufrag != self._ufrag:
            raise IceRestartError(
                "The fragment has another ice-ufrag than the connection. To restart ICE, send "
                "If-Match: *."
            )
        await self._add_candidates(parsed)

    async def restart(self, fragment: str) -> str:
        """Restart ICE: the body of a `PATCH` with the peer's new credentials (RFC 9725, 4.3.3).

        Returns:
            The fragment to answer with: our new credentials, and all candidates.

        Raises:
            BadRequestError: The body is not a valid SDP fragment, or has no credentials.
            IceRestartError: The media sections of the connection are not bundled.
        """
        parsed = parse_fragment(fragment)
        if not is_ice_text(parsed.ufrag, 4) or not is_ice_text(parsed.password, 22):
            raise BadRequestError(
                "An ICE restart needs a new a=ice-ufrag and a=ice-pwd, as RFC 8839 defines them."
            )
        transports = self._transports()
        if len(transports) != 1:
            raise IceRestartError("ICE restarts need all media sections in one BUNDLE group.")
        self._ufrag = parsed.ufrag
        theirs = IceCredentials(str(parsed.ufrag), str(parsed.password))
        ours = restart_ice(transports.pop().transport._connection, theirs)
        await self._add_candidates(parsed)
        answer = write_fragment(str(self._pc.localDescription.sdp), ours)
        return answer if self.public_address is None else self.public_address.put_into(answer)

    async def _add_candidates(self, parsed: SdpFragment) -> None:
        for text, mid in parsed.candidates:
            if not self.candidates.take(text):
                continue
            try:
                candidate = candidate_from_sdp(text)
                candidate.sdpMid = mid
                await self._pc.addIceCandidate(candidate)
            except Exception:
                # As with offers: anything may be raised, and the message may quote an address.
                detail = "A candidate is malformed, or its media section is not in the offer."
                raise BadRequestError(detail) from None

    def send(self, text: str) -> bool:
        """Send a data channel message; return False if no channel is open or its buffer is full."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return False
        if channel.bufferedAmount > MAX_UNSENT_BYTES:
            return False
        channel.send(text)
        return True

    def stats(self) -> PeerStats:
        """Return statistics of the connection."""
        video = next((sender for sender in self._senders if sender.kind == "video"), None)
        concealed = 0 if self._receiver is None else self._receiver.microphone.concealed_samples
        sent = sum(sender.packets_sent for sender in self._senders)
        concealed_ms = concealed * 1000 // CLOCK_HZ
        if video is None:
            return PeerStats(packets_sent=sent, concealed_ms=concealed_ms)
        return PeerStats(
            codec=video.codec,
            bitrate=video.bitrate,
            packets_sent=sent,
            lost_ratio=video.lost_ratio,
            concealed_ms=concealed_ms,
        )

    async def aclose(self) -> None:
        """Close the connection. Safe to call twice, and before an answer."""
        if self._closing:
            return
        self._closing = True
        for peer in self._moving:
            await peer.aclose()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._pc.close()
        except Exception as error:
            # aiortc may raise on connections that were not fully set up; the rest must still close.
            log.warning("closing a peer connection failed (%s)", type(error).__name__)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        for sender in self._senders:
            await sender.stop()
        if self._receiver is not None:
            await self._receiver.stop()
        self._pc.remove_all_listeners()
        self._set_state(PeerState.CLOSED)

    def _transports(self) -> set[RTCDtlsTransport]:
        """Return the DTLS transports: one, if all media sections are bundled."""
        transports = {transceiver.sender.transport for transceiver in self._pc.getTransceivers()}
        return transports if self._pc.sctp is None else transports | {self._pc.sctp.transport}

    def _add(self, kind: str) -> None:
        """Add the transceiver of an offered media section, with our sender and receiver."""
        direction = _DIRECTIONS[self._role, kind]
        if kind == "video" and self._handlers.has_camera:
            direction = _WITH_CAMERA.get(self._role, direction)
        transceiver = self._pc.addTransceiver(kind, direction)
        transceiver.setCodecPreferences(_capabilities(kind, self._codecs[kind]))
        transport = transceiver.sender.transport
        sender = RtpSender(kind, transport, self._media, self._bitrates, self._on_stream_end)
        sender._stream_id = transceiver.sender._stream_id
        self._senders.append(sender)
        _replace(transceiver, "sender", sender)
        if kind == "audio":
            handlers = self._handlers
            self._receiver = RtpReceiver(
                transport, handlers.microphone, handlers.audio, handlers.audio_rate
            )
            _replace(transceiver, "receiver", self._receiver)
        elif self._handlers.has_camera:
            ask = partial(request_key_frame, transceiver.receiver)
            gate = CameraGate(self.cameras, ask, self._handlers.trouble)
            self._camera = CameraPath(self._handlers.video, gate)
            receive_encoded(transceiver.receiver, self._camera.push)
        transceiver.receiver._set_rtcp_ssrc(sender._ssrc)

    def _set_state(self, state: PeerState) -> None:
        if state != self._state and self._state not in (PeerState.FAILED, PeerState.CLOSED):
            self._state = state
            self._handlers.state(state)

    def _on_stream_end(self) -> None:
        if not self._closing:
            self._set_state(PeerState.FAILED)

    def _on_state(self) -> None:
        states = {
            "connected": PeerState.CONNECTED,
            "failed": PeerState.FAILED,
            "closed": PeerState.CLOSED,
        }
        self._set_state(states.get(self._pc.connectionState, PeerState.CONNECTING))

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video" and self._camera is not None and self._watching is None:
            self._watching = asyncio.create_task(self._camera.run(), name="camera")

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channel is not None:
            return  # further channels are ignored
        self._channel = channel
        channel.on("message", self._handlers.message)
        self._handlers.channel()


def _replace(transceiver: RTCRtpTransceiver, part: str, replacement: Any) -> None:
    """Replace the sender or receiver of a transceiver, for which aiortc has no interface."""
    name = f"_RTCRtpTransceiver__{part}"
    assert name in vars(transceiver), f"this version of aiortc has no attribute {name}"
    setattr(transceiver, name, replacement)


def _capabilities(kind: str, names: tuple[str, ...]) -> list[RTCRtpCodecCapability]:
    known = RTCRtpSender.getCapabilities(kind).codecs
    return [codec for name in names for codec in known if codec.mimeType.lower() == name]


def _offer_fir() -> None:
    """Make aiortc negotiate full intra requests (FIR), which our sender supports."""
    fir = RTCRtcpFeedback(type="ccm", parameter="fir")
    for codec in CODECS["video"]:
        if not is_rtx(codec) and fir not in codec.rtcpFeedback:
            codec.rtcpFeedback.append(fir)
