"""The speech for one avatar: floor control and a bounded queue.

Speech pushed by messages takes precedence over microphones and holds the floor until a second after
its last chunk. Of a microphone only the newest half second is kept, to bound its latency.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from letstalk_rt.errors import SessionClosed
from letstalk_rt.session.avatar import AvatarSession
from letstalk_server.errors import FloorTakenError, SpeechOverflowError

FLOOR_S = 1.0
MAX_MICROPHONE_S = 0.5
MAX_CUES = 64
"""Cues that may be queued; more drop the oldest."""

LIVE_S = 0.5
"""Time after its last chunk for which a microphone counts as live."""

_ROUNDING_S = 1e-6
"""Less queued speech is a rounding error of its sum, which must not hold the floor."""


Cue = Callable[[], None]
"""Directs the avatar, in the order of its speech."""


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Queued speech; without samples it is a cue, or else marks the end of a segment."""

    source: str
    is_live: bool
    pcm: np.ndarray | None
    sample_rate: int
    seconds: float
    cue: Cue | None = None

    @property
    def ends_segment(self) -> bool:
        return self.pcm is None and self.cue is None


class SpeechQueue:
    """A queue of speech, bounded by its duration.

    Args:
        max_s: maximum duration of queued pushed speech, s.
        clock: monotonic time, s.
    """

    def __init__(self, max_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_s = max_s
        self._clock = clock
        self._chunks: deque[_Chunk] = deque()
        self._microphones: list[str] = []
        self._pushed_s = 0.0
        self._microphone_s = 0.0
        self._floor: str | None = None
        self._floor_until_s = 0.0
        self._live_until_s = 0.0
        self._changed = asyncio.Event()
        self._has_space = asyncio.Event()

    def is_live(self) -> bool:
        """Return whether the avatar receives a microphone now."""
        return self._clock() < self._live_until_s

    def add_microphone(self, source: str) -> None:
        """Add a microphone; it has precedence over older ones."""
        self._microphones.append(source)

    def is_heard(self, source: str) -> bool:
        """Return whether this microphone has precedence over all others."""
        return self._microphones[-1:] == [source]

    def push_microphone(self, source: str, pcm: np.ndarray, sample_rate: int) -> None:
        """Queue a chunk of a microphone, if that has the floor.

        Args:
            source: the connection's id.
            pcm: `(n,)` float32 in [-1, 1].
            sample_rate: Hz.
        """
        if not self.is_heard(source) or self._is_taken():
            return
        seconds = len(pcm) / sample_rate
        self._microphone_s += seconds
        self._add(_Chunk(source, True, pcm, sample_rate, seconds))
        while self._microphone_s > MAX_MICROPHONE_S:
            oldest = next(chunk for chunk in self._chunks if chunk.is_live)
            self._chunks.remove(oldest)
            self._microphone_s -= oldest.seconds

    def push(self, source: str, pcm: np.ndarray, sample_rate: int) -> None:
        """Queue a chunk of pushed speech.

        Args:
            source: the connection's id.
            pcm: int16 or float32, `(n,)` or `(n, channels)`.
            sample_rate: Hz.

        Raises:
            FloorTakenError: Another connection has the floor.
            SpeechOverflowError: Too much speech is queued.
        """
        self._take_floor(source)
        seconds = len(pcm) / sample_rate
        if not self._has_space_for(seconds):
            raise SpeechOverflowError(
                f"More than {self._max_s:.0f} s of speech would be queued. Send it later."
            )
        self._pushed_s += seconds
        self._add(_Chunk(source, False, pcm, sample_rate, seconds))

    def end_segment(self, source: str) -> None:
        """Queue the end of the segment.

        Raises:
            FloorTakenError: Another connection has the floor.
        """
        self._take_floor(source)
        self._floor_until_s = 0.0
        self._add(_Chunk(source, False, None, 1, 0.0))

    def add_cue(self, source: str, cue: Cue, *, is_first: bool = False) -> None:
        """Queue a cue.

        Args:
            source: who speaks.
            cue: called when the speech before it was handed over.
            is_first: before all queued speech of the segment that is being pushed, not after it.
        """
        waiting = [chunk for chunk in self._chunks if chunk.cue is not None]
        if len(waiting) >= MAX_CUES:
            self._chunks.remove(waiting[0])
        chunk = _Chunk(source, False, None, 1, 0.0, cue)
        ends = [number for number, each in enumerate(self._chunks, 1) if each.ends_segment]
        place = max(ends, default=0) if is_first else len(self._chunks)
        self._chunks.insert(place, chunk)
        self._changed.set()

    def clear(self) -> float:
        """Drop all queued speech and cues; return its duration, s."""
        waiting_s = sum(
            chunk.seconds for chunk in self._chunks
        )  # without what was handed over already
        self._chunks.clear()
        self._pushed_s = self._microphone_s = self._floor_until_s = 0.0
        self._has_space.set()
        return waiting_s

    def release(self, source: str) -> None:
        """Release the floor of a closed connection; its queued speech is still played."""
        if self._floor == source:
            self._floor = None
        if source in self._microphones:
            self._microphones.remove(source)

    async def wait_for_space(self, seconds: float) -> None:
        """Wait until `push` takes a chunk of this duration."""
        while not self._has_space_for(seconds):
            self._has_space.clear()
            await self._has_space.wait()

    async def run(self, avatar: Callable[[], Awaitable[AvatarSession]]) -> None:
        """Push the queued speech to the engine session until cancelled.

        Args:
            avatar: returns the engine session when it is open.
        """
        while True:
            while not self._chunks:
                self._changed.clear()
                await self._changed.wait()
            chunk = self._chunks.popleft()
            if chunk.is_live:
                self._microphone_s -= chunk.seconds
            try:
                await self._forward(chunk, await avatar())
            except SessionClosed:
                continue  # a failure is raised where frames are read
            finally:
                if not chunk.is_live:
                    left_s = self._pushed_s - chunk.seconds
                    self._pushed_s = left_s if left_s > _ROUNDING_S else 0.0
                    self._has_space.set()

    async def _forward(self, chunk: _Chunk, avatar: AvatarSession) -> None:
        if chunk.cue is not None:
            chunk.cue()
            return
        self._live_until_s = self._clock() + LIVE_S if chunk.is_live else 0.0
        if chunk.pcm is None:
            await avatar.end_segment()
        else:
            await avatar.push_audio(chunk.pcm, chunk.sample_rate)

    def _has_space_for(self, seconds: float) -> bool:
        return self._pushed_s == 0 or self._pushed_s + seconds <= self._max_s

    def _add(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._changed.set()

    def _take_floor(self, source: str) -> None:
        if self._is_taken() and self._floor not in (None, source):
            raise FloorTakenError(
                "Another connection has the floor. Try again when it has finished."
            )
        self._floor = source
        self._floor_until_s = self._clock() + FLOOR_S

    def _is_taken(self) -> bool:
        return self._clock() < self._floor_until_s or self._pushed_s > 0
