"""An RTP sender for streams that are encoded already; it replaces aiortc's.

aiortc's sender encodes for each peer separately, and its sender reports map a timestamp to the time
of *sending*, so that any delay of a frame shifts video against audio. Here the reports of both
tracks follow the session's playout clock, and the receiver can synchronise them whatever the delay.
Retransmission (NACK), key frame requests (PLI, FIR) and bandwidth estimates (REMB, loss) are
supported.
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
from letstalk_server.webrtc.outages import SKIPPED, Outages
from letstalk_server.webrtc.rtcp_feedback import asks_for_key_frame, estimated_bitrate
from letstalk_server.webrtc.sending_rates import (
    RETRANSMISSIONS_PER_S,
    RETRANSMITTED_SHARE,
    RetransmissionLimit,
    SentRate,
)

log = logging.getLogger(__name__)

MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"

HISTORY = 256
"""Packets kept for retransmission, about 2 s of video: older ones would arrive too late."""

PACKET_BYTES = 1200
"""Size of a full packet of video."""

BURST = 8
"""Packets sent at once before a pause, so that a key frame does not overflow a router's queue."""

BURST_PAUSE_S = 0.002

PACING, PACED_S = 2.5, 0.01
"""Factor of the estimated bandwidth at which video is sent once that is known to be low, and the
length of a burst: a key frame must not fill the router's queue, where the audio waits behind it."""

MAX_PENDING = 64
"""Packets that may be pending when a frame arrives; with more, the frame is dropped."""

REPORT_INTERVAL_S = 0.5
"""Mean time between sender reports; a receiver can synchronise the tracks after two."""

MAX_UNREPORTED_HOLD_S = 0.005
"""When the playout clock was held for longer than this, a sender report is sent at once."""

_HEADER = struct.Struct("!BBHLL")
_ONE_BYTE = 0xBEDE
"""Profile of one-byte header extensions, RFC 8285."""


class RtpSender(RTCRtpSender):
    """Sends an encoded stream to one peer.

    Args:
        kind: `audio` or `video`.
        transport: the DTLS transport of its transceiver.
        media: has the stream of the negotiated codec.
        bitrates: bounds of the bandwidth estimate.
        on_stream_end: called when the stream ends because its encoder failed.
        monotonic: monotonic time, s.
    """

    def __init__(
        self,
        kind: str,
        transport: Any,
        media: SharedMedia,
        bitrates: Bitrates,
        on_stream_end: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(kind, transport)
        self._media = media
        self._on_stream_end = on_stream_end
        self._monotonic = monotonic
        self._stream: EncodedStream | None = None
        self._subscription: Subscription | None = None
        self._estimate = BandwidthEstimate(bitrates)
        self._usual_bitrate = bitrates.start
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
        self._retransmission_limit = RetransmissionLimit()
        self._outages = Outages()
        self._packets_before = 0
        self._is_beginning = self._is_loss_known = False
        self._packets = self._octets = 0
        self._sent = SentRate()
        self._reported_held_s = 0.0
        self.last_received_s = 0.0

    @property
    def codec(self) -> str | None:
        """Name of the negotiated codec; `None` before the start."""
        return None if self._stream is None else self._stream.codec

    @property
    def bitrate(self) -> int:
        """Target bitrate of the video, bit/s; 0 for audio."""
        return self._stream.bitrate if isinstance(self._stream, EncodedVideo) else 0

    @property
    def packets_sent(self) -> int:
        """Number of packets sent, without retransmissions."""
        return self._packets

    @property
    def lost_ratio(self) -> float:
        """Smoothed share of packets that the peer lost."""
        return self._estimate.lost_ratio

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        """Start sending; called by aiortc when the connection is established."""
        if self._reports is not None:
            return
        self._apply_parameters(parameters)
        harden(self.transport)
        self.transport._register_rtp_sender(self, parameters)
        if self.kind == "video":
            # A FIR names its stream in the FCI (RFC 5104), which aiortc's router does not read.
            self.transport._rtp_router.senders.setdefault(0, self)
        name = parameters.codecs[0].name
        self._stream = self._media.video(name) if self.kind == "video" else self._media.audio()
        self._reports = asyncio.create_task(self._report(self._stream), name="sender-reports")
        self._subscription = self._stream.subscribe(self._deliver, self._on_stream_end)

    async def stop(self) -> None:
        """Stop sending. Safe to call twice."""
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
        if SEND_TIME in known:  # it is the first, after an element header of 1 or 2 bytes
            self._send_time_at = 4 + (1 if profile == _ONE_BYTE else 2)

    # Media

    def _deliver(self, unit: EncodedUnit) -> bool:
        """Send a frame or an audio packet; return False if too many packets are pending."""
        if len(self._pending) > MAX_PENDING:
            return False
        if self._is_beginning:
            # The subscription has waited for this key frame.
            self._is_beginning = False
            self._sequence = (self._sequence + SKIPPED) & 0xFFFF
            self._packets_before = self._packets
        if self._enabled:
            timestamp = (self._origin + unit.timestamp) & 0xFFFFFFFF
            markers = [False] * (len(unit.payloads) - 1) + [self.kind == "video"]
            self._pending.extend(
                (timestamp, marker, payload)
                for marker, payload in zip(markers, unit.payloads, strict=True)
            )
            if self._pause is None:
                self._send_burst()
        return True

    def _send_burst(self) -> None:
        """Send pending packets, with a pause after each burst."""
        self._pause = None
        rate = self._pacing_rate()
        sent = 0
        for _ in range(min(BURST, len(self._pending))):
            sent += 8 * len(self._pending[0][2])
            self._send_packet(*self._pending.popleft())
            if rate is not None and sent >= PACED_S * rate:
                break
        if self._pending:
            pause_s = BURST_PAUSE_S if rate is None else max(BURST_PAUSE_S, sent / rate)
            self._pause = asyncio.get_running_loop().call_later(pause_s, self._send_burst)
        elif (
            self._stream is not None
            and self._stream.held_s - self._reported_held_s > MAX_UNREPORTED_HOLD_S
        ):
            self._report_now(self._stream)

    def _pacing_rate(self) -> float | None:
        """Return the bit/s at which to send, or None if no limit of the network is known."""
        if self.kind != "video" or self._estimate.bitrate >= self._usual_bitrate:
            return None
        return PACING * self._estimate.bitrate

    def _max_retransmissions(self) -> int:
        """Return the number of packets that may be sent again within a second."""
        if self._estimate.bitrate >= self._usual_bitrate:
            return RETRANSMISSIONS_PER_S
        packets = RETRANSMITTED_SHARE * self._estimate.bitrate / (8 * PACKET_BYTES)
        return min(RETRANSMISSIONS_PER_S, max(BURST, int(packets)))

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
            # Seconds as 6.18 fixed-point number, modulo 64 s.
            send_time = (int(time.time() * (1 << 18)) & 0xFFFFFF).to_bytes(3, "big")
            start = self._send_time_at
            extensions = extensions[:start] + send_time + extensions[start + 3 :]
        first = 0x90 if extensions else 0x80
        fixed = _HEADER.pack(first, payload_type | marker << 7, sequence, timestamp, ssrc)
        return fixed + extensions

    def _begin_anew(self) -> None:
        """Send a key frame next, as the beginning of a stream; see `outages`."""
        if self._subscription is not None:
            self._is_beginning = self._is_loss_known = True
            self._pending.clear()
            self._subscription.wait_for_key_frame()

    def _is_left_behind(self, sequence: int) -> bool:
        """Return whether a packet was sent before the stream began anew."""
        age = (self._sequence - sequence) & 0xFFFF
        has_begun_anew = self._packets_before > 0
        return self._is_beginning or (has_begun_anew and age > self._packets - self._packets_before)

    def _resend(self, sequence: int) -> None:
        if self._is_left_behind(sequence):
            return
        kept = self._history.get(sequence % HISTORY)
        if kept is None or kept[0] != sequence:
            if self._stream is not None:
                self._stream.request_key_frame()  # frames that depend on it cannot be decoded
            return
        if not self._retransmission_limit.allow(self._monotonic(), self._max_retransmissions()):
            return
        _, timestamp, marker, payload = kept
        if self._rtx_payload_type is None:
            header = self._header(self._payload_type, sequence, timestamp, marker, self._ssrc)
        else:
            rtx_type, rtx_sequence = self._rtx_payload_type, self._rtx_sequence
            self._rtx_sequence = (rtx_sequence + 1) & 0xFFFF
            header = self._header(rtx_type, rtx_sequence, timestamp, marker, self._rtx_ssrc)
            payload = sequence.to_bytes(2, "big") + payload
        self._send_bytes(header + payload)

    def _send_bytes(self, data: bytes) -> None:
        """Send a packet, unless the connection is closed."""
        sending = self.transport._send_rtp(data)
        try:
            # aiortc's coroutine never waits: the first step runs it to its end.
            sending.send(None)
        except (StopIteration, ConnectionError, InvalidStateError):
            return
        sending.close()
        raise AssertionError("aiortc's _send_rtp has become asynchronous")

    # Reports

    async def _report(self, stream: EncodedStream) -> None:
        while True:
            self._sent.update(self._octets, self._monotonic())
            self._report_now(stream)
            await asyncio.sleep(REPORT_INTERVAL_S * (0.5 + random.random()))

    def _report_now(self, stream: EncodedStream) -> None:
        self._reported_held_s = stream.held_s
        self._send_reports([self._sender_report(stream), self._description()])

    def _sender_report(self, stream: EncodedStream) -> RtcpSrPacket:
        info = RtcpSenderInfo(
            ntp_timestamp=clock.current_ntp_time(),
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
        self.last_received_s = now_s = self._monotonic()
        if self.kind == "video" and self._outages.is_over(now_s):
            self._begin_anew()
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self._update_loss(report.fraction_lost / 256)
        elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            limit = self._max_retransmissions()
            if self._outages.is_beyond_repair(now_s, packet.lost, limit):
                self._begin_anew()
            for sequence in packet.lost:
                self._resend(sequence)
        elif isinstance(packet, RtcpPsfbPacket):
            self._handle_feedback(packet)

    def _update_loss(self, ratio: float) -> None:
        if self._is_loss_known:
            # It counts an outage, or the numbers that were skipped, which say nothing of bandwidth.
            self._is_loss_known = False
            return
        self._estimate.update_loss(ratio)
        self._share_estimate()

    def _handle_feedback(self, packet: RtcpPsfbPacket) -> None:
        if asks_for_key_frame(packet, self._ssrc):
            if self._stream is not None:
                self._stream.request_key_frame()
            return
        bitrate = estimated_bitrate(packet, self._ssrc)
        if bitrate is not None:
            self._estimate.update_remb(bitrate, self._sent.bit_s)
            self._share_estimate()

    def _share_estimate(self) -> None:
        if self._subscription is not None:
            self._subscription.lost_ratio = self._estimate.lost_ratio
            if isinstance(self._stream, EncodedVideo):
                self._subscription.bitrate = self._estimate.bitrate
