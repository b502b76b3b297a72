"""The microphone path: reordering, concealment, damaged packets, bounded buffers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.opus import PACKET_SAMPLES, opus_packets

from letstalk_rt.types import SAMPLE_RATE
from letstalk_server.webrtc.microphone_path import (
    CLOCK_HZ,
    FADE_SAMPLES,
    MAX_GAP_TICKS,
    AudioGap,
    Downsampler,
    LossConcealer,
    MicrophonePath,
    ReorderBuffer,
)

HEARD = PACKET_SAMPLES * SAMPLE_RATE // CLOCK_HZ
"""Samples that come out for a packet."""


def push(reorder, *numbers, first_time=0):
    given = []
    for number in numbers:
        time = (first_time + number * PACKET_SAMPLES) & 0xFFFFFFFF
        given += reorder.push(number & 0xFFFF, time, bytes([number & 0xFF]))
    return [item.samples if isinstance(item, AudioGap) else item[0] for item in given]


def test_packets_in_order_pass_at_once():
    reorder = ReorderBuffer()
    for number in range(10):
        assert push(reorder, number) == [number]


def test_swapped_packets_are_put_in_order_and_late_ones_dropped():
    reorder = ReorderBuffer()
    assert push(reorder, 0, 2) == [0]
    assert push(reorder, 1) == [1, 2]
    assert push(reorder, 1) == []


def test_a_lost_packet_is_given_up_after_three_others_and_its_length_is_told():
    reorder = ReorderBuffer()
    assert push(reorder, 0, 2, 3) == [0]
    assert push(reorder, 4) == [PACKET_SAMPLES, 2, 3, 4]


def test_numbers_and_times_wrap_around():
    reorder = ReorderBuffer()
    numbers = range(65_534, 65_540)
    shown = push(reorder, *numbers, first_time=2**32 - 65_536 * PACKET_SAMPLES)
    assert shown == [number & 0xFF for number in numbers]


def test_an_outage_is_not_filled_with_silence_that_nobody_waits_for():
    reorder = ReorderBuffer()
    push(reorder, 0)
    far = MAX_GAP_TICKS // PACKET_SAMPLES + 5
    assert push(reorder, far, far + 1, far + 2) == [0, far, far + 1, far + 2]
    assert push(reorder, 5000)[0] == 0  # a leap: another stream begins


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 65_535), st.integers(0, 2**32 - 1)), max_size=200))
def test_any_numbers_give_each_packet_at_most_once_and_hold_little(packets):
    reorder, given = ReorderBuffer(), []
    for count, (sequence, timestamp) in enumerate(packets):
        given += reorder.push(sequence, timestamp, count.to_bytes(2, "big"))
        assert len(reorder) < 3
    payloads = [item for item in given if not isinstance(item, AudioGap)]
    assert len(payloads) == len(set(payloads))
    assert all(0 <= item.samples <= MAX_GAP_TICKS for item in given if isinstance(item, AudioGap))


def test_a_gap_begins_and_ends_without_a_click():
    concealer = LossConcealer()
    t = np.arange(3 * PACKET_SAMPLES) / CLOCK_HZ
    tone = np.sin(2 * np.pi * 440 * t).astype(np.float32)
    sound = np.concatenate(
        [
            concealer.pass_through(tone[:PACKET_SAMPLES]),
            concealer.conceal(PACKET_SAMPLES),
            concealer.pass_through(tone[2 * PACKET_SAMPLES :]),
        ]
    )
    assert sound.size == tone.size
    assert np.abs(np.diff(sound)).max() < 1.5 * np.abs(np.diff(tone)).max()
    assert not sound[PACKET_SAMPLES + FADE_SAMPLES : 2 * PACKET_SAMPLES].any()
    np.testing.assert_array_equal(
        sound[2 * PACKET_SAMPLES + FADE_SAMPLES :], tone[2 * PACKET_SAMPLES + FADE_SAMPLES :]
    )


def listen():
    """Return a microphone path and the list of its chunks."""
    chunks = [np.zeros(0, np.float32)]
    return MicrophonePath(chunks.append), chunks


def test_a_lossy_voice_keeps_its_length_and_most_of_its_sound():
    packets, (microphone, chunks) = opus_packets(0.44), listen()
    for number, payload in enumerate(packets):
        if number % 7 != 3:
            microphone.push(number, number * PACKET_SAMPLES, payload)
    heard = np.concatenate(chunks)
    lost = sum(number % 7 == 3 for number in range(len(packets)))
    assert heard.size == len(packets) * HEARD
    assert microphone.concealed_samples == lost * PACKET_SAMPLES
    assert np.sqrt(np.mean(heard**2)) > 0.2


def test_a_voice_as_loud_as_may_be_is_not_heard_as_louder():
    microphone, chunks = listen()
    for number, packet in enumerate(opus_packets(0.5, 200, lambda wave: 32_767 * np.sign(wave))):
        microphone.push(number, number * PACKET_SAMPLES, packet)
    heard = np.abs(np.concatenate(chunks))
    assert np.median(heard) > 0.8 and heard.max() == 1.0


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x00" * 3, bytes(range(256)) * 5])
def test_damaged_packets_are_silence_and_the_voice_goes_on(payload):
    packets, (microphone, chunks) = opus_packets(0.3), listen()
    for number, good in enumerate(packets):
        microphone.push(number, number * PACKET_SAMPLES, payload if number == 5 else good)
    heard = np.concatenate(chunks)
    assert heard.size >= (len(packets) - 1) * HEARD
    assert np.abs(heard).max() <= 1.0
    assert np.sqrt(np.mean(heard[-3 * HEARD :] ** 2)) > 0.2


@pytest.mark.parametrize("sizes", [(960,) * 10, (1, 2, 4, 900, 5000, 2, 3691)])
def test_downsampling_in_pieces_equals_the_whole_and_keeps_the_count(sizes):
    sound = np.sin(np.arange(sum(sizes)) * 2 * np.pi * 440 / CLOCK_HZ).astype(np.float32)
    whole, piecewise = Downsampler(3), Downsampler(3)
    chunks = np.split(sound, np.cumsum(sizes)[:-1])
    joined = np.concatenate([piecewise(piece) for piece in chunks])
    np.testing.assert_allclose(joined, whole(sound), atol=1e-6)
    assert joined.size == sound.size // 3
    # The first sample comes out with the third that went in; the filter lies 47.5 behind that.
    late = (3 * Downsampler.TAPS - 1) / 2 - 2
    true = np.sin((3 * np.arange(joined.size) - late) * 2 * np.pi * 440 / CLOCK_HZ)
    np.testing.assert_allclose(joined[100:], true[100:], atol=2e-3)


@pytest.mark.parametrize(
    "hz, least, most", [(1000, 0.999, 1.001), (6000, 0.97, 1.01), (10_000, 0, 1e-3)]
)
def test_downsampling_keeps_speech_and_folds_nothing_into_it(hz, least, most):
    tone = np.sin(np.arange(9600) * 2 * np.pi * hz / CLOCK_HZ).astype(np.float32)
    loudness = np.sqrt(2 * np.mean(Downsampler(3)(tone)[100:] ** 2))
    assert least <= loudness <= most
