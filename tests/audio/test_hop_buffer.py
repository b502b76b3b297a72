"""Chunker and segmenter: which samples are heard by which step, and shown with which frame."""

import tracemalloc

import numpy as np
import pytest
from support.fakes import FRAME, HOP, LOOKAHEAD

from letstalk_rt.audio.hop_buffer import HopBuffer
from letstalk_rt.audio.segmenter import SegmentBoundary, Segmenter
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


def stream(chunker, pieces):
    return [hop for piece in pieces for hop in chunker.push(piece)]


@pytest.mark.parametrize("split", SPLITS)
def test_pieces_equal_whole(split):
    chunker = HopBuffer(6)
    hops = stream(chunker, cut(numbers(20), split))
    np.testing.assert_array_equal(hops, numbers(18).reshape(3, 6))
    assert (chunker.pending, chunker.room) == (2, 4)


def test_the_future_does_not_change_the_past():
    chunker = HopBuffer(6)
    first = chunker.push(numbers(7))[0]
    stream(chunker, [numbers(20, start=90)])
    np.testing.assert_array_equal(first, numbers(6))


def test_a_hop_does_not_change_when_its_source_does():
    chunker, source = HopBuffer(6), numbers(6)
    hop = chunker.push(source)[0]
    source[:] = 0
    np.testing.assert_array_equal(hop, numbers(6))


def test_reset_equals_new():
    chunker = HopBuffer(6)
    chunker.push(numbers(5))
    chunker.reset()
    assert chunker.pending == 0
    np.testing.assert_array_equal(chunker.push(numbers(6)), [numbers(6)])


def test_sessions_do_not_mix():
    one, other = HopBuffer(6), HopBuffer(6)
    one.push(numbers(5))
    other.push(numbers(5, start=50))
    np.testing.assert_array_equal(one.push(numbers(1, start=6)), [numbers(6)])


def test_a_long_stream_takes_no_more_memory_than_a_short_one():
    chunker, piece = HopBuffer(600), numbers(590)
    tracemalloc.start()
    try:
        stream(chunker, [piece])
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            chunker.push(piece)
            chunker.fill()
            chunker.reset()
        assert tracemalloc.get_traced_memory()[0] < before + piece.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "front, filled",
    [(False, [1, 2, 0, 0, 0, 0]), (True, [0, 0, 0, 0, 1, 2])],
    ids=["back", "front"],
)
def test_what_is_missing_is_silence(front, filled):
    chunker = HopBuffer(6)
    chunker.push(numbers(4))
    chunker.fill()  # leaves old samples in the buffer
    chunker.push(numbers(2))
    np.testing.assert_array_equal(chunker.fill(front=front), filled)
    assert chunker.pending == 0


@pytest.mark.parametrize("pcm", [np.zeros(4, np.int16), np.zeros((2, 2), np.float32), [0.0]])
def test_other_arrays_are_refused(pcm):
    with pytest.raises(AudioFormatError, match="float32"):
        HopBuffer(6).push(pcm)


def new_segmenter():
    return Segmenter(HOP, HOP // FRAME, LOOKAHEAD)


def sound_of(hops):
    return np.concatenate([sound.pcm for hop in hops for sound in hop.frame_audio])


def shown_until_end(items):
    """Sounds up to the end mark, and those after it."""
    sounds, ends = [], []
    for hop in items:
        if hop.end_after is not None:
            ends.append(len(sounds) + hop.end_after)
        sounds += hop.frame_audio
    assert len(ends) == 1, ends
    return sounds[: ends[0]], sounds[ends[0] :]


def test_sound_is_delayed_by_the_look_ahead():
    speech = numbers(2 * HOP)
    hops = new_segmenter().push(speech)
    np.testing.assert_array_equal(np.concatenate([hop.pcm for hop in hops]), speech)
    delay = LOOKAHEAD * FRAME
    np.testing.assert_array_equal(sound_of(hops), np.pad(speech, (delay, 0))[: speech.size])


@pytest.mark.parametrize("count", [1, 2 * FRAME, 2 * FRAME + 1, HOP, HOP + 1])
def test_a_segment_ends_with_the_frame_of_its_last_sample(count):
    segmenter, speech = new_segmenter(), numbers(count)
    items = segmenter.push(speech) + segmenter.end_segment()
    before, after = shown_until_end(items)
    assert len(before) == LOOKAHEAD + -(-count // FRAME)
    shown = np.concatenate([sound.pcm for sound in before])
    np.testing.assert_array_equal(shown[LOOKAHEAD * FRAME :][:count], speech)
    assert sum(sound.spoken for sound in before) == count
    assert {sound.segment_id for sound in before} == {0}
    assert {sound.segment_id for sound in after} <= {1}
    assert len(after) < HOP // FRAME, "a hop too many"
    assert all(sound.spoken == 0 and not sound.pcm.any() for sound in after)


def test_a_segment_without_speech_ends_without_frames():
    segmenter = new_segmenter()
    assert segmenter.end_segment() == [SegmentBoundary(0)]
    segmenter.push(numbers(100))
    segmenter.end_segment()
    assert segmenter.end_segment() == [SegmentBoundary(2)]


def test_an_end_that_comes_after_idle_needs_no_more_frames():
    segmenter = new_segmenter()
    segmenter.push(numbers(HOP))
    segmenter.fill()
    assert segmenter.end_segment() == [SegmentBoundary(0)]


def test_an_end_that_comes_early_in_idle_needs_no_second_hop():
    segmenter = new_segmenter()
    segmenter.push(numbers(HOP + 3 * FRAME))
    segmenter.fill()  # speech, then one frame of silence: one frame of look-ahead is missing
    before, _ = shown_until_end(segmenter.end_segment())
    assert len(before) == 1


def test_the_next_segment_begins_on_a_hop_with_its_own_number():
    segmenter = new_segmenter()
    first = segmenter.push(numbers(100)) + segmenter.end_segment()
    second = segmenter.push(numbers(HOP, start=500)) + segmenter.end_segment()
    assert second[0].pcm[0] == 500
    ids = [sound.segment_id for hop in first + second for sound in hop.frame_audio]
    assert ids == sorted(ids)
    spoken = {sound.segment_id for hop in second for sound in hop.frame_audio if sound.spoken}
    assert spoken == {1}


def test_silence_goes_before_speech_that_begins():
    segmenter = new_segmenter()
    segmenter.fill()
    segmenter.push(numbers(100))
    hop = segmenter.fill()
    np.testing.assert_array_equal(hop.pcm, np.pad(numbers(100), (HOP - 100, 0)))
    assert segmenter.in_speech
    follow = segmenter.fill()
    assert sum(sound.spoken for sound in hop.frame_audio + follow.frame_audio) == 100


def test_silence_goes_after_speech_that_stopped_coming():
    segmenter = new_segmenter()
    segmenter.push(numbers(HOP + 100))
    hop = segmenter.fill()
    np.testing.assert_array_equal(hop.pcm, np.pad(numbers(100, HOP + 1), (0, HOP - 100)))
    assert not segmenter.in_speech


def test_after_an_end_no_speech_is_expected():
    segmenter = new_segmenter()
    segmenter.push(numbers(HOP))
    assert segmenter.in_speech
    segmenter.end_segment()
    assert not segmenter.in_speech


def test_an_interrupt_leaves_no_old_sound():
    segmenter = new_segmenter()
    segmenter.push(numbers(HOP + 100))
    segmenter.interrupt()
    hops = segmenter.push(numbers(HOP, start=5000))
    np.testing.assert_array_equal(hops[0].pcm, numbers(HOP, start=5000))
    assert not sound_of(hops)[: LOOKAHEAD * FRAME].any()
    assert {sound.segment_id for sound in hops[0].frame_audio} == {1}


def test_an_interrupt_before_any_speech_begins_no_segment():
    segmenter = new_segmenter()
    segmenter.push(numbers(0))
    segmenter.interrupt()
    assert segmenter.segment_id == 0
    segmenter.push(numbers(10))
    segmenter.interrupt()
    segmenter.interrupt()
    assert segmenter.segment_id == 1


def test_an_interrupt_after_an_end_begins_no_segment():
    segmenter = new_segmenter()
    segmenter.push(numbers(10))
    segmenter.end_segment()
    segmenter.interrupt()
    assert segmenter.segment_id == 1
