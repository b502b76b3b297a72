"""WebRTC by aiortc: the `Transport` of this server. The only file that knows its connections.

Sender and receiver of each media section are ours (`sender.py`, `receiver.py`); aiortc does ICE,
DTLS, SRTP, SCTP and SDP.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpCodecCapability,
    RTCRtpSender,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.codecs import CODECS, is_rtx
from aiortc.rtcrtpparameters import RTCRtcpFeedback
from aiortc.sdp import candidate_from_sdp

from letstalk_server.errors import BadOfferError, BadRequestError, IceRestartError
from letstalk_server.session.playout import SlotPlayout
from letstalk_server.session.transport import Handlers, Media, PeerRole, PeerState, PeerStats
from letstalk_server.settings import Bitrates, IceServer
from letstalk_server.webrtc.encoded_streams import SharedMedia
from letstalk_server.webrtc.microphone_path import CLOCK_HZ
from letstalk_server.webrtc.rtp_receiver import RtpReceiver
from letstalk_server.webrtc.rtp_sender import RtpSender
from letstalk_server.webrtc.sdp import clean_offer, media_kinds, parse_fragment

log = logging.getLogger(__name__)

ENCODERS = 4
"""Threads that encode pictures."""

CLOSE_TIMEOUT_S = 5.0
MAX_UNSENT_BYTES = 65_536
"""Messages to a page that does not read them are dropped beyond this."""

_DIRECTIONS = {
    (PeerRole.TALKER, "video"): "sendonly",
    (PeerRole.TALKER, "audio"): "sendrecv",
    (PeerRole.VIEWER, "video"): "sendonly",
    (PeerRole.VIEWER, "audio"): "sendonly",
    (PeerRole.PUBLISHER, "video"): "inactive",
    (PeerRole.PUBLISHER, "audio"): "recvonly",
}
_CODECS = {"video": ("video/vp8", "video/rtx", "video/h264"), "audio": ("audio/opus",)}


class AiortcTransport:
    """Makes connections with aiortc; see `transport.Transport`.

    Args:
        ice_servers: STUN and TURN servers that this side uses itself.
        bitrates: bounds of the video.
        prefer: codec to send where the peer can take it, `VP8` or `H264`.
    """

    def __init__(
        self,
        ice_servers: Sequence[IceServer] = (),
        bitrates: Bitrates | None = None,
        *,
        prefer: str = "VP8",
    ) -> None:
        self._bitrates = bitrates or Bitrates()
        self._codecs = dict(_CODECS)
        if prefer == "H264":
            self._codecs["video"] = ("video/h264", "video/rtx", "video/vp8")
        self._executor = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
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
        """Make the media of a session."""
        return SharedMedia(playout, self._bitrates, self._executor)

    def open(self, role: PeerRole, media: Media, handlers: Handlers) -> "AiortcPeer":
        """Make the server's end of a connection; nothing happens before `answer`."""
        assert isinstance(media, SharedMedia), "media must come from the same transport"
        pc = RTCPeerConnection(self._configuration)
        return AiortcPeer(pc, role, media, handlers, self._bitrates, self._codecs)

    def close(self) -> None:
        """Give the threads back; call when all peers and media are closed."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class AiortcPeer:
    """One connection; see `transport.Peer`."""

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
        self._senders: list[RtpSender] = []
        self._receiver: RtpReceiver | None = None
        self._channel: RTCDataChannel | None = None
        self._ufrag: str | None = None
        self._state = PeerState.CONNECTING
        self._closing = False
        pc.on("connectionstatechange", self._on_state)
        pc.on("datachannel", self._on_channel)

    @property
    def state(self) -> PeerState:
        """How far the connection is."""
        return self._state

    @property
    def last_received_s(self) -> float:
        """When anything last came from the peer, `time.monotonic`; 0 before that."""
        last_received_s = [sender.last_received_s for sender in self._senders]
        if self._receiver is not None:
            last_received_s.append(self._receiver.last_received_s)
        return max(last_received_s, default=0.0)

    async def answer(self, offer: str) -> str:
        """Accept an SDP offer and give the answer, candidates included; call it once.

        Raises:
            BadOfferError: the offer is not SDP, or not one for this role.
        """
        sdp = clean_offer(offer, self._role)
        try:
            for kind in media_kinds(sdp):
                if kind != "application":
                    self._add(kind)
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except Exception as error:
            # aiortc's parser raises whatever a malformed line leads to, and its text may quote SDP.
            log.info("offer refused (%s)", type(error).__name__)
            raise BadOfferError(
                "The offer could not be negotiated. It must be WebRTC SDP with VP8 or H.264 for "
                "the picture and Opus for the sound."
            ) from None
        self._ufrag = next(
            (line[12:] for line in sdp.split("\r\n") if line.startswith("a=ice-ufrag:")), None
        )
        return str(self._pc.localDescription.sdp)

    async def trickle(self, fragment: str) -> None:
        """Take further candidates: the body of a WHIP or WHEP `PATCH` (RFC 8840).

        Raises:
            BadRequestError: it is not a fragment of candidates.
            IceRestartError: it is for another connection.
        """
        parsed = parse_fragment(fragment)
        if parsed.ufrag is not None and parsed.ufrag != self._ufrag:
            raise IceRestartError(
                "ICE cannot be restarted here. Close this connection and make a new one."
            )
        for text, mid in parsed.candidates:
            try:
                candidate = candidate_from_sdp(text)
                candidate.sdpMid = mid
                await self._pc.addIceCandidate(candidate)
            except Exception:
                # As with offers: anything may be raised, and it may quote an address.
                detail = "A candidate is malformed, or of no section of the offer."
                raise BadRequestError(detail) from None

    def send(self, text: str) -> bool:
        """Send a data channel message; False when there is no open channel or it is full."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return False
        if channel.bufferedAmount > MAX_UNSENT_BYTES:
            return False
        channel.send(text)
        return True

    def stats(self) -> PeerStats:
        """Give what is known of the connection."""
        video = next((sender for sender in self._senders if sender.kind == "video"), None)
        heard = 0 if self._receiver is None else self._receiver.microphone.concealed_samples
        sent = sum(sender.packets_sent for sender in self._senders)
        resent = sum(sender.resent for sender in self._senders)
        concealed_ms = heard * 1000 // CLOCK_HZ
        if video is None:
            return PeerStats(packets_sent=sent, packets_resent=resent, concealed_ms=concealed_ms)
        trip_s = video.round_trip_s
        return PeerStats(
            codec=video.codec,
            bitrate=video.bitrate,
            packets_sent=sent,
            packets_resent=resent,
            lost_ratio=video.lost_ratio,
            round_trip_ms=None if trip_s is None else trip_s * 1000,
            key_frames=video.key_frames_asked,
            concealed_ms=concealed_ms,
        )

    async def aclose(self) -> None:
        """Close the connection. Safe to call twice, and before an answer."""
        if self._closing:
            return
        self._closing = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._pc.close()
        except Exception as error:
            # aiortc trips over connections that were only half set up; the rest must still end.
            log.warning("a peer connection did not close in order (%s)", type(error).__name__)
        for sender in self._senders:
            await sender.stop()
        if self._receiver is not None:
            await self._receiver.stop()
        self._pc.remove_all_listeners()
        self._enter(PeerState.CLOSED)

    def _add(self, kind: str) -> None:
        """Make the transceiver of an offered section, with our sender and receiver in it."""
        direction = _DIRECTIONS[self._role, kind]
        transceiver = self._pc.addTransceiver(kind, direction)
        transceiver.setCodecPreferences(_capabilities(kind, self._codecs[kind]))
        transport = transceiver.sender.transport
        sender = RtpSender(kind, transport, self._media, self._bitrates, self._on_media_end)
        sender._stream_id = transceiver.sender._stream_id
        self._senders.append(sender)
        _put(transceiver, "sender", sender)
        if kind == "audio":
            self._receiver = RtpReceiver(transport, self._handlers.microphone, self._handlers.audio)
            _put(transceiver, "receiver", self._receiver)
        transceiver.receiver._set_rtcp_ssrc(sender._ssrc)

    def _enter(self, state: PeerState) -> None:
        if state != self._state and self._state not in (PeerState.FAILED, PeerState.CLOSED):
            self._state = state
            self._handlers.state(state)

    def _on_media_end(self) -> None:
        if not self._closing:
            self._enter(PeerState.FAILED)

    def _on_state(self) -> None:
        known = {
            "connected": PeerState.CONNECTED,
            "failed": PeerState.FAILED,
            "closed": PeerState.CLOSED,
        }
        self._enter(known.get(self._pc.connectionState, PeerState.CONNECTING))

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channel is not None:
            return  # one is enough; others are not listened to
        self._channel = channel
        channel.on("message", self._handlers.message)
        self._handlers.channel()


def _put(transceiver: RTCRtpTransceiver, what: str, replacement: Any) -> None:
    """Put our sender or receiver in the place of aiortc's, which has no way to choose them."""
    name = f"_RTCRtpTransceiver__{what}"
    assert name in vars(transceiver), f"aiortc keeps its {what} somewhere else now"
    setattr(transceiver, name, replacement)


def _capabilities(kind: str, names: tuple[str, ...]) -> list[RTCRtpCodecCapability]:
    known = RTCRtpSender.getCapabilities(kind).codecs
    return [codec for name in names for codec in known if codec.mimeType.lower() == name]


def _offer_fir() -> None:
    """Let aiortc negotiate full intra requests, which our sender understands."""
    fir = RTCRtcpFeedback(type="ccm", parameter="fir")
    for codec in CODECS["video"]:
        if not is_rtx(codec) and fir not in codec.rtcpFeedback:
            codec.rtcpFeedback.append(fir)
