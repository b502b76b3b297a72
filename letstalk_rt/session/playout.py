"""Shows frames when they are due: the one clock that picture and sound leave by.

Clock and sleep are arguments, so tests need not wait.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np

from letstalk_rt.metrics import Metrics
from letstalk_rt.session.pacing import PlayoutClock
from letstalk_rt.types import AVFrame, SegmentEnd

Item = AVFrame | SegmentEnd
_TOLERANCE_S = 0.005
"""A frame that comes so little late is shown late; nothing is repeated for it."""

Sleep = Callable[[float], Coroutine[Any, Any, None]]


class Playout:
    """Plays one session to one sink, on one monotonic clock.

    Frame `index` is due `index / fps` after the first. A frame that is late is shown when it comes,
    and the next ones close the gap, so sound is never cut and the sink's time never drifts; until
    then the last picture is shown again at each missed turn, without sound. When the lag is longer
    than the clock's `LatePolicy` allows, the clock moves instead, which counts as a stall.

    Args:
        show: called with each frame when it is due. Must not block.
        repeat: called with the last frame at each turn for which the next has not come; only its
            picture is to be shown.
        played: called with each frame once it was shown; for a session that was opened with
            `playback="reported"`, its `notify_played`.
        end_segment: called at each end of a segment, after its last frame was shown.
        epoch: gives the session's epoch, see `AvatarSession.epoch`. It is asked at the last moment,
            so that an interrupt reaches the frame that waits here: it is shown without its sound.
        playout_clock: when frames are due.
        metrics: where stalls, repeats and drops are counted; the session's, usually.
        clock: monotonic seconds.
        sleep: waits so many seconds of that clock.
    """

    def __init__(
        self,
        show: Callable[[AVFrame], None],
        *,
        repeat: Callable[[AVFrame], None] | None = None,
        played: Callable[[AVFrame], None] | None = None,
        end_segment: Callable[[SegmentEnd], None] | None = None,
        epoch: Callable[[], int] | None = None,
        playout_clock: PlayoutClock | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.playout_clock = playout_clock or PlayoutClock()
        self.metrics = metrics or Metrics()
        self._show = show
        self._repeat = repeat
        self._played = played
        self._end_segment = end_segment
        self._epoch = epoch
        self._clock = clock
        self._sleep = sleep
        self._last: AVFrame | None = None
        self._shown_s = 0.0  # when the sink last got a picture

    async def run(self, items: AsyncIterable[Item]) -> None:
        """Play until `items` ends. What `items` raises is raised here."""
        reader = aiter(items)
        while (item := await self._next(reader)) is not None:
            if isinstance(item, AVFrame):
                await self._play(item)
            elif self._end_segment is not None:
                self._end_segment(item)

    async def _play(self, frame: AVFrame) -> None:
        stalls = self.playout_clock.stalls
        delay_s = self.playout_clock.delay_s(frame.index, self._clock())
        self.metrics.stalls += self.playout_clock.stalls - stalls
        await self._sleep(delay_s)
        if self._epoch is not None:
            frame = in_epoch(frame, self._epoch())
        self._last, self._shown_s = frame, self._clock()
        if frame.stamps is not None:
            self.metrics.stamp_shown(frame.stamps, self._shown_s)
        self._show(frame)
        if self._played is not None:
            self._played(frame)

    async def _next(self, reader: AsyncIterator[Item]) -> Item | None:
        """Wait for the next item; None is the end."""
        coming = asyncio.ensure_future(_next_or_none(reader))
        try:
            await asyncio.sleep(0)  # what is there already needs no bridge
            if self._last is not None and not coming.done():
                await self._bridge(coming, self._last)
            return await coming
        finally:
            await _cancel(coming)

    async def _bridge(self, coming: "asyncio.Future[Item | None]", last: AVFrame) -> None:
        """Until the next item is there, show the last picture again at each turn it misses."""
        while not coming.done():
            turn_s = self._shown_s + 1 / self.playout_clock.fps
            wait_s = max(0.0, turn_s + _TOLERANCE_S - self._clock())
            waiting = asyncio.ensure_future(self._sleep(wait_s))
            both: set[asyncio.Future[Any]] = {coming, waiting}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancel(waiting)
            if not coming.done():
                self._shown_s = turn_s
                self.metrics.repeats += 1
                if self._repeat is not None:
                    self._repeat(last)


def in_epoch(frame: AVFrame, epoch: int) -> AVFrame:
    """Return a frame as it may be shown in an epoch: one of an older epoch without its sound."""
    if frame.epoch == epoch:
        return frame
    stamps = frame.stamps and replace(frame.stamps, audio_in_s=None)
    silence = np.zeros_like(frame.pcm)
    return replace(frame, pcm=silence, epoch=epoch, stamps=stamps, spoken=0, voiced=False)


async def _next_or_none(reader: AsyncIterator[Item]) -> Item | None:
    try:
        return await anext(reader)
    except StopAsyncIteration:
        return None


async def _cancel(task: "asyncio.Future[Any]") -> None:
    """End a task of ours and leave nothing of it on the loop."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
