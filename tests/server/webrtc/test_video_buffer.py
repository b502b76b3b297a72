"""The camera's jitter buffer: frames are complete with their last packet, and stay in order."""

import itertools

import pytest
from aiortc.rtp import RtpPacket
from hypothesis import given
from hypothesis import strategies as st

from letstalk_server.webrtc.video_buffer import PromptBuffer, receive_encoded


def packets(sizes, *, marked=True, first=65_530):
    """Return the packets of frames with so many packets each; their data are their numbers."""
    made, number = [], itertools.count()
    for frame, size in enumerate(sizes):
        for part in range(size):
            count = next(number)
            packet = RtpPacket(
                sequence_number=(first + count) % 65_536,
                timestamp=3600 * frame,
                marker=int(marked and part == size - 1),
            )
            packet._data = bytes([count])
            made.append(packet)
    return made


def frames_of(buffer, sent):
    """Return what the buffer gives for each packet: timestamp and data, or None."""
    given_back = [buffer.add(packet)[1] for packet in sent]
    return [frame and (frame.timestamp, frame.data) for frame in given_back]


def test_a_frame_comes_with_its_last_packet():
    found = frames_of(PromptBuffer(), packets([1, 3, 2]))
    assert found == [(0, b"\0"), None, None, (3600, b"\1\2\3"), None, (7200, b"\4\5")]


def test_without_markers_a_frame_comes_with_the_next_one():
    found = frames_of(PromptBuffer(), packets([1, 2, 1], marked=False))
    assert found == [None, (0, b"\0"), None, (3600, b"\1\2")]


def test_a_frame_waits_for_a_packet_that_is_late():
    first, second, third, fourth = packets([3, 1])
    found = frames_of(PromptBuffer(), [first, third, fourth, second])
    assert found == [None, None, None, (0, b"\0\1\2")]


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30), data=st.data())
def test_frames_come_once_and_in_order_whatever_the_order_of_packets(sizes, data):
    sent = packets(sizes)
    for at in data.draw(st.lists(st.integers(1, max(1, len(sent) - 2)), max_size=8)):
        if 1 <= at < len(sent) - 1:  # the first packet tells where the stream begins
            sent[at], sent[at + 1] = sent[at + 1], sent[at]
    found = [frame for frame in frames_of(PromptBuffer(), sent) if frame]
    assert [timestamp for timestamp, _ in found] == [3600 * n for n in range(len(found))]
    assert b"".join(frame for _, frame in found) == bytes(range(len(b"".join(f for _, f in found))))


def test_a_receiver_without_such_a_buffer_is_noticed():
    with pytest.raises(AssertionError, match="aiortc"):
        receive_encoded(object.__new__(type("Receiver", (), {})), print)
