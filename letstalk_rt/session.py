"""One live conversation: speech goes in, pictures with their sound come out.

The event loop never waits for the model: its calls run in the thread given. This room knows no
torch and no transport.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np

from letstalk_rt.audio.activity import (
    VoiceActivity,
    VoiceGate,
    check_voice_activity,
    make_gate,
)
from letstalk_rt.audio.segmenter import EndMark, Hop, Sound
from letstalk_rt.contract import AS_MADE, Pipeline, frames_ahead, segmenter_for, wishes
from letstalk_rt.errors import ConfigError, EngineError, LetsTalkError, SessionClosed
from letstalk_rt.events import Event, EventHub, Listener, Mood
from letstalk_rt.intake import Intake, Work
from letstalk_rt.metrics import FrameStamps, Metrics
from letstalk_rt.pacing import Pacer
from letstalk_rt.types import (
    FPS,
    SAMPLE_RATE,
    AVFrame,
    Interrupted,
    MotionOptions,
    Portrait,
    SegmentEnd,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

_GRACE_S = 0.1  # how late live speech may come before silence takes its place
_SPARE_S = 0.04  # how much longer than the last ones a step may take
_EARLY_S = 0.001  # timers are no finer than this
_STARVED_S = 0.24  # a reader that waits so long for a frame has nothing more to show


@dataclass(frozen=True, slots=True)
class _Picture:
    """A frame that waits for its reader."""

    rgb: np.ndarray
    sound: Sound
    voiced: bool
    hop_complete_s: float
    model_start_s: float
    made_s: float


@dataclass(frozen=True, slots=True)
class _Change:
    """A portrait that shall be shown from now on."""

    portrait: Portrait
    done: "asyncio.Future[None]"

    def finish(self, problem: Exception | None) -> None:
        """Tell the caller, if he still waits."""
        if self.done.done():
            return
        if problem is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(problem)


class AvatarSession:
    """One live conversation with an avatar; open it with `async with`.

    One task may push while another iterates; there is one reader. All waiting work is bounded: when
    `max_hops` hops wait, `push_audio` waits, and when the reader falls behind, the model waits.
    Nothing is dropped except by `interrupt` and `aclose`, and, of a live source, samples that its
    clock gives too many and pauses after a stall.

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
        steps: sampler steps per window, more for finer pictures; the model's own when None.
        lookahead_ms: sound that pictures wait for, from 0 to the model's own (80), which None
            stands for. Less is sooner, and the lips follow less well.
        motion: how the face moves; see `MotionOptions`.
        voice_activity: how voice is told from noise: by `energy`, or by `silero`, which needs the
            extra `vad`. Live, the model hears silence where there is no voice, so that noise does
            not move the lips; the sound itself is never changed. `off` takes all sound for voice.

    Attributes:
        metrics: stage times and counters of this session.

    Raises:
        ConfigError: an option is out of range.
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
        steps: int | None = None,
        lookahead_ms: int | None = None,
        motion: MotionOptions = AS_MADE,
        voice_activity: VoiceActivity = "energy",
    ) -> None:
        if max_hops < 1:
            raise ConfigError(f"max_hops must be at least 1, got {max_hops}")
        check_voice_activity(voice_activity)
        self.metrics = Metrics()
        self._pipeline, self._executor, self._portrait = pipeline, executor, portrait
        self._idle = idle
        self._lookahead = frames_ahead(pipeline, lookahead_ms)
        self._wanted = wishes(pipeline, seed, steps, self._lookahead, motion)
        self._window = pipeline.frames_per_window
        self._hub = EventHub()
        self._mood = Mood(self._hub)
        self._wake = asyncio.Event()  # the model task has something to look at
        self._intake = Intake(
            segmenter_for(pipeline, self._lookahead),
            max_hops,
            idle,
            self._now_s,
            self._wake.set,
            self.metrics,
            self._hub,
        )
        self._voice_activity: VoiceActivity = voice_activity
        self._voiced: deque[bool] = deque([False] * self._lookahead)  # of the sounds to be shown
        self._changes: deque[_Change] = deque()
        self._ready: deque[_Picture | SegmentEnd] = deque()
        self._frames_ready = 0
        self._readable = asyncio.Event()
        self._unseen = 0  # frames made, and dropped by an interrupt the model does not know of
        self._index = 0
        self._segment: int | None = None  # the one that plays
        self._played = 0  # samples handed out of it
        self._step_s = 0.0
        self._clock = Pacer(FPS, patience=0)
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
        if not self._ready:
            await self._await_ready()
        return self._hand_out(self._ready.popleft())

    @property
    def epoch(self) -> int:
        """How many interrupts there were; a frame of an older epoch must not be shown."""
        return self._intake.epoch

    @property
    def closed(self) -> bool:
        """The session was closed or has failed."""
        return self._closed

    @property
    def backlog_ms(self) -> int:
        """Speech that was given and not handed out yet."""
        return _ms(self._intake.backlog)

    @property
    def state(self) -> str:
        """What the avatar does: `speaking`, `listening` or `idle`."""
        return self._mood.state

    async def push_audio(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Give speech, in pieces of any length; waits when the model is behind.

        Speech after `end_segment` begins the next segment. Speech that still waits here when
        `interrupt` is called is dropped with the rest.

        Args:
            pcm: int16, or float32 in [-1, 1] (beyond is clipped, with a warning); `(n,)`, or
                `(n, channels)` with one or two channels, which are averaged. An empty piece changes
                nothing.
            sample_rate: in Hz, a multiple of 100 from 8000 to 192000; may change between calls.

        Raises:
            AudioFormatError: `pcm` or `sample_rate` is not of this kind; nothing of it was taken.
            SessionClosed: the session is not open, or has ended.
        """
        self._check_open()
        await self._intake.push(pcm, sample_rate)

    async def end_segment(self) -> None:
        """Mark the end of an utterance: its last sound is shown, then comes its `SegmentEnd`.

        A hop that is not full is filled with silence, and as much silence follows as the model
        looks ahead; so up to 240 ms lie between this segment and the next. A segment without
        speech ends at once.

        Raises:
            SessionClosed: the session is not open, or has ended.
        """
        self._check_open()
        await self._intake.end_segment()

    def interrupt(self) -> Interrupted:
        """Drop all speech and pictures that were not handed out. Returns at once.

        The segment that had begun is over, without a `SegmentEnd`; the next speech begins another.
        The step that runs now is let run, and its frames are dropped; the face goes on from the
        last frame handed out, and comes to rest. The avatar listens, until it speaks again. May be
        called at any time, also before speech, and after closing, where it changes nothing.
        """
        result = Interrupted(_ms(self._played), self.backlog_ms)
        if self._closed:
            return result
        segment, spoke = self._intake.segment_id, self._segment is not None or self.backlog_ms > 0
        self._intake.interrupt()
        self.metrics.drops += self._frames_ready
        self._unseen += self._frames_ready
        self._drop_ready()
        self._voiced = deque([False] * self._lookahead)
        if spoke:
            playing = segment if self._segment is None else self._segment
            cut = (playing, result.played_ms, result.dropped_ms)
            self._hub.emit(Event("segment.interrupted", *cut))
        self._segment, self._played = None, 0
        self._mood.listen(True)
        return result

    def listen(self, listening: bool = True) -> None:
        """Say that somebody else has the word, or has it no more; see `Event`."""
        self._mood.listen(listening)

    async def change_portrait(self, portrait: Portrait) -> None:
        """Go on with another face, from the next window on, without a gap.

        Speech, counts and the movement go on. Returns when the model has taken the portrait.

        Raises:
            PortraitError: it is not prepared; the session goes on with the old one.
            SessionClosed: the session is not open, or has ended.
            ConfigError: the model cannot change faces.
        """
        self._check_open()
        if not hasattr(self._pipeline, "change_portrait"):
            raise ConfigError("this model cannot change faces; open another session")
        change = _Change(portrait, asyncio.get_running_loop().create_future())
        self._changes.append(change)
        self._wake.set()
        await change.done

    def on_event(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each `Event` from now on; returns what ends that.

        It runs on the event loop and must not block.
        """
        return self._hub.listen(listener)

    def events(self) -> AsyncIterator[Event]:
        """Give the events from now on, until the session is closed.

        Of a reader who falls behind by more than 64, the oldest are dropped.
        """
        return self._hub.stream()

    async def aclose(self) -> None:
        """End the session and drop what waits. Safe to call twice, and before opening."""
        self._end()
        if self._failure is None:
            self._intake.drop_waiting()
            self._drop_ready()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

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
        state = await self._on_model(
            partial(self._pipeline.init_state, self._portrait, **self._wanted)
        )
        gate = await self._open_gate()
        state_epoch = self.epoch
        while True:
            work = await self._next_work()
            epoch = self.epoch
            if isinstance(work, _Change):
                await self._change(state, work)
                continue
            if isinstance(work.item, EndMark):
                self._put(SegmentEnd(work.item.segment_id, epoch))
                continue
            if epoch != state_epoch:
                await self._on_model(self._interruption(state))
                gate.reset()
                state_epoch = epoch
            heard = await self._listen_to(gate, work.item, epoch)
            started_s = self._now_s()
            frames = (await self._on_model(partial(self._pipeline.step, heard, [state])))[0]
            self._note_step(self._now_s() - started_s)
            if epoch == self.epoch:
                self._put_window(frames, work, started_s)
            else:
                self.metrics.drops += len(frames)
                self._unseen += len(frames)

    async def _next_work(self) -> Work | _Change:
        """Wait until a step is wanted, then take a hop of speech or, when idle, make one."""
        while True:
            self._wake.clear()
            if self._changes:
                return self._changes.popleft()
            wait_s: float | None = None
            if self._frames_ready <= self._headroom():
                if self._intake.waiting:
                    return self._intake.take()
                if self._idle and (wait_s := self._idle_wait_s()) <= _EARLY_S:
                    return self._intake.fill()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass  # an idle hop is due

    async def _open_gate(self) -> VoiceGate:
        if self._voice_activity == "silero":  # loads a network
            return await self._on_model(partial(make_gate, self._voice_activity))
        return make_gate(self._voice_activity)

    async def _listen_to(self, gate: VoiceGate, hop: Hop, epoch: int) -> np.ndarray:
        """Give what the model hears of a hop, `(1, hop)`: nothing where there is no voice."""
        voiced = (
            await self._on_model(partial(gate.hear, hop.pcm))
            if gate.blocking
            else gate.hear(hop.pcm)
        )
        if epoch == self.epoch:
            self._voiced.extend(voiced)
        silent = self._idle and not any(voiced)
        return np.zeros_like(hop.pcm[None]) if silent else hop.pcm[None]

    def _interruption(self, state: Any) -> Callable[[], None]:
        """Give the call that tells the model of an interrupt."""
        unseen, self._unseen = self._unseen, 0
        return partial(self._pipeline.interrupt, state, unseen=unseen)

    async def _change(self, state: Any, change: _Change) -> None:
        pipeline: Any = self._pipeline
        problem: Exception | None = None
        try:
            await self._on_model(partial(pipeline.change_portrait, state, change.portrait))
            self._portrait = change.portrait
        except LetsTalkError as error:  # the caller's mistake: the old face goes on
            problem = error
        except BaseException:
            change.finish(SessionClosed("the session ended before it took the portrait"))
            raise
        change.finish(problem)

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
        if self._intake.in_speech:
            wait_s = max(wait_s, self._intake.expected_s + _GRACE_S - now_s)
        return wait_s

    def _note_step(self, took_s: float) -> None:
        self._step_s = max(took_s, 0.9 * self._step_s)
        self.metrics.stamp_step(took_s, self._window / FPS)

    def _put_window(self, frames: np.ndarray, work: Work, started_s: float) -> None:
        hop, now_s = work.item, self._now_s()
        assert isinstance(hop, Hop)
        assert frames.shape[0] == self._window and frames.dtype == np.uint8, frames.shape
        for count, (rgb, sound) in enumerate(zip(frames, hop.sounds, strict=True), start=1):
            voiced = self._voiced.popleft()
            self._put(_Picture(rgb, sound, voiced, work.queued_s, started_s, now_s))
            if count == hop.end_after:
                self._put(SegmentEnd(sound.segment_id, self.epoch))

    def _put(self, item: _Picture | SegmentEnd) -> None:
        self._ready.append(item)
        self._frames_ready += isinstance(item, _Picture)
        self._readable.set()

    async def _on_model(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    # Reader's side.

    async def _await_ready(self) -> None:
        self._check_open_for_reading()
        asked_s = self._now_s()
        while not self._ready:
            self._readable.clear()
            await self._readable.wait()
            if not self._ready:
                self._check_open_for_reading()
        late_s = self._now_s() - asked_s
        if self._idle and self._index and late_s > _STARVED_S:
            self._hub.warn(
                "model-behind",
                f"A frame came {late_s * 1000:.0f} ms after it was asked for: the machine is too "
                "slow now. Use fewer sessions or steps, or a smaller preset.",
                self._now_s(),
            )

    def _check_open_for_reading(self) -> None:
        if self._failure is not None:
            raise EngineError("a step failed and ended the session; open another") from (
                self._failure
            )
        if self._closed:
            raise StopAsyncIteration
        self._check_open()

    def _hand_out(self, item: _Picture | SegmentEnd) -> AVFrame | SegmentEnd:
        if isinstance(item, SegmentEnd):
            self._finish_segment(item.segment_id)
            return item
        sound, now_s = item.sound, self._now_s()
        audio_in_s = self._intake.note_shown(sound.spoken)
        stamps = FrameStamps(
            audio_in_s, item.hop_complete_s, item.model_start_s, item.made_s, now_s
        )
        index = self._index
        frame = AVFrame(item.rgb, sound.pcm, index, sound.segment_id, self.epoch, stamps)
        self._index += 1
        self._frames_ready -= 1
        self.metrics.stamp_frame(stamps)
        if sound.spoken:
            self._play(sound)
        self._mood.note_frame(item.voiced)
        self._wake.set()
        return frame

    def _play(self, sound: Sound) -> None:
        if self._segment != sound.segment_id:
            self._segment, self._played = sound.segment_id, 0
            self._hub.emit(Event("segment.started", sound.segment_id, 0))
        self._played += sound.spoken

    def _finish_segment(self, segment_id: int) -> None:
        if self._segment == segment_id:
            self._hub.emit(Event("segment.finished", segment_id, _ms(self._played)))
        self._segment, self._played = None, 0

    def _drop_ready(self) -> None:
        self._ready.clear()
        self._frames_ready = 0
        self._wake.set()

    def _end(self) -> None:
        self._closed = True
        self._intake.close(self._closed_error())
        self._readable.set()
        for change in self._changes:
            change.finish(self._closed_error())
        self._changes.clear()
        self._hub.close()

    def _check_open(self) -> None:
        self._check_not_closed()
        if self._task is None:
            raise SessionClosed("the session is not open; use 'async with avatar.session() as ...'")

    def _check_not_closed(self) -> None:
        if self._closed:
            raise self._closed_error() from self._failure

    def _closed_error(self) -> SessionClosed:
        if self._failure is None:
            return SessionClosed("the session was closed; open another")
        error = SessionClosed("a step failed and ended the session; open another")
        error.__cause__ = self._failure
        return error

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _ms(samples: float) -> int:
    return round(samples * 1000 / SAMPLE_RATE)
