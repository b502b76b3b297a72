"""One live conversation: speech goes in, pictures with their sound come out.

What the caller meets; speech waits in `AudioInput`, `StepScheduler` drives the model, frames wait
in `FrameQueue`. This room knows no torch and no transport.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import numpy as np

from letstalk_rt.audio.voice_activity import VoiceActivity, check_voice_activity, hold_frames
from letstalk_rt.errors import ConfigError, EngineError, SessionClosed
from letstalk_rt.inference.protocol import DEFAULT_MOTION, StateOptions
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.metrics import FrameStamps, Metrics
from letstalk_rt.session.audio_input import AudioInput
from letstalk_rt.session.events import Event, EventHub, EventListener
from letstalk_rt.session.frame_queue import FrameQueue, QueuedFrame
from letstalk_rt.session.options import lookahead_in_frames, segmenter_for
from letstalk_rt.session.playback import (
    IDLE_AFTER_FRAMES,
    Playback,
    PlaybackMode,
    check_playback_mode,
    to_ms,
)
from letstalk_rt.session.step_scheduler import PortraitChange, StepScheduler
from letstalk_rt.types import (
    AVFrame,
    Interrupted,
    MotionOptions,
    Portrait,
    SegmentEnd,
)

logger = logging.getLogger(__name__)

_STARVED_S = 0.24  # a reader that waits so long for a frame has nothing more to show


class AvatarSession:
    """One live conversation with an avatar; open it with `async with`.

    One task may push while another iterates; there is one reader. All waiting work is bounded: when
    `max_hops` hops wait, `push_audio` waits, and when the reader falls behind, the model waits.
    Nothing is dropped except by `interrupt` and `aclose`, and, of a live source, samples that its
    clock gives too many and pauses after a stall.

    Frames are numbered from 0 without gaps, over segments and interrupts. The first frames show
    silence, for the pictures are `lookahead_frames` behind the sound.

    Args:
        worker: runs the model; shared by all sessions of it.
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
        playback: when a frame counts as played, for events, `state`, `interrupt` and the time at
            which the next frame is made. `on_read`: when it is read, for readers that use each
            frame at once. `reported`: when `notify_played` is called with it, for players that hold
            frames until they are due, such as `sinks.play.play`.

    Attributes:
        metrics: stage times and counters of this session.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        worker: ModelWorker[Any],
        portrait: Portrait,
        *,
        idle: bool = True,
        seed: int = 0,
        max_hops: int = 4,
        steps: int | None = None,
        lookahead_ms: int | None = None,
        motion: MotionOptions = DEFAULT_MOTION,
        voice_activity: VoiceActivity = "energy",
        playback: PlaybackMode = "on_read",
    ) -> None:
        if max_hops < 1:
            raise ConfigError(f"max_hops must be at least 1, got {max_hops}")
        check_voice_activity(voice_activity)
        check_playback_mode(playback)
        self.metrics = Metrics()
        self._portrait, self._idle = portrait, idle
        self._readable = asyncio.Event()
        lookahead = lookahead_in_frames(worker.pipeline, lookahead_ms)
        self._options = StateOptions(seed, steps, lookahead, motion)
        self._hub = EventHub()
        quiet_frames = IDLE_AFTER_FRAMES - hold_frames(voice_activity)
        self._playback = Playback(self._hub, playback, quiet_frames)
        self._wake = asyncio.Event()  # the stepper has something to look at
        self._audio_input = AudioInput(
            segmenter_for(worker.pipeline, lookahead),
            max_hops,
            idle,
            self._now_s,
            self._wake.set,
            self.metrics,
            self._hub,
        )
        self._frames = FrameQueue(self._now_s, idle, self.metrics, self._readable.set)
        self._scheduler = StepScheduler(
            worker,
            self._audio_input,
            self._frames,
            self.metrics,
            self._wake,
            self._now_s,
            live=idle,
            lookahead_frames=lookahead,
            voice_activity=voice_activity,
        )
        self._closed = False
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

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
        if not len(self._frames):
            await self._await_frames()
        return self._hand_out()

    @property
    def epoch(self) -> int:
        """How many interrupts there were; a frame of an older epoch must not be shown."""
        return self._audio_input.epoch

    @property
    def closed(self) -> bool:
        """The session was closed or has failed."""
        return self._closed

    @property
    def backlog_ms(self) -> int:
        """Speech that was given and not played yet."""
        return to_ms(self._audio_input.backlog + self._playback.unplayed)

    @property
    def state(self) -> str:
        """What the avatar does: `speaking`, `listening` or `idle`."""
        return self._playback.state.name

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
        await self._audio_input.push(pcm, sample_rate)

    async def end_segment(self) -> None:
        """Mark the end of an utterance: its last sound is shown, then comes its `SegmentEnd`.

        A hop that is not full is filled with silence, and as much silence follows as the model
        looks ahead; so up to 240 ms lie between this segment and the next. A segment without
        speech ends at once.

        Raises:
            SessionClosed: the session is not open, or has ended.
        """
        self._check_open()
        await self._audio_input.end_segment()

    def interrupt(self) -> Interrupted:
        """Drop all speech that was not played. Returns at once.

        The segment that had begun is over, without a `SegmentEnd`; the next speech begins another.
        Live, pictures that were made or in the making go on in silence, in the new epoch, until the
        model has taken over, for at most 200 ms; from there the face comes to rest. The others are
        dropped. Who holds frames of an older `epoch` must show them without their sound, as
        `Playout` does. The avatar listens, until it speaks again. May be called at any time, also
        before speech, and after closing, where it changes nothing.
        """
        if self._closed:
            return Interrupted(self._playback.played_ms, self.backlog_ms)
        segment_id, unread = self._audio_input.segment_id, self._audio_input.backlog
        self._audio_input.interrupt()
        self._frames.interrupt(self._audio_input.segment_id)
        self._wake.set()
        return self._playback.interrupt(segment_id, unread)

    def notify_played(self, frame: AVFrame) -> None:
        """Report that a frame is shown now, and its sound heard.

        For sessions opened with `playback="reported"`: whoever plays calls it with each frame when
        it really is shown, in order; frames that were left out need no report. Segments, `state`,
        events and `played_ms` follow these reports, and so does the time at which the next step
        begins. The report of a frame that an interrupt silenced counts as silence.

        Raises:
            ConfigError: the session was opened with `playback="on_read"`.
        """
        if not self._playback.is_reported:
            raise ConfigError(
                "this session counts frames as played when they are read; open it with "
                "playback='reported' to report them"
            )
        self._frames.note_played(frame.index)
        self._playback.note_played(frame.index)
        self._wake.set()

    def listen(self, listening: bool = True) -> None:
        """Say that somebody else has the word, or has it no more; see `Event`."""
        self._playback.state.listen(listening)

    async def change_portrait(self, portrait: Portrait) -> None:
        """Go on with another face, from the next window on, without a gap.

        Speech, counts and the movement go on. Returns when the model has taken the portrait.

        Raises:
            PortraitError: it is not prepared; the session goes on with the old one.
            SessionClosed: the session is not open, or has ended.
            ConfigError: the model cannot change faces.
        """
        self._check_open()
        change = PortraitChange(portrait, asyncio.get_running_loop().create_future())
        self._scheduler.change(change)
        await change.done

    def on_event(self, listener: EventListener) -> Callable[[], None]:
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
            self._audio_input.drop_waiting()
            self._frames.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._scheduler.run(self._portrait, self._options)
        except Exception as error:  # kept for the reader, who raises it
            logger.error("a step failed", extra={"error": type(error).__name__})
            self._failure = error
        finally:
            self._end()

    # Reader's side.

    async def _await_frames(self) -> None:
        self._check_open_for_reading()
        asked_s = self._now_s()
        while not len(self._frames):
            self._readable.clear()
            await self._readable.wait()
            if not len(self._frames):
                self._check_open_for_reading()
        late_s = self._now_s() - asked_s
        if self._idle and self._frames.index and late_s > _STARVED_S:
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

    def _hand_out(self) -> AVFrame | SegmentEnd:
        index, waiting = self._frames.index, self._frames.pop()
        item = waiting if isinstance(waiting, SegmentEnd) else self._frame_of(waiting, index)
        self._playback.hand_out(item)
        self._wake.set()
        return item

    def _frame_of(self, frame: QueuedFrame, index: int) -> AVFrame:
        audio, now_s = frame.audio, self._now_s()
        audio_in_s = self._audio_input.note_handed_out(audio.spoken)
        stamps = FrameStamps(
            audio_in_s, frame.hop_complete_s, frame.model_start_s, frame.made_s, now_s
        )
        self.metrics.stamp_frame(stamps)
        return AVFrame(
            frame.rgb,
            audio.pcm,
            index,
            audio.segment_id,
            self.epoch,
            stamps,
            spoken=audio.spoken,
            voiced=frame.voiced,
        )

    def _end(self) -> None:
        self._closed = True
        self._audio_input.close(self._closed_error)
        self._readable.set()
        self._scheduler.refuse_changes(self._closed_error())
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
        if self._loop is None:  # to ask for it costs a system call before Python 3.12
            self._loop = asyncio.get_running_loop()
        return self._loop.time()
