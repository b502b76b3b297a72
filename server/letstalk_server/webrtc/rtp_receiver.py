"""An RTP receiver for the microphone that replaces aiortc's.

aiortc's receiver starts a thread per peer, delays by 80 ms and queues unread frames without limit.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import RTCRtpReceiver, StreamStatistics
from aiortc.rtp import AnyRtcpPacket, RtcpReceiverInfo, RtcpRrPacket, RtcpSrPacket, RtpPacket

from letstalk_rt.types import SAMPLE_RATE
from letstalk_server.webrtc.hardening import harden
from letstalk_server.webrtc.microphone_path import CLOCK_HZ, MicrophonePath

REPORT_INTERVAL_S = 1.0


class RtpReceiver(RTCRtpReceiver):
    """Receives a peer's Opus stream and sends receiver reports.

    Args:
        transport: the DTLS transport of its transceiver.
        on_start: called once, when media may flow.
        on_audio: called with each chunk of audio; see `MicrophonePath`.
        sample_rate: of these chunks, 16000 or 48000 Hz.
    """

    def __init__(
        self,
        transport: Any,
        on_start: Callable[[], None],
        on_audio: Callable[[np.ndarray], None],
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        super().__init__("audio", transport)
        self.microphone = MicrophonePath(on_audio, sample_rate)
        self.last_received_s = 0.0
        self._on_start = on_start
        self._payload_types: set[int | None] = set()
        self._source: int | None = None
        self._statistics = StreamStatistics(CLOCK_HZ)
        self._sender_report: tuple[int, float] | None = None
        self._own_ssrc: int | None = None
        self._reporting: asyncio.Task[None] | None = None

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """Start receiving; called by aiortc when the connection is established."""
        if self._reporting is not None:
            return
        self._payload_types = {codec.payloadType for codec in parameters.codecs}
        harden(self.transport)
        self.transport._register_rtp_receiver(self, parameters)
        self._reporting = asyncio.create_task(self._report(), name="receiver-reports")
        self._on_start()

    async def stop(self) -> None:
        """Stop receiving. Safe to call twice."""
        task, self._reporting = self._reporting, None
        if task is not None:
            self.transport._unregister_rtp_receiver(self)
            task.cancel()
            await asyncio.wait([task])

    def _set_rtcp_ssrc(self, ssrc: int) -> None:
        self._own_ssrc = ssrc

    def _handle_disconnect(self) -> None:
        """Do nothing: no reader waits for packets."""

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        self.last_received_s = time.monotonic()
        if not self._enabled or packet.payload_type not in self._payload_types:
            return
        if packet.ssrc != self._source:
            self._source, self._statistics = packet.ssrc, StreamStatistics(CLOCK_HZ)
        self._statistics.add(packet)
        self.microphone.push(packet.sequence_number, packet.timestamp, packet.payload)

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        self.last_received_s = time.monotonic()
        if isinstance(packet, RtcpSrPacket):
            middle_bits = (packet.sender_info.ntp_timestamp >> 16) & 0xFFFFFFFF
            self._sender_report = middle_bits, time.monotonic()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S * (0.5 + random.random()))
            if self._own_ssrc is None or self._source is None:
                continue
            report = RtcpRrPacket(ssrc=self._own_ssrc, reports=[self._report_block(self._source)])
            try:
                await self.transport._send_rtp(bytes(report))
            except ConnectionError:
                return

    def _report_block(self, source: int) -> RtcpReceiverInfo:
        last_report, delay = 0, 0
        if self._sender_report is not None:
            last_report = self._sender_report[0]
            delay = int((time.monotonic() - self._sender_report[1]) * 65_536) & 0xFFFFFFFF
        return RtcpReceiverInfo(
            ssrc=source,
            fraction_lost=self._statistics.fraction_lost,
            packets_lost=self._statistics.packets_lost,
            highest_sequence=self._statistics.cycles + (self._statistics.max_seq or 0),
            jitter=self._statistics.jitter & 0xFFFFFFFF,
            lsr=last_report,
            dlsr=delay,
        )
