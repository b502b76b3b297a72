"""Playout: releasing frames, each with its audio, to a sink when they are due."""

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
"""A frame that is late by no more than this is shown late, without repeating the last one."""

Sleep = Callable[[float], Coroutine[Any, Any, None]]


class Playout:
    """Plays one session to one sink, on one monotonic clock.

    Frame `index` is due `index / fps` after the first. A late frame is shown on arrival, and the
    following ones close the gap, so audio is never cut and the sink's time does not drift; until
    then the last frame is repeated at each missed due time, without audio. A lag longer than the
    clock's `LatePolicy` allows moves the clock instead, which counts as a stall.

    Args:
        show: called with each frame when it is due. Must not block.
        repeat: called with the last frame at each due time for which the next one is missing; only
            its image is to be shown.
        played: called with each frame after `show`; pass `notify_played` of a session that was
            opened with `playback="reported"`.
        end_segment: called at each end of a segment, after its last frame was shown.
        epoch: returns the session's epoch, see `AvatarSession.epoch`. It is called just before a
            frame is shown, so that a frame from before an interrupt is shown without audio.
        playout_clock: computes when frames are due.
        metrics: where stalls and repeats are counted; usually those of the session.
        clock: returns monotonic seconds.
        sleep: waits this many seconds of that clock.
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
        self._shown_s = 0.0  # when the last frame was shown or repeated

    async def run(self, items: AsyncIterable[Item]) -> None:
        """Play until `items` ends; exceptions of `items` propagate."""
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
        """Wait for the next item; return None at the end."""
        coming = asyncio.ensure_future(_next_or_none(reader))
        try:
            await asyncio.sleep(0)  # an item that is already available needs no repeats
            if self._last is not None and not coming.done():
                await self._repeat_until(coming, self._last)
            return await coming
        finally:
            await _cancel(coming)

    async def _repeat_until(self, coming: "asyncio.Future[Item | None]", last: AVFrame) -> None:
        """Repeat the last frame at each missed due time until the next item arrives."""
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
    """Return a frame as it may be shown in an epoch: without audio if it is of an older one."""
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
    """Cancel a task and wait until it has ended."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
