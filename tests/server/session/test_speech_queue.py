"""Who is heard, and what waits."""

import asyncio

import numpy as np
import pytest

from letstalk_rt.types import SAMPLES_PER_FRAME
from letstalk_server.errors import BadAudioError, FloorTakenError, SpeechOverflowError
from letstalk_server.protocol.audio_payload import OpusEncoder, make_decoder
from letstalk_server.protocol.client_messages import AudioFormat
from letstalk_server.session.limits import TokenBucket
from letstalk_server.session.speech_queue import FLOOR_S, SpeechQueue

RATE = 16_000


class Listener:
    """An avatar that remembers what it was told."""

    def __init__(self):
        self.heard = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def push_audio(self, pcm, sample_rate):
        self.heard.append((len(pcm), sample_rate))
        await self.may_go_on.wait()

    async def end_segment(self):
        self.heard.append("end")


def sound(seconds):
    return np.zeros(int(seconds * RATE), np.int16)


class Clock:
    def __init__(self):
        self.s = 100.0

    def __call__(self):
        return self.s


@pytest.fixture
async def running():
    """Speech that is carried to a listener."""
    listener, clock = Listener(), Clock()
    speech = SpeechQueue(3.0, clock)

    async def find():
        return listener

    task = asyncio.create_task(speech.run(find))
    yield speech, listener, clock
    task.cancel()
    await asyncio.wait([task])


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_utterances_are_carried_in_order_with_their_end(running):
    speech, listener, _ = running
    speech.push("a", sound(0.1), RATE)
    speech.push("a", sound(0.2), RATE)
    speech.end_segment("a")
    await settle()
    assert listener.heard == [(1600, RATE), (3200, RATE), "end"]


async def test_pushed_sound_goes_before_microphones(running):
    speech, listener, clock = running
    speech.add_microphone("mic")
    speech.push_microphone("mic", sound(0.02), RATE)
    await settle()
    speech.push("agent", sound(0.1), RATE)
    speech.push_microphone("mic", sound(0.02), RATE)
    await settle()
    assert listener.heard == [(320, RATE), (1600, RATE)]
    clock.s += FLOOR_S + 0.1
    speech.push_microphone("mic", sound(0.02), RATE)
    await settle()
    assert listener.heard[-1] == (320, RATE)


async def test_the_newest_microphone_is_heard_and_the_older_one_when_it_goes(running):
    speech, listener, _ = running
    speech.add_microphone("old")
    speech.add_microphone("new")
    speech.push_microphone("old", sound(0.01), RATE)
    speech.push_microphone("new", sound(0.02), RATE)
    speech.release("new")
    speech.push_microphone("old", sound(0.03), RATE)
    await settle()
    assert [size for size, _ in listener.heard] == [320, 480]


async def test_one_speaker_at_a_time_until_it_is_done(running):
    speech, _, clock = running
    speech.push("a", sound(0.1), RATE)
    with pytest.raises(FloorTakenError):
        speech.push("b", sound(0.1), RATE)
    speech.end_segment("a")
    await settle()
    speech.push("b", sound(0.1), RATE)
    await settle()
    clock.s += FLOOR_S + 0.1
    speech.push("a", sound(0.1), RATE)


async def test_what_waits_is_bounded(running):
    speech, listener, _ = running
    listener.may_go_on.clear()
    speech.push("a", sound(2.0), RATE)
    speech.push("a", sound(1.0), RATE)
    with pytest.raises(SpeechOverflowError):
        speech.push("a", sound(0.1), RATE)
    fitting, waiting = [asyncio.create_task(speech.wait_for_space(s)) for s in (0.0, 0.1)]
    await settle()
    assert fitting.done() and not waiting.done()
    listener.may_go_on.set()
    await asyncio.wait_for(waiting, 5)


async def test_who_waited_for_space_may_push(running):
    speech, listener, _ = running
    listener.may_go_on.clear()
    speech.push("a", sound(0.1), RATE)
    speech.push("a", sound(0.2), RATE)
    waiting = asyncio.create_task(speech.wait_for_space(4.0))
    await settle()
    assert not waiting.done()
    with pytest.raises(SpeechOverflowError):
        speech.push("a", sound(4.0), RATE)
    listener.may_go_on.set()
    await asyncio.wait_for(waiting, 5)
    speech.push("a", sound(4.0), RATE)  # longer than the bound: alone it is taken


async def test_rounding_errors_hold_no_floor(running):
    speech, listener, clock = running
    for seconds in (0.1, 0.2):  # 0.1 + 0.2 - 0.1 - 0.2 > 0
        speech.push("a", sound(seconds), RATE)
    await settle()
    clock.s += FLOOR_S + 0.1
    speech.push("b", sound(0.1), RATE)
    await settle()
    assert [size for size, _ in listener.heard] == [1600, 3200, 1600]


async def test_a_microphone_nobody_hears_keeps_the_newest_half_second(running):
    speech, listener, _ = running
    listener.may_go_on.clear()
    speech.add_microphone("mic")
    for _ in range(100):
        speech.push_microphone("mic", sound(0.02), RATE)
        await asyncio.sleep(0)
    assert speech.clear() == pytest.approx(0.5, abs=0.05)


async def test_an_interrupt_forgets_what_waits(running):
    speech, listener, _ = running
    listener.may_go_on.clear()
    speech.push("a", sound(1.0), RATE)
    await settle()
    speech.push("a", sound(1.5), RATE)
    assert speech.clear() == pytest.approx(1.5), "the first second is with the avatar already"
    listener.may_go_on.set()
    await settle()
    assert listener.heard == [(RATE, RATE)]
    speech.push("b", sound(0.1), RATE)


def test_a_rate_allows_a_burst_and_then_so_many_a_second():
    clock = Clock()
    rate = TokenBucket(10, clock)
    assert sum(rate.take() for _ in range(100)) == 20
    clock.s += 0.5
    assert sum(rate.take() for _ in range(100)) == 5


def test_opus_of_ours_is_read_by_us():
    encode, decode = OpusEncoder(), make_decoder(AudioFormat("opus", 48_000))
    tone = np.sin(np.arange(SAMPLES_PER_FRAME * 10) * 2 * np.pi * 300 / RATE).astype(np.float32) / 2
    packets = [packet for piece in np.split(tone, 10) for packet in encode(piece)]
    heard = np.concatenate([decode(packet) for packet in packets])
    assert len(packets) == 20 and abs(len(heard) - 3 * len(tone)) <= 3 * 640
    assert 0.3 < np.abs(heard[3000:-3000]).max() < 0.7


def test_pcm_must_be_whole_samples():
    assert make_decoder(AudioFormat())(b"\x01\x00\xff\xff").tolist() == [1, -1]
    assert make_decoder(AudioFormat(channels=2))(bytes(8)).shape == (2, 2)
    for form, data in ((AudioFormat(), b"\x00"), (AudioFormat(channels=2), bytes(6))):
        with pytest.raises(BadAudioError):
            make_decoder(form)(data)
