"""Says which sound goes with which frame, and after which frame a segment ends.

The frames of a step show the sound of `lookahead_frames` earlier than the hop that the step hears,
because the model looks ahead. This room holds that delay, and the padding that lets the last sound
of a segment be shown. Plain arithmetic: no waiting, no model.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from letstalk_rt.audio.hop_buffer import HopBuffer


@dataclass(frozen=True, slots=True)
class FrameAudio:
    """The sound of one frame.

    Attributes:
        pcm: `(samples per frame,)` float32.
        segment_id: the segment it belongs to; silence after an end belongs to the next segment.
        spoken: how many of the samples were given by the caller; the others are filling.
    """

    pcm: np.ndarray
    segment_id: int
    spoken: int


def silence_like(sound: FrameAudio, segment_id: int) -> FrameAudio:
    """Give silence of the same length, which belongs to another segment."""
    return FrameAudio(np.zeros_like(sound.pcm), segment_id, 0)


@dataclass(frozen=True, slots=True)
class Hop:
    """The work of one step.

    Attributes:
        pcm: `(hop,)` float32, what the model hears.
        frame_audio: the sound of each frame that the step makes, so older than `pcm`.
        end_after: a segment ends after this many frames of the step; None if none does.
    """

    pcm: np.ndarray
    frame_audio: tuple[FrameAudio, ...]
    end_after: int | None


@dataclass(frozen=True, slots=True)
class SegmentBoundary:
    """A segment ends here, and no frame is missing to it."""

    segment_id: int


class Segmenter:
    """Cuts speech into hops and keeps the account of segments.

    Args:
        hop: samples in a hop.
        frames_per_hop: frames made by one step.
        lookahead_frames: how many frames the pictures are behind the sound heard.
    """

    def __init__(self, hop: int, frames_per_hop: int, lookahead_frames: int) -> None:
        assert hop % frames_per_hop == 0, (hop, frames_per_hop)
        self.segment_id = 0
        self._hop = hop
        self._frames = frames_per_hop
        self._samples = hop // frames_per_hop
        self._lookahead = lookahead_frames
        self._chunker = HopBuffer(hop)
        self._delayed: deque[FrameAudio] = deque()
        self._begun = False
        self._silent_frames = 0
        self._forget()

    @property
    def pending(self) -> int:
        """Samples of speech that do not fill a hop yet."""
        return self._chunker.pending

    @property
    def in_speech(self) -> bool:
        """The last hop ended with speech of a segment that is not over."""
        return self._begun and self._silent_frames == 0

    def push(self, pcm: np.ndarray) -> list[Hop]:
        """Take speech, `(n,)` float32 at 16 kHz, and give the hops that are now full."""
        self._begun |= pcm.size > 0
        return [self._make(hop, 0, self._hop) for hop in self._chunker.push(pcm)]

    def fill(self) -> Hop:
        """Give a hop at once, with silence for what is missing.

        The silence goes before speech that is just beginning, which will go on, and after speech
        that has stopped coming.
        """
        count, front = self.pending, not self.in_speech
        start = self._hop - count if front else 0
        return self._make(self._chunker.fill(front=front), start, start + count)

    def end_segment(self) -> list[Hop | SegmentBoundary]:
        """End the segment: give what must be shown until its last sound has been seen."""
        missing = self._lookahead - self._silent_frames
        if self.pending:
            missing = self._lookahead + -(-self.pending // self._samples)
        items: list[Hop | SegmentBoundary] = []
        if missing <= 0:
            items.append(SegmentBoundary(self.segment_id))
        while missing > 0:
            count = self.pending
            end_after = missing if missing <= self._frames else None
            items.append(self._make(self._chunker.fill(), 0, count, True, end_after))
            missing -= self._frames
        self.segment_id += 1
        self._begun = False
        return items

    def interrupt(self) -> None:
        """Drop what waits here; the segment that had begun is over."""
        self.segment_id += self._begun
        self._begun = False
        self._chunker.reset()
        self._forget()

    def _forget(self) -> None:
        silence = FrameAudio(np.zeros(self._samples, np.float32), self.segment_id, 0)
        self._delayed = deque([silence] * self._lookahead)
        self._silent_frames = self._lookahead

    def _make(
        self,
        pcm: np.ndarray,
        start: int,
        stop: int,
        ending: bool = False,
        end_after: int | None = None,
    ) -> Hop:
        """Make the hop whose speech lies in `[start, stop)`."""
        if stop > start:
            self._silent_frames = self._frames - -(-stop // self._samples)
        else:
            self._silent_frames += self._frames
        self._delayed.extend(self._cut(pcm, start, stop, ending))
        frame_audio = tuple(self._delayed.popleft() for _ in range(self._frames))
        return Hop(pcm, frame_audio, end_after)

    def _cut(self, pcm: np.ndarray, start: int, stop: int, ending: bool) -> Iterable[FrameAudio]:
        for first in range(0, self._hop, self._samples):
            last = first + self._samples
            spoken = max(0, min(stop, last) - max(start, first))
            over = ending and first >= stop
            yield FrameAudio(pcm[first:last], self.segment_id + over, spoken)
