"""Tracking of what was played: segments, `played_ms` and the avatar state of a session.

Frames enter when they are handed out and count as played when the player reports them; see
`AvatarSession.notify_played`.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from letstalk_rt.errors import ConfigError, EngineError
from letstalk_rt.session.events import Event, EventHub, EventType
from letstalk_rt.types import FPS, SAMPLE_RATE, AVFrame, Interrupted, SegmentEnd

PlaybackMode = Literal["on_read", "reported"]
"""When a frame counts as played: when it is read, or when `notify_played` is called with it."""

State = Literal["speaking", "listening", "idle"]

IDLE_AFTER_FRAMES = 10
"""Frames without voice after which the avatar is idle again."""

MAX_UNREPORTED = 20 * FPS
"""The most frames that may wait for a report; more mean that the player does not report."""

_STATE_EVENTS: dict[State, EventType] = {
    "speaking": "avatar.speaking",
    "listening": "avatar.listening",
    "idle": "avatar.idle",
}


def check_playback_mode(mode: str) -> None:
    """Check the playback mode.

    Raises:
        ConfigError: the mode is neither `on_read` nor `reported`.
    """
    if mode not in ("on_read", "reported"):
        raise ConfigError(f"playback must be 'on_read' or 'reported', got {mode!r}")


def to_ms(samples: float) -> int:
    """Return the duration of this many samples in milliseconds."""
    return round(samples * 1000 / SAMPLE_RATE)


class AvatarState:
    """Whether the avatar is speaking, listening or idle, derived from the frames that are played.

    Args:
        hub: receives an event for each change.
        quiet_frames: frames without voice after which it stops speaking.

    Attributes:
        name: the current state.
    """

    def __init__(self, hub: EventHub, quiet_frames: int = IDLE_AFTER_FRAMES) -> None:
        self.name: State = "idle"
        self._hub = hub
        self._quiet_frames = quiet_frames
        self._quiet = 0

    def note_played(self, voiced: bool) -> None:
        """Record the next played frame."""
        self._quiet = 0 if voiced else self._quiet + 1
        if voiced:
            self._set("speaking")
        elif self.name == "speaking" and self._quiet >= self._quiet_frames:
            self._set("idle")

    def listen(self, listening: bool) -> None:
        """Record that somebody else begins to speak, or stops."""
        if listening:
            self._set("listening")
        elif self.name == "listening":
            self._set("idle")

    def _set(self, name: State) -> None:
        if name != self.name:
            self.name = name
            self._hub.emit(Event(_STATE_EVENTS[name]))


@dataclass(frozen=True, slots=True)
class _Unplayed:
    """A frame that was handed out and not played yet."""

    index: int
    segment_id: int
    spoken: int
    voiced: bool


class Playback:
    """Tracks the frames of one session from reading to playing.

    Args:
        hub: receives the events of segments and of the avatar state.
        mode: when a frame counts as played.
        quiet_frames: see `AvatarState`.

    Attributes:
        state: the avatar state.
        unplayed: samples of speech, at 16 kHz, that were handed out and not played yet.
    """

    def __init__(
        self, hub: EventHub, mode: PlaybackMode, quiet_frames: int = IDLE_AFTER_FRAMES
    ) -> None:
        self.state = AvatarState(hub, quiet_frames)
        self.unplayed = 0
        self._hub, self._mode = hub, mode
        self._waiting: deque[_Unplayed | SegmentEnd] = deque()
        self._segment: int | None = None  # the one that is playing
        self._played = 0  # samples of that segment

    @property
    def is_reported(self) -> bool:
        """Whether frames count as played when they are reported, not when they are read."""
        return self._mode == "reported"

    @property
    def played_ms(self) -> int:
        """How much of the playing segment was played."""
        return to_ms(self._played)

    def hand_out(self, item: AVFrame | SegmentEnd) -> None:
        """Record an item that is handed to the reader.

        Raises:
            EngineError: too many frames were read without a report.
        """
        if isinstance(item, SegmentEnd):
            if not item.interrupted:  # of the other kind `interrupt` has told
                self._waiting.append(item)
                self._finish_segments()
            return
        if len(self._waiting) >= MAX_UNREPORTED:
            raise EngineError(
                f"{MAX_UNREPORTED} frames were read but not reported as played; call "
                "notify_played for each, or open the session with playback='on_read'"
            )
        spoken = item.spoken * SAMPLE_RATE // item.sample_rate
        self._waiting.append(_Unplayed(item.index, item.segment_id, spoken, item.voiced))
        self.unplayed += spoken
        if not self.is_reported:
            self.note_played(item.index)

    def note_played(self, index: int) -> None:
        """Count a frame as played, and with it all earlier frames, which the player skipped."""
        while self._waiting:
            frame = self._waiting[0]
            if isinstance(frame, SegmentEnd) or frame.index > index:
                return
            self._waiting.popleft()
            self._play(frame)
            self._finish_segments()

    def interrupt(self, next_segment: int, unread: float) -> Interrupted:
        """End the playing segment; frames not played yet will count as silence.

        Args:
            next_segment: the segment of speech of which nothing was handed out yet.
            unread: samples of speech that were not handed out.
        """
        result = Interrupted(self.played_ms, to_ms(self.unplayed + unread))
        if self._segment is not None or result.dropped_ms:
            segment_id = self.current_segment(next_segment)
            cut = (segment_id, result.played_ms, result.dropped_ms)
            self._hub.emit(Event("segment.interrupted", *cut))
        self._waiting = deque(
            replace(frame, spoken=0, voiced=False)
            for frame in self._waiting
            if isinstance(frame, _Unplayed)
        )
        self._segment, self._played, self.unplayed = None, 0, 0
        self.state.listen(True)
        return result

    def current_segment(self, next_segment: int) -> int:
        """Return the segment that an interrupt ends now.

        Args:
            next_segment: the segment of speech of which nothing was handed out yet.
        """
        if self._segment is not None:
            return self._segment
        for frame in self._waiting:
            if isinstance(frame, _Unplayed) and frame.spoken:
                return frame.segment_id
        return next_segment

    def _play(self, frame: _Unplayed) -> None:
        if frame.spoken:
            starts = self._segment != frame.segment_id
            if starts:
                self._segment, self._played = frame.segment_id, 0
            self._played += frame.spoken
            self.unplayed -= frame.spoken
            if starts:  # emitted last, because a listener may interrupt
                self._hub.emit(Event("segment.started", frame.segment_id, 0))
        self.state.note_played(frame.voiced)

    def _finish_segments(self) -> None:
        """End the segments whose last frame was played."""
        while self._waiting and isinstance(self._waiting[0], SegmentEnd):
            segment_id = self._waiting.popleft().segment_id
            played = self._played if self._segment == segment_id else 0
            self._segment, self._played = None, 0
            self._hub.emit(Event("segment.finished", segment_id, to_ms(played)))
