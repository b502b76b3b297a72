"""The private attributes of aiortc that tests need; nothing else in tests/ touches them."""

from types import SimpleNamespace

from aiortc.rtp import RtcpPacket


def set_jitter_buffer(receiver, buffer):
    """Replace the jitter buffer of an RTCRtpReceiver."""
    receiver._RTCRtpReceiver__jitter_buffer = buffer


def observe_packets(receiver, on_rtp, on_rtcp):
    """Call `on_rtp` and `on_rtcp` with each packet that an RTCRtpReceiver receives."""
    handle_rtp, handle_rtcp = receiver._handle_rtp_packet, receiver._handle_rtcp_packet

    async def observe_rtp(packet, arrival_time_ms):
        on_rtp(packet)
        await handle_rtp(packet, arrival_time_ms)

    async def observe_rtcp(packet):
        on_rtcp(packet)
        await handle_rtcp(packet)

    receiver._handle_rtp_packet, receiver._handle_rtcp_packet = observe_rtp, observe_rtcp


def intercept_sent(pc, send):
    """Send the packets of a peer connection by the coroutine `send`; return the original one."""
    ice = pc.getTransceivers()[0].sender.transport.transport
    original, ice._send = ice._send, send
    return original


class FakeDtlsTransport:
    """The part of RTCDtlsTransport that an RTP sender uses; records what is sent."""

    state = "connected"

    def __init__(self):
        self.sent = []
        self._rtp_router = SimpleNamespace(senders={})
        self._sender = None

    def _register_rtp_sender(self, sender, parameters):
        self._sender = sender

    def _unregister_rtp_sender(self, sender):
        self._sender = None

    async def _send_rtp(self, data):
        self.sent.append(data)

    async def _handle_rtp_data(self, data, arrival_time_ms):
        raise NotImplementedError

    async def _handle_rtcp_data(self, data):
        for packet in RtcpPacket.parse(data):
            await self._sender._handle_rtcp_packet(packet)

    async def receive(self, packet):
        """Receive an RTCP packet of the peer."""
        await self._handle_rtcp_data(bytes(packet))
