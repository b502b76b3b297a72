"""Frames on their way from the model to the reader: numbered, timed, bridged at interrupts.

Plain bookkeeping on the event loop: knows no model, and waits for nothing.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from letstalk_rt.audio.segmenter import FrameAudio, silence_like
from letstalk_rt.metrics import Metrics
from letstalk_rt.session.pacing import PlayoutClock
from letstalk_rt.types import FPS, SegmentEnd

BRIDGE_S = 0.16
"""Pictures of before an interrupt are shown at most so long after it, and the last for a frame."""


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """A frame that waits for its reader.

    Attributes:
        rgb: `(H, W, 3)` uint8.
        audio: that belongs to it.
        voiced: there is voice in that.
        hop_complete_s: the hop that the model heard for it was full.
        model_start_s: its step was asked for.
        made_s: it was there.
    """

    rgb: np.ndarray
    audio: FrameAudio
    voiced: bool
    hop_complete_s: float
    model_start_s: float
    made_s: float


class FrameQueue:
    """What the model made and the reader has not taken yet.

    It keeps a playout clock of its own, to know when the next frame must be there. The clock
    follows the player, through the times at which frames were played (`note_played`), by the same
    rules as `Playout`. Until the first such report, and where there is none, each frame counts as
    played in its turn after it was handed out: the first at once, then one every 1/25 s. What a
    player lets its first frame wait is its reserve: the model stays ahead of it by as much.

    After an interrupt the pictures that wait go on without their sound until the model's next step
    can take over: a face that freezes looks worse than lips that stop a moment later. `interrupt`
    begins such a bridge, and `end_bridge` cuts it where the step will join.

    Args:
        now_s: monotonic seconds.
        live: frames are read in real time. Otherwise nothing is due, and there is no bridge.
        metrics: counts what is dropped.
        wake: called when something new is to be had.

    Attributes:
        index: of the frame that is handed out next.
    """

    def __init__(
        self,
        now_s: Callable[[], float],
        live: bool,
        metrics: Metrics,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.index = 0
        self._now_s, self._live, self._metrics, self._wake = now_s, live, metrics, wake
        self._items: deque[QueuedFrame | SegmentEnd] = deque()
        self._frames = 0
        self._unseen = 0  # of those dropped, the ones that the model does not know of
        self._bridge_end_s = math.inf
        self._clock = PlayoutClock(FPS)
        self._reserve_s: float | None = None  # None: nothing was reported yet

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    @property
    def frames(self) -> int:
        """Frames that wait."""
        return self._frames

    @property
    def due_s(self) -> float:
        """When the next frame that will be put must be there; before the first one, at once."""
        if self.index:
            return self._clock.due_s(self.index + self._frames, self._now_s())
        return math.inf if self._frames else -math.inf

    def put(self, item: QueuedFrame | SegmentEnd) -> None:
        """Add what the model made."""
        self._items.append(item)
        self._frames += isinstance(item, QueuedFrame)
        self._wake()

    def put_stale(self, frame: QueuedFrame) -> None:
        """Add a picture that was asked for before an interrupt: to the bridge, or to none."""
        if self._live and self.index and self.due_s < self._bridge_end_s:
            self.put(frame)
        else:
            self._note_drop()

    def pop(self) -> QueuedFrame | SegmentEnd:
        """Hand out the oldest."""
        item = self._items.popleft()
        if isinstance(item, QueuedFrame):
            if self._reserve_s is None:
                self._clock.delay_s(self.index, self._now_s())
            self.index += 1
            self._frames -= 1
        return item

    def note_played(self, index: int) -> None:
        """Note that a frame that was handed out is played now."""
        now_s = self._now_s()
        if self._reserve_s is None:
            self._reserve_s = max(0.0, now_s - self._clock.due_s(index, now_s))
        self._clock.delay_s(index, now_s - self._reserve_s)

    def interrupt(self, segment_id: int) -> None:
        """Take the sound from all pictures, and keep those that may still be shown.

        Args:
            segment_id: that their silence belongs to.
        """
        frames = [item for item in self._items if isinstance(item, QueuedFrame)]
        self._items = deque(
            replace(frame, audio=silence_like(frame.audio, segment_id), voiced=False)
            for frame in frames
        )
        self._bridge_end_s = min(self._bridge_end_s, self._now_s() + BRIDGE_S)
        self._cut(self._bridge_end_s if self.index and self._live else -math.inf)

    def end_bridge(self, at_s: float) -> int:
        """End the bridge: a step is about to begin whose first frame will be there at `at_s`.

        Returns:
            How many frames the model made since it was last told, which nobody has seen.
        """
        self._cut(at_s)
        self._bridge_end_s = math.inf
        unseen, self._unseen = self._unseen, 0
        return unseen

    def clear(self) -> None:
        """Forget all that waits."""
        self._items.clear()
        self._frames = 0

    def _cut(self, until_s: float) -> None:
        """Drop the newest pictures, until the next to come is due at `until_s` or before it."""
        while self._frames and self.due_s - 1 / FPS >= until_s:
            newest = max(n for n, item in enumerate(self._items) if isinstance(item, QueuedFrame))
            del self._items[newest]
            self._frames -= 1
            self._note_drop()

    def _note_drop(self) -> None:
        self._metrics.drops += 1
        self._unseen += 1
