"""Which utterance is on the screen: told by the frames that are shown, not those that are made."""

from collections import deque
from collections.abc import Callable

from letstalk_rt.types import FPS, AVFrame
from letstalk_server import events
from letstalk_server.playout import is_quiet

FRAME_MS = 1000 // FPS


class Segments:
    """Follows the segments of one session.

    Args:
        tell: called with each event and the segment it is about.

    Attributes:
        current: the segment on the screen.
        played_ms: how much of it was shown.
    """

    def __init__(self, tell: Callable[[events.ServerMessage, int], None]) -> None:
        self.current = 0
        self._tell = tell
        self._started = False
        self.played_ms = 0
        self._ends: deque[tuple[int, int]] = deque()

    def ended(self, segment_id: int, index: int) -> None:
        """Note that a segment ends with frame `index`, which may still wait to be shown."""
        self._ends.append((segment_id, index))

    def shown(self, frame: AVFrame) -> None:
        """Note that a frame is shown now."""
        while self._ends and frame.index > self._ends[0][1]:
            self._finish(*self._ends.popleft())  # its last frame was left out
        if frame.segment_id != self.current:
            self._begin(frame.segment_id)
        if not self._started and not is_quiet(frame.pcm):
            self._started = True
            self._tell(events.Started(), self.current)
        if self._started:
            self.played_ms += FRAME_MS
        if self._ends and frame.index == self._ends[0][1]:
            self._finish(*self._ends.popleft())

    def cut(self, dropped_ms: int) -> int:
        """Note an interrupt; gives how much of the segment was shown, ms."""
        played_ms, was_on = self.played_ms, self._started or dropped_ms > 0
        self._ends.clear()
        if was_on:
            self._tell(events.SegmentInterrupted(played_ms, dropped_ms), self.current)
        self._started, self.played_ms = False, 0
        return played_ms

    def _begin(self, segment_id: int) -> None:
        self.current = segment_id
        self._started, self.played_ms = False, 0

    def _finish(self, segment_id: int, index: int) -> None:
        if segment_id != self.current:
            self._begin(segment_id)
        self._tell(events.Finished(self.played_ms), segment_id)
        self._started, self.played_ms = False, 0
