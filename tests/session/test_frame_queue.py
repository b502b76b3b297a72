"""Frames between model and reader: when the next is due, and what an interrupt leaves of them."""

import math

import numpy as np
import pytest

from letstalk_rt.audio.segmenter import FrameAudio
from letstalk_rt.metrics import Metrics
from letstalk_rt.session.frame_queue import FrameQueue, QueuedFrame
from letstalk_rt.types import SegmentEnd

RGB = np.zeros((2, 2, 3), np.uint8)


class Stage:
    """A queue whose clock is set by hand."""

    def __init__(self, live=True):
        self.now_s, self.metrics = 10.0, Metrics()
        self.queue = FrameQueue(lambda: self.now_s, live, self.metrics)

    def put(self, count):
        for _ in range(count):
            self.queue.put(picture())

    def levels(self):
        """Whether each frame that waits has sound, in order."""
        found = []
        while len(self.queue):
            item = self.queue.pop()
            found.append(isinstance(item, QueuedFrame) and bool(item.audio.pcm.any()))
        return found


def picture():
    return QueuedFrame(RGB, FrameAudio(np.ones(640, np.float32), 3, 640), True, 0.0, 0.0, 0.0)


def started(waiting, live=True):
    """A queue whose first frame was handed out at 10 s, and where others wait."""
    stage = Stage(live)
    stage.put(1 + waiting)
    stage.queue.pop()
    return stage


def test_the_first_frame_is_due_at_once_and_the_others_by_the_readers_clock():
    stage = Stage()
    assert stage.queue.due_s == -math.inf
    stage.put(2)
    assert stage.queue.due_s == math.inf, "nobody has read yet"
    stage.queue.pop()
    stage.now_s = 10.03
    assert stage.queue.due_s == pytest.approx(10.08)
    stage.queue.pop()
    assert stage.queue.due_s == pytest.approx(10.08)


def test_once_frames_are_reported_the_next_is_due_by_the_players_clock():
    stage = started(waiting=3)
    stage.queue.pop()
    stage.now_s = 10.1
    stage.queue.note_played(0)
    assert stage.queue.due_s == pytest.approx(10.16), "what the player holds back is its reserve"
    stage.queue.pop()
    for index in (1, 2):
        stage.now_s += 0.5
        stage.queue.note_played(index)
    assert stage.queue.due_s == pytest.approx(10.16 + 1.0 - 2 * 0.04), "its clock was moved"


def test_a_player_that_runs_fast_does_not_hurry_the_model():
    stage = started(waiting=3)
    for index in range(3):
        stage.now_s = 10.0 + 0.01 * index
        stage.queue.note_played(index)
    assert stage.queue.due_s == pytest.approx(10.16)


def test_an_interrupt_takes_all_sound_and_keeps_pictures_for_a_moment():
    stage = started(waiting=8)
    stage.queue.put(SegmentEnd(3, 0))
    stage.queue.interrupt(4, SegmentEnd(3, 1, interrupted=True))
    assert stage.queue.frames == 3, "those due within 160 ms"
    assert stage.metrics.drops == 5
    assert stage.queue.pop() == SegmentEnd(3, 1, interrupted=True), "told before anything else"
    item = stage.queue.pop()
    assert item.audio.segment_id == 4 and item.audio.spoken == 0 and not item.voiced
    assert stage.levels() == [False] * 2


def test_the_bridge_is_cut_where_the_model_takes_over_and_it_is_told_what_nobody_saw():
    stage = started(waiting=4)
    stage.queue.interrupt(4, SegmentEnd(3, 1, interrupted=True))
    assert stage.queue.end_bridge(10.1) == 2
    assert stage.queue.frames == 2, "shown at 10.04 and 10.08; the next is due at 10.12"
    assert stage.queue.end_bridge(10.1) == 0


def test_pictures_still_in_the_making_join_the_bridge_until_its_end():
    stage = started(waiting=1)
    stage.queue.interrupt(4, SegmentEnd(3, 1, interrupted=True))
    stage.now_s = 10.05
    for _ in range(6):
        stage.queue.put_stale(picture())
    assert stage.queue.frames == 3
    assert stage.queue.end_bridge(10.0) == 7


def test_a_second_interrupt_does_not_prolong_the_bridge():
    stage = started(waiting=6)
    stage.queue.interrupt(4, SegmentEnd(3, 1, interrupted=True))
    stage.now_s = 10.1
    stage.queue.interrupt(4, SegmentEnd(3, 1, interrupted=True))
    stage.queue.put_stale(picture())
    assert stage.queue.frames == 3


def test_the_end_of_a_later_segment_is_kept_when_the_bridge_is_cut():
    stage = started(waiting=4)
    stage.queue.interrupt(4, SegmentEnd(3, 1, interrupted=True))
    end = SegmentEnd(4, 1)
    stage.queue.put(end)
    stage.queue.end_bridge(10.0)
    assert stage.queue.pop().interrupted
    assert stage.queue.pop() is end and not len(stage.queue)


@pytest.mark.parametrize("stage", [Stage(), started(0, live=False)], ids=["unread", "not-live"])
def test_without_a_reader_in_real_time_there_is_no_bridge(stage):
    stage.put(3)
    stage.queue.interrupt(4, SegmentEnd(3, 1, interrupted=True))
    stage.queue.put_stale(picture())
    assert stage.queue.frames == 0 and stage.queue.end_bridge(math.inf) == 4
