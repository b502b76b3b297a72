"""One live conversation: speech goes in, pictures with their sound come out.

The event loop never waits for the model: its calls run in the thread given. This room knows no
torch and no transport.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from letstalk_rt.audio.resample import Resampler, check_pcm, check_rate
from letstalk_rt.audio.segmenter import EndMark, Hop, Segmenter, Sound
from letstalk_rt.errors import ConfigError, EngineError, SessionClosed
from letstalk_rt.metrics import Metrics
from letstalk_rt.pacing import Pacer
from letstalk_rt.types import FPS, SAMPLE_RATE, AVFrame, Interrupted, Portrait, SegmentEnd

T = TypeVar("T")

logger = logging.getLogger(__name__)

_GRACE_S = 0.1  # how late live speech may come before silence takes its place
_SPARE_S = 0.06  # how much longer than the last ones a step may take
_EARLY_S = 0.001  # timers are no finer than this
_SLICE_S = 0.1  # sound resampled in one go; keeps the event loop free


class Pipeline(Protocol):
    """What the engine needs of a model: plain blocking calls, made from one thread."""

    frames_per_window: int
    hop: int
    lookahead_frames: int

    def init_state(self, portrait: Portrait, *, seed: int = 0) -> Any:
        """Make the state of a new session."""
        ...

    def step(self, pcm: np.ndarray, states: Sequence[Any]) -> np.ndarray:
        """Turn `(B, hop)` float32 into `(B, N, H, W, 3)` uint8; states are updated in place."""
        ...

    def interrupt(self, state: Any) -> None:
        """Forget the speech heard so far, but keep the face where it is."""
        ...


@dataclass(frozen=True, slots=True)
class _Picture:
    """A frame that waits for its reader."""

    rgb: np.ndarray
    sound: Sound
    made_s: float


class AvatarSession:
    """One live conversation with an avatar; open it with `async with`.

    One task may push while another iterates; there is one reader. All waiting work is bounded: when
    `max_hops` hops wait, `push_audio` waits, and when the reader falls behind, the model waits.
    Nothing is dropped except by `interrupt` and `aclose`.

    Frames are numbered from 0 without gaps, over segments and interrupts. The first frames show
    silence, for the pictures are `lookahead_frames` behind the sound.

    Args:
        pipeline: the model.
        executor: the one thread that runs it, shared by all sessions of the model.
        portrait: the face.
        idle: live use. When a frame will be due and no speech has come, the model hears silence,
            so that the avatar lives on; never faster than real time. Without it frames come only
            for pushed speech.
        seed: of everything random in the pictures.
        max_hops: bound of the speech that waits, in hops.

    Attributes:
        metrics: stage times and counters of this session.

    Raises:
        ConfigError: `max_hops` is below 1.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        executor: Executor,
        portrait: Portrait,
        *,
        idle: bool = True,
        seed: int = 0,
        max_hops: int = 4,
    ) -> None:
        if max_hops < 1:
            raise ConfigError(f"max_hops must be at least 1, got {max_hops}")
        self.metrics = Metrics()
        self._pipeline = pipeline
        self._executor = executor
        self._portrait = portrait
        self._idle = idle
        self._seed = seed
        self._max_hops = max_hops
        self._window = pipeline.frames_per_window
        self._segmenter = segmenter_for(pipeline)
        self._resampler = Resampler(SAMPLE_RATE)
        self._pushing = asyncio.Lock()
        self._work: deque[tuple[Hop | EndMark, float]] = deque()  # with the time it was queued
        self._ready: deque[_Picture | SegmentEnd] = deque()
        self._frames_ready = 0
        self._room = asyncio.Event()  # for speech in _work
        self._wake = asyncio.Event()  # the model task has something to look at
        self._readable = asyncio.Event()
        self._epoch = 0
        self._index = 0
        self._arriving = 0.0  # samples in push_audio calls that wait, at 16 kHz
        self._queued = 0  # samples taken and not handed out
        self._played = 0  # samples handed out of the segment that plays
        self._expected_s = -math.inf  # when a live source must have given more
        self._step_s = 0.0
        self._clock = Pacer(FPS)
        self._closed = False
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._check_not_closed()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="avatar-session")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AVFrame | SegmentEnd:
        """Wait for the next frame or the end of a segment.

        Raises:
            EngineError: a step failed; the cause is chained. The frames made before came first.
            SessionClosed: the session was never opened.
            StopAsyncIteration: the session was closed.
        """
        while not self._ready:
            if self._failure is not None:
                raise EngineError(
                    "a step failed and ended the session; open another"
                ) from self._failure
            if self._closed:
                raise StopAsyncIteration
            self._check_open()
            self._readable.clear()
            await self._readable.wait()
        return self._hand_out(self._ready.popleft())

    @property
    def epoch(self) -> int:
        """How many interrupts there were; a frame of an older epoch must not be shown."""
        return self._epoch

    @property
    def closed(self) -> bool:
        """The session was closed or has failed."""
        return self._closed

    @property
    def backlog_ms(self) -> int:
        """Speech that was given and not handed out yet."""
        return _ms(self._queued + self._arriving)

    async def push_audio(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Give speech, in pieces of any length up to some seconds; waits when the model is behind.

        Speech that still waits here when `interrupt` is called is dropped with the rest.

        Args:
            pcm: int16, or float32 in [-1, 1] (beyond is clipped); `(n,)`, or `(n, channels)` with
                one or two channels, which are averaged. An empty piece changes nothing.
            sample_rate: in Hz, a multiple of 100 from 8000 to 192000; may change between calls.

        Raises:
            AudioFormatError: `pcm` or `sample_rate` is not of this kind; nothing of it was taken.
            SessionClosed: the session is not open, or has ended.
        """
        check_rate(sample_rate)
        check_pcm(pcm)
        self._check_open()
        epoch, scale = self._epoch, SAMPLE_RATE / sample_rate
        self._expected_s = max(self._expected_s, self._now_s() + len(pcm) / sample_rate)
        self._arriving += len(pcm) * scale
        try:
            async with self._pushing:
                while len(pcm) and epoch == self._epoch:
                    piece = pcm[: int(sample_rate * _SLICE_S)]
                    await self._feed(await self._resample(piece, sample_rate, epoch), epoch)
                    if epoch == self._epoch:
                        self._arriving -= len(piece) * scale
                        pcm = pcm[len(piece) :]
        finally:  # an interrupt has cleared the account
            if epoch == self._epoch:
                self._arriving -= len(pcm) * scale

    async def end_segment(self) -> None:
        """Mark the end of an utterance: its last sound is shown, then comes its `SegmentEnd`.

        A hop that is not full is filled with silence, and as much silence follows as the model
        looks ahead; so up to 240 ms lie between this segment and the next. A segment without
        speech ends at once.

        Raises:
            SessionClosed: the session is not open, or has ended.
        """
        self._check_open()
        epoch = self._epoch
        async with self._pushing:
            await self._feed(self._resampler.flush(), epoch)
            if await self._has_room(epoch):
                self._queue_work(self._segmenter.end_segment())

    def interrupt(self) -> Interrupted:
        """Drop all speech and pictures that were not handed out. Returns at once.

        The segment that had begun is over, without a `SegmentEnd`; the next speech begins another.
        The step that runs now is let run, and its frames are dropped.
        """
        result = Interrupted(_ms(self._played), self.backlog_ms)
        self._epoch += 1
        self.metrics.drops += self._frames_ready
        self._drop_waiting()
        self._segmenter.interrupt()
        self._resampler.reset()
        self._arriving, self._queued, self._played = 0.0, 0, 0
        self._expected_s = -math.inf
        return result

    async def aclose(self) -> None:
        """End the session and drop what waits. Safe to call twice, and before opening."""
        self._end()
        if self._failure is None:
            self._drop_waiting()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # Input side: callers of push_audio and end_segment, one at a time.

    async def _resample(self, piece: np.ndarray, sample_rate: int, epoch: int) -> np.ndarray:
        if sample_rate != self._resampler.sample_rate:
            await self._feed(self._resampler.flush(), epoch)
            if epoch != self._epoch:
                return np.zeros(0, np.float32)  # the next speech must not hear this piece
            self._resampler = Resampler(sample_rate)
        return self._resampler.push(piece)

    async def _feed(self, samples: np.ndarray, epoch: int) -> None:
        """Queue a slice of 16 kHz speech, once there is room for a hop."""
        if samples.size and await self._has_room(epoch):
            self._queued += samples.size
            self._queue_work(self._segmenter.push(samples))

    async def _has_room(self, epoch: int) -> bool:
        """Wait until a hop may be queued; False when an interrupt came first."""
        while epoch == self._epoch and len(self._work) >= self._max_hops and not self._closed:
            self._room.clear()
            await self._room.wait()
        self._check_open()
        return epoch == self._epoch

    def _queue_work(self, items: Iterable[Hop | EndMark]) -> None:
        self._work.extend((item, self._now_s()) for item in items)
        self._wake.set()

    # Model side: one task.

    async def _run(self) -> None:
        try:
            await self._serve()
        except Exception as error:  # kept for the reader, who raises it
            logger.error("a step failed", extra={"error": type(error).__name__})
            self._failure = error
        finally:
            self._end()

    async def _serve(self) -> None:
        init_state = partial(self._pipeline.init_state, self._portrait, seed=self._seed)
        state = await self._on_model(init_state)
        state_epoch = self._epoch
        while True:
            item = await self._next_work()
            epoch = self._epoch
            if isinstance(item, EndMark):
                self._put(SegmentEnd(item.segment_id, epoch))
                continue
            if epoch != state_epoch:
                await self._on_model(partial(self._pipeline.interrupt, state))
                state_epoch = epoch
            started_s = self._now_s()
            step = partial(self._pipeline.step, item.pcm[None], [state])
            frames = (await self._on_model(step))[0]
            self._note_step(self._now_s() - started_s)
            if epoch == self._epoch:
                self._put_window(frames, item)
            else:
                self.metrics.drops += len(frames)

    async def _next_work(self) -> Hop | EndMark:
        """Wait until a step is wanted, then take a hop of speech or, when idle, make one."""
        while True:
            self._wake.clear()
            wait_s: float | None = None
            if self._frames_ready <= self._headroom():
                if self._work:
                    return self._take_work()
                if self._idle and (wait_s := self._idle_wait_s()) <= _EARLY_S:
                    return self._segmenter.fill()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass  # an idle hop is due

    def _take_work(self) -> Hop | EndMark:
        item, queued_s = self._work.popleft()
        self.metrics.stamp("queue", self._now_s() - queued_s)
        self._room.set()
        return item

    def _headroom(self) -> int:
        """Frames that may wait when a step begins.

        Live, as few as let the reader never wait, for new speech stands behind them. The frame that
        is shown and the one that the reader holds last a while too.
        """
        if not self._idle:
            return self._window
        needed = math.ceil((self._step_s + _SPARE_S) * FPS) - 2
        return min(self._window, max(0, needed))

    def _idle_wait_s(self) -> float:
        """Seconds until a hop of silence is due.

        The model may be one window ahead of the clock. In the midst of speech, silence must wait: a
        live source that gave sound of some length gives more after that time, or a little later.
        """
        now_s = self._now_s()
        wait_s = self._clock.delay_s(self._index, now_s) - self._window / FPS
        if self._segmenter.in_speech:
            wait_s = max(wait_s, self._expected_s + _GRACE_S - now_s)
        return wait_s

    def _note_step(self, took_s: float) -> None:
        self._step_s = max(took_s, 0.9 * self._step_s)
        self.metrics.stamp("step", took_s)

    def _put_window(self, frames: np.ndarray, hop: Hop) -> None:
        assert frames.shape[0] == self._window and frames.dtype == np.uint8, frames.shape
        for count, (rgb, sound) in enumerate(zip(frames, hop.sounds, strict=True), start=1):
            self._put(_Picture(rgb, sound, self._now_s()))
            if count == hop.end_after:
                self._put(SegmentEnd(sound.segment_id, self._epoch))

    def _put(self, item: _Picture | SegmentEnd) -> None:
        self._ready.append(item)
        self._frames_ready += isinstance(item, _Picture)
        self._readable.set()

    async def _on_model(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    # Both sides.

    def _hand_out(self, item: _Picture | SegmentEnd) -> AVFrame | SegmentEnd:
        if isinstance(item, SegmentEnd):
            self._played = 0
            return item
        sound = item.sound
        frame = AVFrame(item.rgb, sound.pcm, self._index, sound.segment_id, self._epoch)
        self._index += 1
        self._frames_ready -= 1
        self._queued -= sound.spoken
        self._played += sound.spoken
        self.metrics.stamp("wait", self._now_s() - item.made_s)
        self._wake.set()
        return frame

    def _drop_waiting(self) -> None:
        self._work.clear()
        self._ready.clear()
        self._frames_ready = 0
        self._room.set()
        self._wake.set()

    def _end(self) -> None:
        self._closed = True
        self._room.set()
        self._readable.set()

    def _check_open(self) -> None:
        self._check_not_closed()
        if self._task is None:
            raise SessionClosed("the session is not open; use 'async with avatar.session() as ...'")

    def _check_not_closed(self) -> None:
        if self._failure is not None:
            raise SessionClosed("a step failed and ended the session; open another") from (
                self._failure
            )
        if self._closed:
            raise SessionClosed("the session was closed; open another")

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def segmenter_for(pipeline: Pipeline) -> Segmenter:
    """Make the segmenter that fits a model."""
    return Segmenter(pipeline.hop, pipeline.frames_per_window, pipeline.lookahead_frames)


def _ms(samples: float) -> int:
    return round(samples * 1000 / SAMPLE_RATE)
