"""Forwards the RTP packets of a published track to its subscribers, undecoded, as an SFU does.

aiortc decodes what it receives and encodes what it sends, and has no hook before or after; so this
file, and no other, reaches into private attributes of its receivers and senders.
"""

from dataclasses import replace

from aiortc import RTCRtpReceiver, RTCRtpSender
from aiortc.rtp import RtcpPsfbPacket, RtcpSrPacket, RtpPacket

_PICTURE_LOSS = 1  # format of the feedback message that asks for a key frame
_OWN_SSRC = 1


class PublishedTrack:
    """A track that a participant sends.

    Args:
        receiver: where it arrives; it must not have been started yet.
    """

    def __init__(self, receiver: RTCRtpReceiver) -> None:
        self._receiver = receiver
        self._subscriptions: list[Subscription] = []
        self._payload_type = self._ssrc = -1
        receiver.receive = self._receive
        receiver._handle_rtp_packet = self._handle_rtp
        receiver._handle_rtcp_packet = self._handle_rtcp

    async def add(self, subscription: "Subscription") -> None:
        """Send all further packets to a subscription too, from a key frame on."""
        self._subscriptions.append(subscription)
        await self.request_key_frame()

    async def request_key_frame(self) -> None:
        """Ask the publisher for a key frame."""
        if self._ssrc >= 0:
            request = RtcpPsfbPacket(fmt=_PICTURE_LOSS, ssrc=_OWN_SSRC, media_ssrc=self._ssrc)
            await _send(self._receiver.transport, bytes(request))

    async def _receive(self, parameters) -> None:
        if self._payload_type < 0:
            self._payload_type = parameters.codecs[0].payloadType
            self._receiver.transport._register_rtp_receiver(self._receiver, parameters)

    async def _handle_rtp(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        if packet.payload_type != self._payload_type or not packet.payload:
            return  # a retransmission, or padding that probes the bandwidth
        is_first, self._ssrc = self._ssrc < 0, packet.ssrc
        if is_first:
            await self.request_key_frame()
        for subscription in self._subscriptions:
            await subscription.forward(packet)

    async def _handle_rtcp(self, packet) -> None:
        if isinstance(packet, RtcpSrPacket):
            for subscription in self._subscriptions:
                await subscription.forward_report(packet)


class Subscription:
    """A track as one subscriber receives it.

    Args:
        sender: where it leaves; it must not have been started yet.
        track: the published track.
        stream_id: the stream that the subscriber's session description names.
        track_id: likewise the track.
    """

    def __init__(
        self, sender: RTCRtpSender, track: PublishedTrack, stream_id: str, track_id: str
    ) -> None:
        self._sender, self._track = sender, track
        self._payload_type = -1
        sender._stream_id, sender._track_id = stream_id, track_id
        sender.send = self._start
        sender._handle_rtcp_packet = self._handle_rtcp

    async def forward(self, packet: RtpPacket) -> None:
        """Send a packet of the publisher."""
        copy = RtpPacket(
            self._payload_type,
            packet.marker,
            packet.sequence_number,
            packet.timestamp,
            self._sender._ssrc,
            packet.payload,
        )
        await _send(self._sender.transport, copy.serialize())

    async def forward_report(self, report: RtcpSrPacket) -> None:
        """Send a sender report of the publisher, which synchronises audio and video."""
        await _send(
            self._sender.transport, bytes(replace(report, ssrc=self._sender._ssrc, reports=[]))
        )

    async def _start(self, parameters) -> None:
        if self._payload_type < 0:
            self._payload_type = parameters.codecs[0].payloadType
            self._sender.transport._register_rtp_sender(self._sender, parameters)
            await self._track.add(self)

    async def _handle_rtcp(self, packet) -> None:
        if isinstance(packet, RtcpPsfbPacket) and packet.fmt == _PICTURE_LOSS:
            await self._track.request_key_frame()


async def _send(transport, data: bytes) -> None:
    if transport.state == "connected":
        await transport._send_rtp(data)
