"""A peer whose address changes without its knowledge is followed, and nobody else can move it."""

import asyncio
import socket

from support.aiortc_internals import Arrivals
from support.server_fakes import Voice, tone
from support.transport_stage import staged

from letstalk_server.session.transport import PeerRole, PeerState

RTP = b"\x80\x60" + bytes(40)


async def test_a_peer_behind_a_router_that_gives_it_another_address_keeps_its_connection():
    async with staged() as stage:
        guest = stage.guest(Voice(tone(1.0)))
        peer = await stage.connect(guest, PeerRole.TALKER)
        await guest.until(lambda: len(guest.video) > 3)
        ours, theirs = Arrivals(stage.connections[0]), Arrivals(guest.pc)
        port = await theirs.rebind()
        assert ours.peer_port != port
        await guest.until(lambda: ours.peer_port == port)
        count = len(guest.video)
        await guest.until(lambda: len(guest.video) > count + 5)
        assert peer.state is PeerState.CONNECTED
    await theirs.close_left_behind()


async def test_a_stranger_who_sends_packets_does_not_receive_what_is_not_his():
    async with staged() as stage:
        guest = stage.guest()
        await stage.connect(guest)
        await guest.until(lambda: len(guest.video) > 3)
        ours = Arrivals(stage.connections[0])
        port, host = ours.peer_port, ours.own_host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            stranger.bind((host, 0))
            received = []
            for _ in range(30):
                stranger.sendto(RTP, (host, ours.own_port))
                await asyncio.sleep(0.05)
                try:
                    received.append(stranger.recv(2000))
                except BlockingIOError:
                    continue
        assert ours.peer_port == port
        assert all(packet[0] < 4 for packet in received), "he got more than checks"
        assert 0 < len(received) < 10, "a check was expected, and no flood of them"
