"""The private attributes of aiortc that tests need; nothing else in tests/ touches them."""

import asyncio
from types import SimpleNamespace

from aioice import ice
from aiortc.rtp import RtcpPacket

from letstalk_server.webrtc.hardening import harden, harden_channel


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

    async def _recv_next(self):
        raise NotImplementedError

    async def _handle_rtp_data(self, data, arrival_time_ms):
        raise NotImplementedError

    async def _handle_rtcp_data(self, data):
        for packet in RtcpPacket.parse(data):
            await self._sender._handle_rtcp_packet(packet)

    async def receive(self, packet):
        """Receive an RTCP packet of the peer."""
        await self._handle_rtcp_data(bytes(packet))


def keep_consent():
    """Let no connection end because its checks are answered late, as on a stopped clock."""
    ice.CONSENT_FAILURES = 10**9


class Arrivals:
    """Where packets arrive at one end of a peer connection, after ICE, SRTP and DTLS.

    Args:
        pc: a connected peer connection.
    """

    def __init__(self, pc):
        self._dtls = pc.getTransceivers()[0].sender.transport
        self._ice = self._dtls.transport._connection
        self._sctp = pc.sctp

    def harden(self):
        """Drop what cannot be processed: for the end of an attacker, which shares the process."""
        harden(self._dtls)
        harden_channel(self._sctp, lambda: None)

    @property
    def is_alive(self):
        """Whether DTLS still passes packets on."""
        return self._dtls.state == "connected"

    @property
    def has_association(self):
        """Whether the SCTP association stands."""
        return self._sctp.state == "connected"

    @property
    def ssrcs(self):
        """The SSRCs that are sent."""
        return list(self._dtls._rtp_router.senders)

    @property
    def credentials(self):
        """User name and password of a connectivity check of the peer."""
        name = f"{self._ice.local_username}:{self._ice.remote_username}"
        return name, self._ice.local_password

    @property
    def sctp_tags(self):
        """The verification tag, and the TSN that is expected next."""
        return self._sctp._local_verification_tag, (self._sctp._last_received_tsn + 1) % 2**32

    @property
    def own_port(self):
        """The port of the socket that is used."""
        return self._ice._nominated[1].local_addr[1]

    @property
    def own_host(self):
        """The address of the socket that is used."""
        return self._ice._nominated[1].local_addr[0]

    @property
    def peer_port(self):
        """The port that packets are sent to."""
        return self._ice._nominated[1].remote_addr[1]

    @property
    def known_addresses(self):
        """How many addresses of the peer are known."""
        return len(self._ice._remote_candidates)

    async def rebind(self):
        """Send from another port from now on, without ICE's knowledge; return that port."""
        protocol = self._ice._nominated[1].protocol
        host = protocol.transport.get_extra_info("sockname")[0]
        loop = asyncio.get_running_loop()
        old = protocol.transport
        protocol.transport, _ = await loop.create_datagram_endpoint(
            lambda: protocol, local_addr=(host, 0)
        )
        self._left_behind = old  # still open: a closed one would end the connection
        return protocol.transport.get_extra_info("sockname")[1]

    async def close_left_behind(self):
        """Close the socket that `rebind` has left behind, after the connection is closed."""
        self._left_behind.abort()
        await asyncio.sleep(0)

    def datagram(self, data, address):
        """Let a datagram arrive at the socket."""
        self._ice._protocols[0].datagram_received(data, address)

    async def rtp(self, data):
        """Let a decrypted RTP packet arrive."""
        await self._dtls._handle_rtp_data(data, arrival_time_ms=0)

    async def rtcp(self, data):
        """Let a decrypted RTCP packet arrive."""
        await self._dtls._handle_rtcp_data(data)

    async def sctp(self, data):
        """Let a decrypted SCTP packet arrive."""
        await self._sctp._handle_data(data)
