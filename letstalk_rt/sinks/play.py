"""Shows one live session in any number of sinks, all at the same moment."""

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from letstalk_rt.metrics import Metrics
from letstalk_rt.session.events import Event, EventListener
from letstalk_rt.session.playout import Playout, in_epoch
from letstalk_rt.sinks.base import Sink
from letstalk_rt.types import AVFrame, SegmentEnd


class LiveSession(AsyncIterable[AVFrame | SegmentEnd], Protocol):
    """What is played; `letstalk_rt.AvatarSession` is one."""

    metrics: Metrics

    @property
    def epoch(self) -> int:
        """How many interrupts there were."""
        ...

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener` with each event from now on; returns what ends that."""
        ...

    def notify_played(self, frame: AVFrame) -> None:
        """Report that a frame is shown now, and its sound heard."""
        ...


async def play(
    session: LiveSession,
    sinks: Sequence[Sink],
    size: tuple[int, int],
    *,
    on_open: Callable[[], None] = lambda: None,
    on_segment_end: Callable[[SegmentEnd], None] | None = None,
) -> None:
    """Show a session until it ends, and close the sinks.

    What the eye and the ear get belongs together: a loudspeaker needs some time, so the pictures
    for people who watch live are held back by as much.

    Args:
        session: open, with `playback="reported"`: a frame is reported when it can be seen and
            heard in the slowest sink.
        sinks: where to; not opened yet.
        size: width and height of the pictures.
        on_open: called when all sinks are open: connected, where they connect.
        on_segment_end: called at the end of each utterance.

    Raises:
        LetsTalkError: a sink cannot be opened or has failed, or the session has.
    """
    try:
        for sink in sinks:
            await asyncio.to_thread(sink.open, *size)
        on_open()
        fan = _Fan(session, sinks)
        playout = Playout(
            fan.show,
            repeat=fan.repeat,
            played=fan.report,
            end_segment=on_segment_end,
            epoch=lambda: session.epoch,
            metrics=session.metrics,
        )
        stop_hearing = session.on_event(fan.hear)
        try:
            await playout.run(session)
        finally:
            stop_hearing()
            await fan.finish()
    finally:
        await _close_all(sinks)


class _Fan:
    """Hands each frame to each sink, early to those that are slow to show it."""

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
            self._soon(delay_s, sink.show, frame)

    def repeat(self, frame: AVFrame) -> None:
        for sink, delay_s in self._sinks:
            self._soon(delay_s, sink.repeat, frame)

    def report(self, frame: AVFrame) -> None:
        """Tell the session when a frame that was shown can be seen and heard."""
        self._soon(self._slowest_s, self._session.notify_played, frame)

    def hear(self, event: Event) -> None:
        """Let an interrupt be heard at once, not with the next frame."""
        if event.type == "segment.interrupted":
            for sink, _ in self._sinks:
                sink.flush()

    async def finish(self) -> None:
        """Wait for what is held back."""
        if self._slowest_s:
            await asyncio.sleep(self._slowest_s)

    def _soon(self, delay_s: float, take: Callable[[AVFrame], None], frame: AVFrame) -> None:
        if delay_s <= 0:
            take(frame)
        else:
            asyncio.get_running_loop().call_later(delay_s, self._late, take, frame)

    def _late(self, take: Callable[[AVFrame], None], frame: AVFrame) -> None:
        try:
            take(in_epoch(frame, self._session.epoch))
        except Exception as error:  # raised with the next frame
            self._failure = error


async def _close_all(sinks: Sequence[Sink]) -> None:
    """Close every sink, then tell the first thing that went wrong."""
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
