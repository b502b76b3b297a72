"""The transport between real peers: roles, codecs, feedback, and what is refused."""

import asyncio
import time

import numpy as np
import pytest
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    pack_remb_fci,
)
from support.server_fakes import Voice, tone
from support.transport_stage import Path, SenderClock, skews_ms, staged

from letstalk_rt.types import SAMPLE_RATE
from letstalk_server.errors import BadOfferError, BadRequestError, IceRestartError
from letstalk_server.session.transport import PeerRole, PeerState
from letstalk_server.settings import Bitrates
from letstalk_server.webrtc.encoders import PACKET_SAMPLES, EncodedUnit
from letstalk_server.webrtc.rtp_sender import BURST, MAX_PENDING


@pytest.fixture(autouse=True)
async def no_task_is_left():
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0.05)
    left = {task.get_name() for task in asyncio.all_tasks() - before if not task.done()}
    assert not any(name.startswith(("feed", "sender", "receiver")) for name in left), left


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_a_viewer_sees_and_hears_in_step(codec):
    states = []
    async with staged() as stage:
        guest = stage.guest(codec=codec)
        clocks = {kind: SenderClock(guest, kind) for kind in ("audio", "video")}
        peer = await stage.connect(guest, state=states.append)
        await guest.until(lambda: len(skews_ms(guest, clocks)) >= 3)
        skews = skews_ms(guest, clocks)
        assert abs(np.median(skews)) < 5, skews
        assert peer.stats().codec == codec
        assert time.monotonic() - peer.last_received_s < 5
    assert states == [PeerState.CONNECTED, PeerState.CLOSED]


async def test_late_pictures_are_still_reported_in_step():
    """Sender reports tell the session's time, not when a slow encoder let a packet go."""
    async with staged() as stage:
        stream = stage.media.video("VP8")
        encode = stream._encode
        stream._encode = lambda *picture: (time.sleep(0.1), encode(*picture))[1]
        guest = stage.guest(codec="VP8")
        clocks = {kind: SenderClock(guest, kind) for kind in ("audio", "video")}
        await stage.connect(guest)
        await guest.until(lambda: len(skews_ms(guest, clocks)) >= 3)
        skews = skews_ms(guest, clocks)
        assert np.abs(np.median(skews)) < 90, skews  # two of three pictures were left out


async def test_several_viewers_cost_one_encoder_and_one_leaving_harms_nobody():
    async with staged() as stage:
        guests = [stage.guest(codec="VP8") for _ in range(3)]
        peers = [await stage.connect(guest) for guest in guests]
        for guest in guests:
            await guest.until(lambda guest=guest: len(guest.video) > 5)
        assert len(stage.media._video_streams) == 1
        assert len(stage.media.video("VP8")._subscriptions) == 3
        await guests[0].close()
        await peers[0].aclose()
        count = len(guests[1].video)
        await guests[1].until(lambda: len(guests[1].video) > count + 10)


async def test_a_publisher_is_heard_and_sees_nothing():
    chunks = asyncio.Queue()
    async with staged() as stage:
        guest = stage.guest(Voice(tone(1.0)), video=False)
        peer = await stage.connect(guest, PeerRole.PUBLISHER, audio=chunks.put_nowait)
        async with asyncio.timeout(20):
            chunks_heard = [await chunks.get() for _ in range(40)]
        pcm = np.concatenate(chunks_heard)
        assert pcm.size == 40 * PACKET_SAMPLES
        spectrum = np.abs(np.fft.rfft(pcm[-SAMPLE_RATE // 5 :]))
        assert np.argmax(spectrum) * 5 == pytest.approx(220, abs=10)
        assert "m=video" not in guest.answer and not guest.audio
        assert peer.stats().packets_sent == 0


async def test_a_publishers_video_is_declined():
    async with staged() as stage:
        guest = stage.guest(Voice(tone(1.0)))
        chunks = asyncio.Queue()
        peer = await stage.connect(guest, PeerRole.PUBLISHER, audio=chunks.put_nowait)
        async with asyncio.timeout(20):
            await chunks.get()
        assert "a=inactive" in guest.answer.split("m=video")[1]
        assert not guest.video and peer.stats().codec is None


async def send_feedback(guest, fmt, fci=b"", media_ssrc=0):
    receiver = guest.receiver("video")
    ssrc = receiver._RTCRtpReceiver__rtcp_ssrc
    packet = RtcpPsfbPacket(fmt=fmt, ssrc=ssrc, media_ssrc=media_ssrc, fci=fci)
    await receiver._send_rtcp(packet)


async def test_key_frame_requests_and_bandwidth_estimates_are_honoured():
    async with staged(bitrates=Bitrates(800_000, 200_000, 900_000)) as stage:
        guest = stage.guest(codec="VP8")
        peer = await stage.connect(guest)
        await guest.until(lambda: len(guest.video) > 5)
        ssrc = stage.peers[0]._senders[1]._ssrc
        keys_before = peer.stats().key_frames
        await send_feedback(guest, RTCP_PSFB_PLI, media_ssrc=ssrc)
        await send_feedback(guest, RTCP_PSFB_FIR, ssrc.to_bytes(4, "big") + b"\1\0\0\0")
        await send_feedback(guest, RTCP_PSFB_FIR, b"\0" * 8)  # somebody else's
        await guest.until(lambda: peer.stats().key_frames == keys_before + 2)
        assert "ccm fir" in guest.answer
        receiver = guest.receiver("video")
        receiver._RTCRtpReceiver__remote_bitrate_estimator.add = lambda **packet: None
        sender = stage.peers[0]._senders[1]
        sender._sent.note = lambda octets, now_s: None
        sender._sent.bit_s = 800_000.0
        await send_feedback(guest, RTCP_PSFB_APP, pack_remb_fci(300_000, [ssrc]))
        await guest.until(lambda: peer.stats().bitrate == 300_000)
        for damaged in (b"REMB", b"REMB\xff\xff\xff\xff", b"", b"XXXX"):
            await send_feedback(guest, RTCP_PSFB_APP, damaged)
        count = len(guest.video)
        await guest.until(lambda: len(guest.video) > count + 10)


async def test_loss_delay_reordering_and_an_outage_are_survived_in_step():
    async with staged() as stage:
        guest = stage.guest(codec="VP8")
        clocks = {kind: SenderClock(guest, kind) for kind in ("audio", "video")}
        peer = stage.open()
        answer = await peer.answer(await guest.offer())
        down = Path(peer._pc, loss=0.05, delay_s=0.04, jitter_s=0.03, seed=1)
        up = Path(guest.pc, loss=0.02, delay_s=0.04, seed=2)
        await guest.accept(answer)
        await guest.until(lambda: len(guest.video) > 50 and len(skews_ms(guest, clocks)) >= 3)
        assert np.abs(np.median(skews_ms(guest, clocks))) < 40
        assert down.lost and peer.stats().packets_resent

        down.is_scene_change = up.is_scene_change = True
        await asyncio.sleep(3)
        down.is_scene_change = up.is_scene_change = False
        guest.forget()
        await guest.until(lambda: len(guest.video) > 25 and len(skews_ms(guest, clocks)) >= 5)
        assert np.abs(np.median(skews_ms(guest, clocks))) < 40
        assert peer.state is PeerState.CONNECTED


async def test_a_voice_over_a_bad_path_keeps_its_time():
    chunks = asyncio.Queue()
    async with staged() as stage:
        guest = stage.guest(Voice(tone(1.0)), video=False)
        peer = stage.open(PeerRole.PUBLISHER, audio=chunks.put_nowait)
        answer = await peer.answer(await guest.offer())
        Path(guest.pc, loss=0.05, delay_s=0.03, jitter_s=0.03, seed=3)
        await guest.accept(answer)
        async with asyncio.timeout(20):
            chunks_heard = [await chunks.get() for _ in range(120)]
        assert peer.stats().concealed_ms > 0
        assert np.concatenate(chunks_heard).size == 120 * PACKET_SAMPLES


async def test_a_flood_of_retransmission_requests_is_bounded():
    async with staged() as stage:
        guest = stage.guest(codec="VP8")
        peer = await stage.connect(guest)
        await guest.until(lambda: len(guest.video) > 25)
        sender = stage.peers[0]._senders[1]
        kept = [entry[0] for entry in sender._history.values()]
        for _ in range(2000 // len(kept) + 1):
            for sequence in kept:
                sender._resend(sequence)
        assert peer.stats().packets_resent <= 400


async def test_a_large_picture_leaves_in_bursts_and_what_comes_too_soon_after_it_is_refused():
    async with staged() as stage:
        guest = stage.guest(codec="VP8")
        peer = await stage.connect(guest)
        await guest.until(lambda: len(guest.video) > 5)
        sender = stage.peers[0]._senders[1]
        small, large = (
            EncodedUnit([b"\x10" + bytes(99)] * count, 90_000, True)
            for count in (MAX_PENDING - BURST, 2 * MAX_PENDING)
        )
        before = peer.stats().packets_sent
        assert sender._deliver(small) and sender._deliver(small)
        assert peer.stats().packets_sent == before + BURST  # the second waits for the first
        assert sender._deliver(large) is False
        await guest.until(lambda: not sender._pending)
        assert sender._deliver(large)


OFFERS = {
    "no-sdp": "hello",
    "empty": "",
    "no-media": "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n",
    "long": "v=0\r\n" * 20_000,
    "two-videos": "v=0\r\nm=video 9 X 96\r\nm=video 9 X 96\r\nm=audio 9 X 97\r\n",
    "unknown-kind": "v=0\r\nm=audio 9 X 97\r\nm=text 9 X 98\r\n",
}


@pytest.mark.parametrize("role", list(PeerRole))
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
async def test_offers_that_cannot_be_used_are_refused_in_words(role, offer):
    async with staged() as stage:
        peer = stage.open(role)
        with pytest.raises(BadOfferError):
            await peer.answer(offer)
        await peer.aclose()
        assert peer.state is PeerState.CLOSED


async def test_candidates_may_come_later_and_bad_ones_are_refused():
    async with staged() as stage:
        guest = stage.guest()
        offer = await guest.offer()
        lines = offer.split("\r\n")
        candidates = [line for line in lines if line.startswith("a=candidate:")]
        peer = stage.open()
        bare = [line for line in lines if not line.startswith(("a=candidate", "a=end-of"))]
        answer = await peer.answer("\r\n".join(bare))
        ufrag = next(line for line in lines if line.startswith("a=ice-ufrag:"))
        fragment = "\r\n".join([ufrag, "m=audio 9 X 0", "a=mid:0", *candidates])
        await peer.trickle(fragment)
        await guest.accept(answer)
        await guest.until(lambda: len(guest.video) > 3)
        for bad, error in [
            ("a=ice-ufrag:other\r\n", IceRestartError),
            ("a=candidate:1 1 udp 1 1.2.3.4 9 typ host\r\n", BadRequestError),
            ("a=mid:0\r\na=candidate:x\r\n", BadRequestError),
            ("a=mid:0\r\n" + (candidates[0] + "\r\n") * 100, BadRequestError),
            ("x" * 20_000, BadRequestError),
        ]:
            with pytest.raises(error):
                await peer.trickle(bad)
