"""Plays one live session in any number of sinks, synchronised."""

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from letstalk_rt.metrics import Metrics
from letstalk_rt.opening import open_in_thread
from letstalk_rt.session.events import Event, EventListener
from letstalk_rt.session.playout import Playout, in_epoch
from letstalk_rt.sinks.base import Sink
from letstalk_rt.types import AVFrame, SegmentEnd


class LiveSession(AsyncIterable[AVFrame | SegmentEnd], Protocol):
    """A session that can be played, such as `letstalk_rt.AvatarSession`."""

    metrics: Metrics

    @property
    def epoch(self) -> int:
        """Number of interrupts so far."""
        ...

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener` with each event; return a function that unsubscribes it."""
        ...

    def notify_played(self, frame: AVFrame) -> None:
        """Report that a frame is visible, and its audio audible, now."""
        ...


async def play(
    session: LiveSession,
    sinks: Sequence[Sink],
    size: tuple[int, int],
    *,
    on_open: Callable[[], None] = lambda: None,
    on_segment_end: Callable[[SegmentEnd], None] | None = None,
) -> None:
    """Play a session until it ends, then close the sinks.

    A loudspeaker has some latency; to keep audio and video in sync, the frames for other sinks that
    are watched live are delayed by as much.

    Args:
        session: an open session with `playback="reported"`. A frame is reported as played when the
            slowest sink shows it.
        sinks: the sinks, not opened yet.
        size: width and height of the frames.
        on_open: called when all sinks are open and connected.
        on_segment_end: called at the end of each utterance.

    Raises:
        LetsTalkError: a sink or the session has failed.
    """
    try:
        for sink in sinks:
            await open_in_thread(partial(sink.open, *size), sink.close)
        on_open()
        fan_out = _FanOut(session, sinks)
        playout = Playout(
            fan_out.show,
            repeat=fan_out.repeat,
            played=fan_out.report,
            end_segment=on_segment_end,
            epoch=lambda: session.epoch,
            metrics=session.metrics,
        )
        unsubscribe = session.on_event(fan_out.on_event)
        try:
            await playout.run(session)
        finally:
            unsubscribe()
            await fan_out.finish()
    finally:
        await _close_all(sinks)


class _FanOut:
    """Distributes frames to the sinks, each delayed so that all show a frame at the same time."""

    def __init__(self, session: LiveSession, sinks: Sequence[Sink]) -> None:
        latencies = [0.0 if sink.latency_s is None else sink.latency_s for sink in sinks]
        slowest_s = max(latencies, default=0.0)
        self._session = session
        self._sinks = [
            (sink, 0.0 if sink.latency_s is None else slowest_s - latency_s)
            for sink, latency_s in zip(sinks, latencies, strict=True)
        ]
        self._slowest_s = slowest_s
        self._failure: Exception | None = None

    def show(self, frame: AVFrame) -> None:
        if self._failure is not None:
            raise self._failure
        for sink, delay_s in self._sinks:
            self._schedule(delay_s, sink.show, frame)

    def repeat(self, frame: AVFrame) -> None:
        for sink, delay_s in self._sinks:
            self._schedule(delay_s, sink.repeat, frame)

    def report(self, frame: AVFrame) -> None:
        """Report a frame to the session as played once the slowest sink shows it."""
        self._schedule(self._slowest_s, self._session.notify_played, frame)

    def on_event(self, event: Event) -> None:
        """Flush the sinks at once on an interrupt, not with the next frame."""
        if event.type == "segment.interrupted":
            for sink, _ in self._sinks:
                sink.flush()

    async def finish(self) -> None:
        """Wait for the delayed frames."""
        if self._slowest_s:
            await asyncio.sleep(self._slowest_s)

    def _schedule(self, delay_s: float, receive: Callable[[AVFrame], None], frame: AVFrame) -> None:
        if delay_s <= 0:
            receive(frame)
        else:
            asyncio.get_running_loop().call_later(delay_s, self._deliver_late, receive, frame)

    def _deliver_late(self, receive: Callable[[AVFrame], None], frame: AVFrame) -> None:
        try:
            receive(in_epoch(frame, self._session.epoch))
        except Exception as error:  # raised with the next frame
            self._failure = error


async def _close_all(sinks: Sequence[Sink]) -> None:
    """Close every sink, then raise the first error."""
    closing = asyncio.gather(
        *(asyncio.to_thread(sink.close) for sink in sinks), return_exceptions=True
    )
    try:
        results = await asyncio.shield(closing)
    except asyncio.CancelledError:
        with suppress(Exception):
            await closing
        raise
    for result in results:
        if isinstance(result, Exception):
            raise result
