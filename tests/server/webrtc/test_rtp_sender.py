"""The RTP sender without a network: bursts, retransmission, key frame requests, bandwidth."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpCodecParameters,
    RTCRtpSendParameters,
)
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtpPacket,
    is_rtcp,
    pack_remb_fci,
)
from support import virtual_time
from support.aiortc_internals import FakeDtlsTransport

from letstalk_server.session.playout import SlotPlayout
from letstalk_server.settings import Bitrates
from letstalk_server.webrtc.encoded_streams import EncodedVideo, Subscription
from letstalk_server.webrtc.encoders import EncodedUnit
from letstalk_server.webrtc.outages import SILENT_S, SKIPPED
from letstalk_server.webrtc.rtp_sender import (
    BURST,
    HISTORY,
    MAX_PENDING,
    PACING,
    PACKET_BYTES,
    RtpSender,
)
from letstalk_server.webrtc.sending_rates import RETRANSMISSIONS_PER_S, RETRANSMITTED_SHARE

BITRATES = Bitrates(800_000, 200_000, 900_000)
PARAMETERS = RTCRtpSendParameters(
    codecs=[RTCRtpCodecParameters("video/VP8", clockRate=90_000, payloadType=96)],
    rtcp=RTCRtcpParameters(cname="test", mux=True),
)


class RecordedVideo(EncodedVideo):
    """A stream that the test drives: it encodes nothing and counts key frame requests."""

    def __init__(self, playout, executor):
        self.key_frame_requests = 0
        super().__init__(playout, "VP8", BITRATES, executor)

    def subscribe(self, deliver, on_end=lambda: None):
        self.deliver, self.subscription = deliver, Subscription(self, deliver, on_end)
        return self.subscription

    def request_key_frame(self):
        self.key_frame_requests += 1


class Scene:
    """A sender that has started, its stream and the packets that it sent."""

    def __init__(self, executor):
        loop = asyncio.get_running_loop()
        still = np.zeros((2, 2, 3), np.uint8)
        self.stream = RecordedVideo(SlotPlayout(still, clock=loop.time), executor)
        self.transport = FakeDtlsTransport()
        media = SimpleNamespace(video=lambda codec: self.stream)
        self.sender = RtpSender(
            "video", self.transport, media, BITRATES, lambda: None, monotonic=loop.time
        )

    def packets(self):
        return [RtpPacket.parse(data) for data in self.transport.sent if not is_rtcp(data)]

    def send(self, count, size=100):
        """Send a frame of `count` packets; return whether the sender took it."""
        return self.stream.deliver(EncodedUnit([bytes(size)] * count, 90_000, True))

    async def feedback(self, fmt, fci=b"", media_ssrc=0):
        packet = RtcpPsfbPacket(fmt=fmt, ssrc=1, media_ssrc=media_ssrc, fci=fci)
        await self.transport.receive(packet)

    async def report(self, lost_ratio):
        block = RtcpReceiverInfo(
            ssrc=self.packets()[0].ssrc,
            fraction_lost=round(lost_ratio * 256),
            packets_lost=0,
            highest_sequence=0,
            jitter=0,
            lsr=0,
            dlsr=0,
        )
        await self.transport.receive(RtcpRrPacket(ssrc=1, reports=[block]))

    async def nack(self, *lost):
        ssrc = self.packets()[0].ssrc
        packet = RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=1, media_ssrc=ssrc, lost=list(lost))
        await self.transport.receive(packet)


@pytest.fixture
def play():
    """Run a scene in virtual time."""

    def play(body):
        async def run():
            with ThreadPoolExecutor(1) as executor:
                scene = Scene(executor)
                await scene.sender.send(PARAMETERS)
                await body(scene)
                await scene.sender.stop()

        virtual_time.run(run())

    return play


def test_a_large_frame_is_sent_in_bursts_and_a_frame_that_comes_too_soon_is_dropped(play):
    async def scene(stage):
        assert stage.send(MAX_PENDING - BURST) and stage.send(MAX_PENDING - BURST)
        assert len(stage.packets()) == BURST, "the second frame waits for the first"
        assert not stage.send(2 * MAX_PENDING)
        await asyncio.sleep(1)
        packets = stage.packets()
        assert len(packets) == 2 * (MAX_PENDING - BURST)
        first = packets[0].sequence_number
        numbers = [(packet.sequence_number - first) % 2**16 for packet in packets]
        assert numbers == list(range(len(packets)))
        assert sum(packet.marker for packet in packets) == 2
        assert stage.send(2 * MAX_PENDING)

    play(scene)


def test_a_lost_packet_is_sent_again_and_one_that_is_too_old_costs_a_key_frame(play):
    async def scene(stage):
        stage.send(3)
        lost = stage.packets()[1]
        await stage.nack(lost.sequence_number)
        assert stage.packets()[3].sequence_number == lost.sequence_number
        assert stage.packets()[3].payload == lost.payload
        await stage.nack((lost.sequence_number - HISTORY) % 2**16)
        assert len(stage.packets()) == 4 and stage.stream.key_frame_requests == 1

    play(scene)


def test_a_flood_of_retransmission_requests_is_bounded(play):
    async def scene(stage):
        stage.send(BURST)
        lost = [packet.sequence_number for packet in stage.packets()]
        for _ in range(100):
            await stage.nack(*lost)
        assert len(stage.packets()) == BURST + RETRANSMISSIONS_PER_S
        await asyncio.sleep(1.01)
        await stage.nack(*lost)
        assert len(stage.packets()) == BURST + RETRANSMISSIONS_PER_S + BURST

    play(scene)


def test_key_frame_requests_for_this_stream_reach_its_encoder(play):
    async def scene(stage):
        stage.send(1)
        ssrc = stage.packets()[0].ssrc
        await stage.feedback(RTCP_PSFB_PLI, media_ssrc=ssrc)
        await stage.feedback(RTCP_PSFB_FIR, ssrc.to_bytes(4, "big") + b"\1\0\0\0")
        await stage.feedback(RTCP_PSFB_FIR, b"\0" * 8)  # another stream's
        assert stage.stream.key_frame_requests == 2

    play(scene)


def test_an_estimate_below_what_is_sent_lowers_the_bitrate_and_damaged_ones_are_ignored(play):
    async def scene(stage):
        for _ in range(100):  # 800 kbit/s
            stage.send(2, size=2000)
            await asyncio.sleep(0.04)
        ssrc = stage.packets()[0].ssrc
        for damaged in (b"REMB", b"REMB\xff\xff\xff\xff", b"", b"XXXX"):
            await stage.feedback(RTCP_PSFB_APP, damaged)
        assert stage.stream.subscription.bitrate is None
        await stage.feedback(RTCP_PSFB_APP, pack_remb_fci(300_000, [ssrc]))
        assert stage.stream.subscription.bitrate == 300_000

    play(scene)


def test_on_a_slow_line_a_large_frame_does_not_fill_the_routers_queue(play):
    async def scene(stage):
        for _ in range(100):  # 800 kbit/s
            stage.send(2, size=2000)
            await asyncio.sleep(0.04)
        ssrc, before = stage.packets()[0].ssrc, len(stage.packets())
        await stage.feedback(RTCP_PSFB_APP, pack_remb_fci(300_000, [ssrc]))
        stage.send(20, size=1200)
        assert len(stage.packets()) == before + 1, "one packet takes more than a burst's 10 ms"
        await asyncio.sleep(0.1)
        sent = len(stage.packets()) - before
        assert 1200 * 8 * (sent - 1) <= PACING * 300_000 * 0.1, "it exceeds the paced rate"
        await asyncio.sleep(0.5)
        assert len(stage.packets()) == before + 20

    play(scene)


def test_on_a_slow_line_fewer_packets_are_sent_again(play):
    async def scene(stage):
        for _ in range(100):
            stage.send(2, size=2000)
            await asyncio.sleep(0.04)
        packets = stage.packets()
        await stage.feedback(RTCP_PSFB_APP, pack_remb_fci(300_000, [packets[0].ssrc]))
        await stage.nack(*[packet.sequence_number for packet in packets[-200::2]])
        again = len(stage.packets()) - len(packets)
        assert 0 < 8 * PACKET_BYTES * again <= RETRANSMITTED_SHARE * 300_000

    play(scene)


def test_a_peer_that_comes_back_after_an_outage_gets_a_new_beginning_and_nothing_of_before(play):
    async def scene(stage):
        stage.send(3)
        await stage.report(0.0)
        ssrc, last = stage.packets()[0].ssrc, stage.packets()[-1].sequence_number
        await asyncio.sleep(SILENT_S + 0.1)
        await stage.report(0.9)
        assert stage.stream.key_frame_requests == 1 and stage.stream.subscription.lost_ratio == 0
        await stage.nack(last, (last + 1) % 2**16)
        assert len(stage.packets()) == 3, "what was lost is not sent again"
        stage.send(2)
        first = stage.packets()[3].sequence_number
        assert (first - last - 1) % 2**16 == SKIPPED
        await stage.nack(*[(first - back) % 2**16 for back in range(128, 0, -1)], first)
        assert [packet.sequence_number for packet in stage.packets()[5:]] == [first]
        assert stage.stream.key_frame_requests == 1, "the skipped numbers are no loss"
        await stage.feedback(RTCP_PSFB_PLI, media_ssrc=ssrc)
        assert stage.stream.key_frame_requests == 2

    play(scene)


def test_a_gap_that_is_too_long_to_repair_costs_one_key_frame_in_place_of_the_packets(play):
    async def scene(stage):
        for _ in range(100):
            stage.send(2, size=2000)
            await asyncio.sleep(0.04)
        packets = stage.packets()
        numbers = [packet.sequence_number for packet in packets[-100:]]
        await stage.feedback(RTCP_PSFB_APP, pack_remb_fci(300_000, [packets[0].ssrc]))
        for _ in range(3):
            await stage.nack(*numbers)
        assert len(stage.packets()) == len(packets) and stage.stream.key_frame_requests == 1
        stage.send(1)
        await stage.nack(*numbers)
        assert len(stage.packets()) == len(packets) + 1

    play(scene)


def test_packets_after_a_new_beginning_are_sent_again_also_when_numbers_wrap(play):
    async def scene(stage):
        stage.send(1)
        await stage.report(0.0)
        await asyncio.sleep(SILENT_S + 0.1)
        await stage.report(0.0)
        for _ in range(2**16 // BURST + 1):
            stage.send(BURST)
        lost = stage.packets()[-1]
        await stage.nack(lost.sequence_number)
        assert stage.packets()[-1].sequence_number == lost.sequence_number
        assert len(stage.packets()) == 1 + 2**16 + BURST + 1

    play(scene)


def test_a_receiver_that_reports_seldom_is_taken_for_one_that_was_cut_off_only_once(play):
    async def scene(stage):
        stage.send(1)
        for _ in range(20):
            await stage.report(0.0)
            await asyncio.sleep(5)
        assert stage.stream.key_frame_requests == 1

    play(scene)


def test_a_very_long_gap_is_not_repaired_on_a_fast_line_either(play):
    async def scene(stage):
        for _ in range(32):
            stage.send(BURST)
        lost = [packet.sequence_number for packet in stage.packets()][-128:]
        await stage.nack(*lost)
        assert len(stage.packets()) == 32 * BURST and stage.stream.key_frame_requests == 1

    play(scene)
