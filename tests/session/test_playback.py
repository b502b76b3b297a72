"""What counts as played, and what is told of it."""

import numpy as np
import pytest

from letstalk_rt.errors import ConfigError, EngineError
from letstalk_rt.session.events import Event, EventHub
from letstalk_rt.session.playback import (
    IDLE_AFTER_FRAMES,
    MAX_UNREPORTED,
    Playback,
    check_playback_mode,
)
from letstalk_rt.types import AVFrame, Interrupted, SegmentEnd

RGB, PCM = np.zeros((1, 1, 3), np.uint8), np.zeros(640, np.float32)


def frame(index, segment_id=0, spoken=640):
    return AVFrame(RGB, PCM, index, segment_id, 0, spoken=spoken, voiced=spoken > 0)


class Player:
    """A playback and the events it told, apart from those of the avatar's state unless asked."""

    def __init__(self, mode="reported"):
        self.hub, self.events = EventHub(), []
        self.hub.listen(self.events.append)
        self.playback = Playback(self.hub, mode)

    def read(self, *items):
        for item in items:
            self.playback.hand_out(item)

    def segments(self):
        return [event for event in self.events if event.type.startswith("segment")]

    def states(self):
        return [event.type for event in self.events if event.type.startswith("avatar")]


def started(segment_id=0):
    return Event("segment.started", segment_id, 0)


def finished(played_ms, segment_id=0):
    return Event("segment.finished", segment_id, played_ms)


def test_what_was_read_is_told_when_it_is_reported_and_not_before():
    player = Player()
    player.read(frame(0, spoken=0), frame(1), frame(2, spoken=320), SegmentEnd(0, 0), frame(3, 1))
    player.playback.note_played(0)
    assert player.events == [] and player.playback.unplayed == 1600
    player.playback.note_played(1)
    assert player.segments() == [started()] and player.playback.played_ms == 40
    player.playback.note_played(2)
    assert player.segments()[1:] == [finished(60)]
    player.playback.note_played(3)
    assert player.segments()[2:] == [started(1)] and player.playback.unplayed == 0


def test_what_is_read_counts_as_played_where_nothing_is_reported():
    player = Player("on_read")
    player.read(frame(0), frame(1, spoken=80), SegmentEnd(0, 0))
    assert player.segments() == [started(), finished(45)]


def test_an_end_that_is_read_after_its_last_frame_was_played_is_told_at_once():
    player = Player()
    player.read(frame(0))
    player.playback.note_played(0)
    player.read(SegmentEnd(0, 0))
    assert player.segments() == [started(), finished(40)]


def test_a_segment_without_speech_finishes_without_a_start():
    player = Player()
    player.read(frame(0, spoken=0), SegmentEnd(0, 0))
    player.playback.note_played(0)
    assert player.segments() == [finished(0)]


def test_frames_that_the_player_left_out_are_passed():
    player = Player()
    player.read(frame(0), frame(1), SegmentEnd(0, 0), frame(2, 1, spoken=0))
    player.playback.note_played(2)
    assert player.segments() == [started(), finished(80)]


def test_a_frame_reported_twice_counts_once():
    player = Player()
    player.read(frame(0), frame(1))
    player.playback.note_played(0)
    player.playback.note_played(0)
    assert (player.playback.played_ms, player.playback.unplayed) == (40, 640)


def test_an_interrupt_tells_what_was_played_and_silences_the_rest():
    player = Player()
    player.read(frame(0), frame(1), frame(2), SegmentEnd(0, 0), frame(3, 1))
    player.playback.note_played(0)
    assert player.playback.interrupt(2, unread=160) == Interrupted(40, 130)
    assert player.events[-2:] == [
        Event("segment.interrupted", 0, 40, 130),
        Event("avatar.listening"),
    ]
    count = len(player.events)
    player.playback.note_played(3)
    assert len(player.events) == count, "they are shown in silence"
    assert player.playback.interrupt(2, unread=0) == Interrupted(0, 0)
    assert len(player.events) == count, "nothing was cut"


@pytest.mark.parametrize("read, segment_id", [([], 7), ([frame(0, 3)], 3)])
def test_an_interrupt_before_a_segment_plays_is_about_the_one_that_waits(read, segment_id):
    player = Player()
    player.read(*read)
    player.playback.interrupt(7, unread=640)
    assert player.segments()[-1].segment_id == segment_id


def test_a_listener_may_interrupt_a_segment_that_starts():
    player = Player()

    def cut(event):
        if event.type == "segment.started":
            player.playback.interrupt(1, unread=0)

    player.hub.listen(cut)
    player.read(frame(0), frame(1))
    player.playback.note_played(0)
    assert player.segments() == [started(), Event("segment.interrupted", 0, 40, 40)]
    assert player.playback.unplayed == 0


def test_the_avatar_speaks_until_some_frames_after_its_last_voice():
    player = Player("on_read")
    for index in range(IDLE_AFTER_FRAMES):
        player.read(frame(index, spoken=0 if index else 640))
    assert player.states() == ["avatar.speaking"]
    player.read(frame(IDLE_AFTER_FRAMES, spoken=0))
    assert player.states() == ["avatar.speaking", "avatar.idle"]


def test_the_avatar_listens_until_it_is_told_otherwise_or_speaks():
    player = Player("on_read")
    state = player.playback.state
    state.listen(False)
    state.listen(True)
    for index in range(IDLE_AFTER_FRAMES):
        player.read(frame(index, spoken=0))
    assert state.name == "listening"
    player.read(frame(IDLE_AFTER_FRAMES))
    state.listen(False)
    assert state.name == "speaking"
    assert player.states() == ["avatar.listening", "avatar.speaking"]


def test_a_player_that_reports_nothing_is_told_so():
    player = Player()
    player.read(*[frame(index) for index in range(MAX_UNREPORTED)])
    with pytest.raises(EngineError, match="notify_played"):
        player.read(frame(MAX_UNREPORTED))


def test_an_unknown_mode_is_refused():
    check_playback_mode("reported")
    with pytest.raises(ConfigError, match="'reported'"):
        check_playback_mode("later")
