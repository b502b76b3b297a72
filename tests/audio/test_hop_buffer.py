"""Hop buffer and segmenter: which samples go into which step, and with which frame."""

import tracemalloc

import numpy as np
import pytest
from support.fakes import FRAME, HOP, LOOKAHEAD

from letstalk_rt.audio.hop_buffer import HopBuffer
from letstalk_rt.audio.segmenter import SegmentBoundary, Segmenter
from letstalk_rt.audio.speech_resampler import Speech
from letstalk_rt.errors import AudioFormatError

SPLITS = [
    pytest.param([20], id="whole"),
    pytest.param([1] * 20, id="ones"),
    pytest.param([0, 7, 8, 0, 5], id="uneven"),
]


def numbers(count, start=1):
    return np.arange(start, start + count, dtype=np.float32)


def cut(pcm, split):
    return np.split(pcm, np.cumsum(split)[:-1])


def stream(buffer, chunks):
    return [hop for chunk in chunks for hop in buffer.push(chunk)]


@pytest.mark.parametrize("split", SPLITS)
def test_chunks_equal_whole(split):
    buffer = HopBuffer(6)
    hops = stream(buffer, cut(numbers(20), split))
    np.testing.assert_array_equal(hops, numbers(18).reshape(3, 6))
    assert (buffer.pending, buffer.missing) == (2, 4)


def test_the_future_does_not_change_the_past():
    buffer = HopBuffer(6)
    first = buffer.push(numbers(7))[0]
    stream(buffer, [numbers(20, start=90)])
    np.testing.assert_array_equal(first, numbers(6))


def test_a_hop_does_not_change_when_its_source_does():
    buffer, source = HopBuffer(6), numbers(6)
    hop = buffer.push(source)[0]
    source[:] = 0
    np.testing.assert_array_equal(hop, numbers(6))


def test_reset_equals_new():
    buffer = HopBuffer(6)
    buffer.push(numbers(5))
    buffer.reset()
    assert buffer.pending == 0
    np.testing.assert_array_equal(buffer.push(numbers(6)), [numbers(6)])


def test_sessions_do_not_mix():
    one, other = HopBuffer(6), HopBuffer(6)
    one.push(numbers(5))
    other.push(numbers(5, start=50))
    np.testing.assert_array_equal(one.push(numbers(1, start=6)), [numbers(6)])


def test_a_long_stream_takes_no_more_memory_than_a_short_one():
    buffer, chunk = HopBuffer(600), numbers(590)
    tracemalloc.start()
    try:
        stream(buffer, [chunk])
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            buffer.push(chunk)
            buffer.fill()
            buffer.reset()
        assert tracemalloc.get_traced_memory()[0] < before + chunk.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "front, filled",
    [(False, [1, 2, 0, 0, 0, 0]), (True, [0, 0, 0, 0, 1, 2])],
    ids=["back", "front"],
)
def test_a_hop_is_padded_with_silence(front, filled):
    buffer = HopBuffer(6)
    buffer.push(numbers(4))
    buffer.fill()  # leaves old samples in the buffer
    buffer.push(numbers(2))
    np.testing.assert_array_equal(buffer.fill(front=front), filled)
    assert buffer.pending == 0


@pytest.mark.parametrize("pcm", [np.zeros(4, np.int16), np.zeros((2, 2), np.float32), [0.0]])
def test_other_arrays_are_refused(pcm):
    with pytest.raises(AudioFormatError, match="float32"):
        HopBuffer(6).push(pcm)


def speech_of(pcm):
    return Speech(pcm, pcm)


def new_segmenter():
    return Segmenter(HOP, HOP // FRAME, LOOKAHEAD)


def audio_of(hops):
    return np.concatenate([audio.pcm for hop in hops for audio in hop.frame_audio])


def shown_until_end(items):
    """Return the frame audio up to the end mark, and that after it."""
    audio, ends = [], []
    for hop in items:
        if hop.end_after is not None:
            ends.append(len(audio) + hop.end_after)
        audio += hop.frame_audio
    assert len(ends) == 1, ends
    return audio[: ends[0]], audio[ends[0] :]


def test_audio_is_delayed_by_the_look_ahead():
    speech = numbers(2 * HOP)
    hops = new_segmenter().push(speech_of(speech))
    np.testing.assert_array_equal(np.concatenate([hop.pcm for hop in hops]), speech)
    delay = LOOKAHEAD * FRAME
    np.testing.assert_array_equal(audio_of(hops), np.pad(speech, (delay, 0))[: speech.size])


@pytest.mark.parametrize("count", [1, 2 * FRAME, 2 * FRAME + 1, HOP, HOP + 1])
def test_a_segment_ends_with_the_frame_of_its_last_sample(count):
    segmenter, speech = new_segmenter(), numbers(count)
    items = segmenter.push(speech_of(speech)) + segmenter.end_segment()
    before, after = shown_until_end(items)
    assert len(before) == LOOKAHEAD + -(-count // FRAME)
    shown = np.concatenate([audio.pcm for audio in before])
    np.testing.assert_array_equal(shown[LOOKAHEAD * FRAME :][:count], speech)
    assert sum(audio.spoken for audio in before) == count
    assert {audio.segment_id for audio in before} == {0}
    assert {audio.segment_id for audio in after} <= {1}
    assert len(after) < HOP // FRAME, "one hop too many"
    assert all(audio.spoken == 0 and not audio.pcm.any() for audio in after)


def test_a_segment_without_speech_ends_without_frames():
    segmenter = new_segmenter()
    assert segmenter.end_segment() == [SegmentBoundary(0)]
    segmenter.push(speech_of(numbers(100)))
    segmenter.end_segment()
    assert segmenter.end_segment() == [SegmentBoundary(2)]


def test_an_end_after_idle_needs_no_more_frames():
    segmenter = new_segmenter()
    segmenter.push(speech_of(numbers(HOP)))
    segmenter.fill()
    assert segmenter.end_segment() == [SegmentBoundary(0)]


def test_an_end_early_in_idle_needs_no_second_hop():
    segmenter = new_segmenter()
    segmenter.push(speech_of(numbers(HOP + 3 * FRAME)))
    segmenter.fill()  # speech, then one frame of silence: one frame of look-ahead is missing
    before, _ = shown_until_end(segmenter.end_segment())
    assert len(before) == 1


def test_the_next_segment_begins_on_a_hop_with_its_own_number():
    segmenter = new_segmenter()
    first = segmenter.push(speech_of(numbers(100))) + segmenter.end_segment()
    second = segmenter.push(speech_of(numbers(HOP, start=500))) + segmenter.end_segment()
    assert second[0].pcm[0] == 500
    ids = [audio.segment_id for hop in first + second for audio in hop.frame_audio]
    assert ids == sorted(ids)
    spoken = {audio.segment_id for hop in second for audio in hop.frame_audio if audio.spoken}
    assert spoken == {1}


def test_silence_goes_before_speech_that_begins():
    segmenter = new_segmenter()
    segmenter.fill()
    segmenter.push(speech_of(numbers(100)))
    hop = segmenter.fill()
    np.testing.assert_array_equal(hop.pcm, np.pad(numbers(100), (HOP - 100, 0)))
    assert segmenter.in_speech
    follow = segmenter.fill()
    assert sum(audio.spoken for audio in hop.frame_audio + follow.frame_audio) == 100


def test_silence_goes_after_speech_that_stopped_arriving():
    segmenter = new_segmenter()
    segmenter.push(speech_of(numbers(HOP + 100)))
    hop = segmenter.fill()
    np.testing.assert_array_equal(hop.pcm, np.pad(numbers(100, HOP + 1), (0, HOP - 100)))
    assert not segmenter.in_speech


def test_after_an_end_no_speech_is_expected():
    segmenter = new_segmenter()
    segmenter.push(speech_of(numbers(HOP)))
    assert segmenter.in_speech
    segmenter.end_segment()
    assert not segmenter.in_speech


def test_an_interrupt_leaves_no_old_audio():
    segmenter = new_segmenter()
    segmenter.push(speech_of(numbers(HOP + 100)))
    segmenter.interrupt()
    hops = segmenter.push(speech_of(numbers(HOP, start=5000)))
    np.testing.assert_array_equal(hops[0].pcm, numbers(HOP, start=5000))
    assert not audio_of(hops)[: LOOKAHEAD * FRAME].any()
    assert {audio.segment_id for audio in hops[0].frame_audio} == {1}


def test_an_interrupt_before_any_speech_begins_no_segment():
    segmenter = new_segmenter()
    segmenter.push(speech_of(numbers(0)))
    segmenter.interrupt()
    assert segmenter.segment_id == 0
    segmenter.push(speech_of(numbers(10)))
    segmenter.interrupt()
    segmenter.interrupt()
    assert segmenter.segment_id == 1


def test_an_interrupt_after_an_end_begins_no_segment():
    segmenter = new_segmenter()
    segmenter.push(speech_of(numbers(10)))
    segmenter.end_segment()
    segmenter.interrupt()
    assert segmenter.segment_id == 1
