"""The queue of frames between model and reader, with their timing and the bridge at interrupts.

Bookkeeping only: nothing here waits.
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
"""Frames made before an interrupt are due at most this long after it; the last lasts 40 ms more."""


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """A frame that waits for the reader.

    Attributes:
        rgb: `(H, W, 3)` uint8.
        audio: the audio of this frame.
        voiced: whether voice activity was detected in the audio.
        hop_complete_s: when the hop that it was generated from was complete.
        model_start_s: when its step was requested.
        made_s: when it was generated.
        repeated: whether `rgb` is the image of the frame before.
        captured_s: see `FrameStamps`.
    """

    rgb: np.ndarray
    audio: FrameAudio
    voiced: bool
    hop_complete_s: float
    model_start_s: float
    made_s: float
    repeated: bool = False
    captured_s: float | None = None


class FrameQueue:
    """A queue of frames and segment ends that were generated and not read yet.

    The queue has its own playout clock, to compute when the next frame is needed. The clock follows
    the player by the times at which frames were played (`note_played`), with the same rules as
    `Playout`. Until the first such report, or if none ever comes, frames count as played when they
    are handed out, at most one every 1/25 s. The time that a player holds its first frame is its
    reserve: the model stays ahead of the player by that much.

    After an interrupt the frames that wait are played on without audio until the next step delivers
    frames, because a frozen face looks worse than lips that stop a moment later. `interrupt` starts
    this bridge, and `end_bridge` cuts it where the frames of the next step will follow.

    Args:
        now_s: returns monotonic seconds.
        live: whether frames are read in real time; if not, there are no due times and no bridge.
        metrics: counts dropped frames.
        wake: called when a new item can be read.

    Attributes:
        index: number of the next frame to be handed out.
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
        self._unseen = 0  # frames dropped since `end_bridge` last reported them
        self._bridge_end_s = math.inf
        self._clock = PlayoutClock(FPS)
        self._reserve_s: float | None = None  # None until the first report

    def __len__(self) -> int:
        """Return the number of items that wait."""
        return len(self._items)

    @property
    def frames(self) -> int:
        """The number of frames that wait."""
        return self._frames

    @property
    def due_s(self) -> float:
        """When the next frame to be put is due; -inf before the first one."""
        if self.index:
            return self._clock.due_s(self.index + self._frames, self._now_s())
        return math.inf if self._frames else -math.inf

    def put(self, item: QueuedFrame | SegmentEnd) -> None:
        """Append a frame or a segment end."""
        self._items.append(item)
        self._frames += isinstance(item, QueuedFrame)
        self._wake()

    def put_stale(self, frame: QueuedFrame) -> None:
        """Append a frame of a step begun before an interrupt to the bridge, or drop it."""
        if self._live and self.index and self.due_s < self._bridge_end_s:
            self.put(frame)
        else:
            self._note_drop()

    def pop(self) -> QueuedFrame | SegmentEnd:
        """Remove and return the oldest item."""
        item = self._items.popleft()
        if isinstance(item, QueuedFrame):
            if self._reserve_s is None:
                self._clock.delay_s(self.index, self._now_s())
            self.index += 1
            self._frames -= 1
        return item

    def note_played(self, index: int) -> None:
        """Record that a frame that was handed out is played now."""
        now_s = self._now_s()
        if self._reserve_s is None:
            self._reserve_s = max(0.0, now_s - self._clock.due_s(index, now_s))
        self._clock.delay_s(index, now_s - self._reserve_s)

    def interrupt(self, segment_id: int, end: SegmentEnd) -> None:
        """Replace the audio of all frames by silence and keep those that may still be shown.

        Args:
            segment_id: the segment that the silence belongs to.
            end: tells the reader of the interrupt, before those frames.
        """
        frames = [item for item in self._items if isinstance(item, QueuedFrame)]
        self._items = deque(
            replace(frame, audio=silence_like(frame.audio, segment_id), voiced=False)
            for frame in frames
        )
        self._bridge_end_s = min(self._bridge_end_s, self._now_s() + BRIDGE_S)
        self._cut(self._bridge_end_s if self.index and self._live else -math.inf)
        self._items.appendleft(end)
        self._wake()

    def end_bridge(self, at_s: float) -> int:
        """End the bridge at `at_s`, when the first frame of the next step is expected.

        Returns:
            The number of generated frames that were dropped since the last call.
        """
        self._cut(at_s)
        self._bridge_end_s = math.inf
        unseen, self._unseen = self._unseen, 0
        return unseen

    def clear(self) -> None:
        """Drop all items."""
        self._items.clear()
        self._frames = 0

    def _cut(self, until_s: float) -> None:
        """Drop the newest frames until the next frame to be put is due at `until_s` or earlier."""
        while self._frames and self.due_s - 1 / FPS >= until_s:
            newest = max(n for n, item in enumerate(self._items) if isinstance(item, QueuedFrame))
            del self._items[newest]
            self._frames -= 1
            self._note_drop()

    def _note_drop(self) -> None:
        self._metrics.drops += 1
        self._unseen += 1
