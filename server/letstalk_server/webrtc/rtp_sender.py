"""Our own RTP sender in aiortc's place: packets that are encoded already, exact sender reports.

aiortc's sender encodes for each peer anew and tells the receiver the time of *sending* of a
timestamp, so that whatever holds a picture up moves it against the sound. Here both tracks are
reported by the session's one clock: the receiver can line them up however late they came.
Retransmission, key frame requests (PLI, FIR) and bandwidth estimates (REMB, loss) are honoured.
"""

import asyncio
import logging
import random
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aiortc import clock
from aiortc.codecs import is_rtx
from aiortc.exceptions import InvalidStateError
from aiortc.rtcrtpparameters import RTCRtpSendParameters
from aiortc.rtcrtpsender import RTCRtpSender, random_sequence_number
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpByePacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSourceInfo,
    RtcpSrPacket,
    pack_header_extensions,
    unpack_remb_fci,
)

from letstalk_server.settings import Bitrates
from letstalk_server.webrtc.bandwidth_estimate import BandwidthEstimate
from letstalk_server.webrtc.encoded_streams import (
    EncodedStream,
    EncodedVideo,
    SharedMedia,
    Subscription,
)
from letstalk_server.webrtc.encoders import EncodedUnit
from letstalk_server.webrtc.hardening import harden

log = logging.getLogger(__name__)

MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"

HISTORY = 256
"""Packets kept for retransmission, some 2 s of video: an older one would come too late."""

RETRANSMISSIONS_PER_S = 200
"""More than this are not answered: a flood of requests must not make a flood of packets."""

BURST = 8
"""Packets sent in one go; after that a pause, so that a key frame does not overrun a queue."""

BURST_PAUSE_S = 0.002
MAX_PENDING = 64
"""Packets that may wait for their burst when a picture comes; with more the peer misses it."""

REPORT_INTERVAL_S = 0.5
"""Between sender reports: the receiver can line sound and picture up from the first two on."""

MOVED_S = 0.005
"""When the session's clock has stood still for longer than this, receivers are told at once."""

_HEADER = struct.Struct("!BBHLL")
_ONE_BYTE = 0xBEDE
"""Header extensions in the short form, RFC 8285."""


class _RetransmissionLimit:
    """How many retransmissions are allowed at the moment."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=RETRANSMISSIONS_PER_S)

    def allow(self, now_s: float) -> bool:
        if len(self._times_s) == RETRANSMISSIONS_PER_S and now_s - self._times_s[0] < 1:
            return False
        self._times_s.append(now_s)
        return True


class _SentRate:
    """What was sent of late, bit/s."""

    def __init__(self) -> None:
        self.bit_s = 0.0
        self._octets, self._at_s = 0, 0.0

    def note(self, octets: int, now_s: float) -> None:
        """Take the count of octets sent so far; call about twice a second."""
        if self._at_s:
            present = (octets - self._octets) * 8 / max(now_s - self._at_s, 0.01)
            self.bit_s = (self.bit_s + present) / 2 if self.bit_s else present
        self._octets, self._at_s = octets, now_s


class RtpSender(RTCRtpSender):
    """Sends one feed to one peer. It starts when the connection is up, as aiortc's does.

    Args:
        kind: `audio` or `video`.
        transport: the DTLS transport of its transceiver.
        media: where the feed comes from; the codec that was negotiated decides which.
        bitrates: bounds of the estimate.
        on_stream_end: called when the feed ends of itself, because its encoder failed.
    """

    def __init__(
        self,
        kind: str,
        transport: Any,
        media: SharedMedia,
        bitrates: Bitrates,
        on_stream_end: Callable[[], None],
    ) -> None:
        super().__init__(kind, transport)
        self._media = media
        self._on_stream_end = on_stream_end
        self._stream: EncodedStream | None = None
        self._subscription: Subscription | None = None
        self._estimate = BandwidthEstimate(bitrates)
        self._reports: asyncio.Task[None] | None = None
        self._is_stopped = False
        self._pending: deque[tuple[int, bool, bytes]] = deque()
        self._pause: asyncio.TimerHandle | None = None
        self._origin = random.getrandbits(32)
        self._sequence = random_sequence_number()
        self._rtx_sequence = random_sequence_number()
        self._payload_type = 0
        self._rtx_payload_type: int | None = None
        self._extensions = b""
        self._send_time_at = 0
        self._cname = ""
        self._history: dict[int, tuple[int, int, bool, bytes]] = {}
        self._retransmission_limit = _RetransmissionLimit()
        self._packets = self._octets = 0
        self._sent = _SentRate()
        self._last_report: tuple[int, float] | None = None
        self._reported_held_s = 0.0
        self.resent = 0
        self.key_frames_asked = 0
        self.last_received_s = 0.0

    @property
    def codec(self) -> str | None:
        """Name of the codec sent; `None` before the start."""
        return None if self._stream is None else self._stream.codec

    @property
    def bitrate(self) -> int:
        """Target of the video, bit/s; 0 for sound."""
        return self._stream.bitrate if isinstance(self._stream, EncodedVideo) else 0

    @property
    def packets_sent(self) -> int:
        """Packets sent, without those sent again."""
        return self._packets

    @property
    def lost_ratio(self) -> float:
        """Share of packets that the peer missed of late."""
        return self._estimate.lost_ratio

    @property
    def round_trip_s(self) -> float | None:
        """Time to the peer and back."""
        return self._estimate.round_trip_s

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        """Start; called by the peer connection when media may flow."""
        if self._reports is not None:
            return
        self._apply_parameters(parameters)
        harden(self.transport)
        self.transport._register_rtp_sender(self, parameters)
        if self.kind == "video":
            # A FIR names its stream inside (RFC 5104), not where aiortc's router looks.
            self.transport._rtp_router.senders.setdefault(0, self)
        name = parameters.codecs[0].name
        self._stream = self._media.video(name) if self.kind == "video" else self._media.audio()
        self._reports = asyncio.create_task(self._report(self._stream), name="sender-reports")
        self._subscription = self._stream.subscribe(self._deliver, self._on_stream_end)

    async def stop(self) -> None:
        """Stop for good. Safe to call twice."""
        if self._reports is None or self._is_stopped:
            return
        self._is_stopped = True
        self.transport._unregister_rtp_sender(self)
        self._reports.cancel()
        await asyncio.wait([self._reports])
        if self._stream is not None and self._subscription is not None:
            await self._stream.unsubscribe(self._subscription)
        if self._pause is not None:
            self._pause.cancel()
        self._send_reports([RtcpByePacket(sources=[self._ssrc])])

    def _apply_parameters(self, parameters: RTCRtpSendParameters) -> None:
        codec = parameters.codecs[0]
        assert codec.payloadType is not None
        self._payload_type = codec.payloadType
        self._cname = parameters.rtcp.cname or ""
        for other in parameters.codecs:
            if is_rtx(other) and other.parameters["apt"] == codec.payloadType:
                self._rtx_payload_type = other.payloadType
        known = {extension.uri: extension.id for extension in parameters.headerExtensions}
        extensions = []
        if SEND_TIME in known:
            extensions.append((known[SEND_TIME], bytes(3)))
        mid = parameters.muxId.encode()
        if MID in known and 0 < len(mid) < 256:
            extensions.append((known[MID], mid))
        profile, data = pack_header_extensions(extensions)
        if data:
            self._extensions = struct.pack("!HH", profile, len(data) // 4) + data
        if SEND_TIME in known:  # the first one, after what one byte or two say of it
            self._send_time_at = 4 + (1 if profile == _ONE_BYTE else 2)

    # Media

    def _deliver(self, unit: EncodedUnit) -> bool:
        """Send a picture or a piece of sound; False when too much waits already."""
        if len(self._pending) > MAX_PENDING:
            return False
        if self._enabled:
            timestamp = (self._origin + unit.timestamp) & 0xFFFFFFFF
            ends = [False] * (len(unit.payloads) - 1) + [self.kind == "video"]
            self._pending.extend(
                (timestamp, marker, payload)
                for marker, payload in zip(ends, unit.payloads, strict=True)
            )
            if self._pause is None:
                self._send_burst()
        return True

    def _send_burst(self) -> None:
        """Send what waits, with a pause after each burst."""
        self._pause = None
        for _ in range(min(BURST, len(self._pending))):
            self._send_packet(*self._pending.popleft())
        if self._pending:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_later(BURST_PAUSE_S, self._send_burst)
        elif self._stream is not None and self._stream.held_s - self._reported_held_s > MOVED_S:
            self._report_now(self._stream)

    def _send_packet(self, timestamp: int, marker: bool, payload: bytes) -> None:
        sequence = self._sequence
        self._sequence = (sequence + 1) & 0xFFFF
        self._history[sequence % HISTORY] = sequence, timestamp, marker, payload
        self._packets += 1
        self._octets += len(payload)
        header = self._header(self._payload_type, sequence, timestamp, marker, self._ssrc)
        self._send_bytes(header + payload)

    def _header(
        self, payload_type: int, sequence: int, timestamp: int, marker: bool, ssrc: int
    ) -> bytes:
        extensions = self._extensions
        if self._send_time_at:
            # Seconds in 6.18 bits; of which era does not matter.
            send_time = (int(time.time() * (1 << 18)) & 0xFFFFFF).to_bytes(3, "big")
            start = self._send_time_at
            extensions = extensions[:start] + send_time + extensions[start + 3 :]
        first = 0x90 if extensions else 0x80
        fixed = _HEADER.pack(first, payload_type | marker << 7, sequence, timestamp, ssrc)
        return fixed + extensions

    def _resend(self, sequence: int) -> None:
        kept = self._history.get(sequence % HISTORY)
        if kept is None or kept[0] != sequence:
            if self._stream is not None:
                self._stream.request_key_frame()
            return
        if not self._retransmission_limit.allow(time.monotonic()):
            return
        _, timestamp, marker, payload = kept
        self.resent += 1
        if self._rtx_payload_type is None:
            header = self._header(self._payload_type, sequence, timestamp, marker, self._ssrc)
        else:
            kind, number = self._rtx_payload_type, self._rtx_sequence
            self._rtx_sequence = (number + 1) & 0xFFFF
            header = self._header(kind, number, timestamp, marker, self._rtx_ssrc)
            payload = sequence.to_bytes(2, "big") + payload
        self._send_bytes(header + payload)

    def _send_bytes(self, data: bytes) -> None:
        """Send a packet, if the connection is still there."""
        sending = self.transport._send_rtp(data)
        try:
            # A coroutine in name only: it ends without waiting for anything.
            sending.send(None)
        except (StopIteration, ConnectionError, InvalidStateError):
            return
        sending.close()
        raise AssertionError("aiortc waits now while it sends")

    # Reports

    async def _report(self, stream: EncodedStream) -> None:
        while True:
            self._sent.note(self._octets, time.monotonic())
            self._report_now(stream)
            await asyncio.sleep(REPORT_INTERVAL_S * (0.5 + random.random()))

    def _report_now(self, stream: EncodedStream) -> None:
        self._reported_held_s = stream.held_s
        self._send_reports([self._sender_report(stream), self._description()])

    def _sender_report(self, stream: EncodedStream) -> RtcpSrPacket:
        ntp = clock.current_ntp_time()
        self._last_report = (ntp >> 16) & 0xFFFFFFFF, time.monotonic()
        info = RtcpSenderInfo(
            ntp_timestamp=ntp,
            rtp_timestamp=(self._origin + stream.current_timestamp()) & 0xFFFFFFFF,
            packet_count=self._packets & 0xFFFFFFFF,
            octet_count=self._octets & 0xFFFFFFFF,
        )
        return RtcpSrPacket(ssrc=self._ssrc, sender_info=info)

    def _description(self) -> RtcpSdesPacket:
        source = RtcpSourceInfo(ssrc=self._ssrc, items=[(1, self._cname.encode())])
        return RtcpSdesPacket(chunks=[source])

    def _send_reports(self, packets: list[AnyRtcpPacket]) -> None:
        self._send_bytes(b"".join(bytes(packet) for packet in packets))

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        self.last_received_s = time.monotonic()
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self._note_report(report.fraction_lost / 256, report.lsr, report.dlsr)
        elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            for sequence in packet.lost:
                self._resend(sequence)
        elif isinstance(packet, RtcpPsfbPacket):
            self._note_feedback(packet)

    def _note_report(self, lost_ratio: float, report: int, delay: int) -> None:
        if self._last_report is not None and self._last_report[0] == report:
            round_trip_s = time.monotonic() - self._last_report[1] - delay / 65_536
            self._estimate.note_round_trip(max(0.0, round_trip_s))
        self._estimate.update_loss(lost_ratio)
        self._pass_estimate()

    def _note_feedback(self, packet: RtcpPsfbPacket) -> None:
        if packet.fmt == RTCP_PSFB_PLI or (
            packet.fmt == RTCP_PSFB_FIR and self._ssrc.to_bytes(4, "big") in _names(packet.fci)
        ):
            self.key_frames_asked += 1
            if self._stream is not None:
                self._stream.request_key_frame()
        elif packet.fmt == RTCP_PSFB_APP:
            try:
                bitrate, ssrcs = unpack_remb_fci(packet.fci)
            except (ValueError, IndexError, struct.error):
                return  # some other message of this family, or a damaged one
            if self._ssrc in ssrcs:
                self._estimate.update_remb(bitrate, self._sent.bit_s)
                self._pass_estimate()

    def _pass_estimate(self) -> None:
        if self._subscription is not None:
            self._subscription.lost_ratio = self._estimate.lost_ratio
            if isinstance(self._stream, EncodedVideo):
                self._subscription.bitrate = self._estimate.bitrate


def _names(fci: bytes) -> list[bytes]:
    """Give the streams that a FIR is about: entries of 8 bytes, the first 4 are the SSRC."""
    return [fci[start : start + 4] for start in range(0, len(fci), 8)]
