"""The transport between real peers: roles, codecs, bad networks, and offers that are refused."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.server_fakes import Voice, tone
from support.transport_stage import Path, SenderClock, skews_ms, staged

from letstalk_rt.types import SAMPLE_RATE
from letstalk_server.errors import BadOfferError, BadRequestError, IceRestartError
from letstalk_server.session.transport import PeerRole, PeerState
from letstalk_server.webrtc.encoders import PACKETS_PER_S

PACKET_SAMPLES = SAMPLE_RATE // PACKETS_PER_S


@pytest.fixture(autouse=True)
async def no_task_is_left():
    before = asyncio.all_tasks()
    yield
    names = ("stream", "sender", "receiver")
    left = {t for t in asyncio.all_tasks() - before if t.get_name().startswith(names)}
    if left:
        _, left = await asyncio.wait(left, timeout=1)
    assert not left


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_a_viewer_sees_and_hears_in_step(codec):
    states = []
    async with staged() as stage:
        guest = stage.guest(codec=codec)
        clocks = {kind: SenderClock(guest.pc, kind) for kind in ("audio", "video")}
        peer = await stage.connect(guest, state=states.append)
        await guest.until(lambda: len(skews_ms(guest, clocks)) >= 3)
        skews = skews_ms(guest, clocks)
        assert abs(np.median(skews)) < 5, skews
        assert peer.stats().codec == codec and "ccm fir" in guest.answer
        assert time.monotonic() - peer.last_received_s < 5
    assert states == [PeerState.CONNECTED, PeerState.CLOSED]


class Encoding(ThreadPoolExecutor):
    """Threads that count the frames they encode and take `delay_s` longer for each."""

    def __init__(self, delay_s=0.0):
        super().__init__(4)
        self.count, self._delay_s = 0, delay_s

    def submit(self, encode, *frame):
        self.count += 1
        return super().submit(lambda: (time.sleep(self._delay_s), encode(*frame))[1])


async def test_late_frames_are_still_reported_in_step():
    """Sender reports tell the session's time, not when a slow encoder let a packet go."""
    async with staged(executor=Encoding(delay_s=0.1)) as stage:
        guest = stage.guest(codec="VP8")
        clocks = {kind: SenderClock(guest.pc, kind) for kind in ("audio", "video")}
        await stage.connect(guest)
        await guest.until(lambda: len(skews_ms(guest, clocks)) >= 3)
        skews = skews_ms(guest, clocks)
        assert np.abs(np.median(skews)) < 90, skews  # two of three frames were skipped


async def test_several_viewers_cost_one_encoder_and_one_leaving_harms_nobody():
    encoding = Encoding()
    async with staged(executor=encoding) as stage:
        guests = [stage.guest(codec="VP8") for _ in range(3)]
        peers = [await stage.connect(guest) for guest in guests]
        for guest in guests:
            await guest.until(lambda guest=guest: len(guest.video) > 5)
        count, encoded = len(guests[0].video), encoding.count
        await guests[0].until(lambda: len(guests[0].video) > count + 25)
        assert encoding.count - encoded < 2 * 25
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
            received = [await chunks.get() for _ in range(40)]
        pcm = np.concatenate(received)
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


async def test_loss_delay_reordering_and_an_outage_are_survived_in_step():
    async with staged() as stage:
        guest = stage.guest(codec="VP8")
        clocks = {kind: SenderClock(guest.pc, kind) for kind in ("audio", "video")}
        peer = stage.open()
        answer = await peer.answer(await guest.offer())
        down = Path(stage.connections[0], loss=0.05, delay_s=0.04, jitter_s=0.03, seed=1)
        up = Path(guest.pc, loss=0.02, delay_s=0.04, seed=2)
        await guest.accept(answer)
        await guest.until(lambda: len(guest.video) > 50 and len(skews_ms(guest, clocks)) >= 3)
        assert np.abs(np.median(skews_ms(guest, clocks))) < 40
        assert down.lost

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
            received = [await chunks.get() for _ in range(120)]
        concealed_ms = peer.stats().concealed_ms
        packets, rest = divmod(np.concatenate(received).size, PACKET_SAMPLES)
        # Packets that are lost one after the other are concealed by one chunk, and by nothing else.
        assert rest == 0 and 0 <= 1000 / PACKETS_PER_S * (packets - 120) < concealed_ms


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
