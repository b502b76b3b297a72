"""A live session, as its callers see it: speech goes in, frames with their audio come out.

Speech waits in `AudioInput`, `StepScheduler` runs the model, frames wait in `FrameQueue`. Nothing
here imports torch or a transport.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from letstalk_rt.audio.speech_resampler import check_output_rate
from letstalk_rt.audio.voice_activity import VoiceActivity, check_voice_activity, hold_frames
from letstalk_rt.errors import ConfigError, EngineError, SessionClosed, is_callers_mistake
from letstalk_rt.inference.protocol import (
    DEFAULT_MOTION,
    NOT_DIRECTABLE,
    CameraStatus,
    StateOptions,
)
from letstalk_rt.inference.quality import Quality
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.metrics import FrameStamps, Metrics
from letstalk_rt.performance.listening import Listening
from letstalk_rt.performance.moods import Style
from letstalk_rt.performance.performer import Performer
from letstalk_rt.session.adaptive_quality import (
    DegradationPreference,
    QualityAdapter,
    check_degradation_preference,
    levels_for,
)
from letstalk_rt.session.audio_input import AudioInput
from letstalk_rt.session.camera_input import CameraInput
from letstalk_rt.session.events import Event, EventHub, EventListener
from letstalk_rt.session.frame_queue import FrameQueue, QueuedFrame
from letstalk_rt.session.model_session import MAX_RECOVERY_S, RECOVERY_S
from letstalk_rt.session.options import lookahead_in_frames, segmenter_for
from letstalk_rt.session.playback import (
    IDLE_AFTER_FRAMES,
    Playback,
    PlaybackMode,
    check_playback_mode,
    to_ms,
)
from letstalk_rt.session.portraits import AnyPortrait, FaceReader, prepare_any, prepared_of
from letstalk_rt.session.session_recording import SessionRecording
from letstalk_rt.session.step_scheduler import Change, StepScheduler
from letstalk_rt.types import (
    SAMPLE_RATE,
    AVFrame,
    CameraOptions,
    Interrupted,
    MotionOptions,
    Portrait,
    SegmentEnd,
)

if TYPE_CHECKING:
    from letstalk_rt.recording.credentials import SigningCredentials
    from letstalk_rt.recording.provenance import Provenance

logger = logging.getLogger(__name__)

_NO_CAMERA_OPTIONS = CameraOptions()
_FAILED = "a step failed and ended the session; open another"
_STARVED_S = 0.24  # a reader that waited longer for a frame has run out of frames


class AvatarSession:
    """One live conversation with an avatar; open it with `async with`.

    One task may push while another iterates; there is one reader. All queues are bounded: when
    `max_hops` hops wait, `push_audio` waits, and when the reader is slow, the model waits. Nothing
    is dropped except by `interrupt` and `aclose`, and, for a live source, surplus samples from
    clock drift and parts of pauses after a stall.

    Frames are numbered from 0 without gaps, across segments and interrupts. The first frames show
    silence, because the video is `lookahead_frames` behind the audio.

    Args:
        worker: runs the model; shared by all sessions of it.
        portrait: the portrait to animate.
        idle: whether to generate idle frames, for live use. If no speech has arrived when a frame
            is due, the model is given silence, so that the avatar keeps moving; frames never come
            faster than real time. If False, frames are generated only for pushed speech.
        seed: seed of all randomness in the video, not negative.
        max_hops: how many hops of speech may wait.
        steps: sampling steps per window, from 1 to 50, more for better quality; None for the
            model's default.
        lookahead_ms: how much following audio each frame waits for, from 0 to the model's own (80
            for `tiny`), which is also the default. A lower value reduces latency and lip-sync
            accuracy.
        motion: how the face moves; see `MotionOptions`.
        voice_activity: how voice is distinguished from noise: `energy`, or `silero`, which needs
            the extra `vad`. In a live session the model is given silence where no voice is
            detected, so that noise does not move the lips; the audio of the frames is not changed.
            `off` treats all audio as voice.
        playback: when a frame counts as played, for events, `state`, `interrupt` and the time at
            which the next frame is generated. `on_read`: when it is read, for readers that use each
            frame at once. `reported`: when `notify_played` is called with it, for players that hold
            frames until they are due, such as `sinks.play.play`.
        output_sample_rate: sample rate of the frames' audio in Hz: 16000, 24000 or 48000. The model
            always hears 16 kHz; a higher rate passes the pushed audio on at up to this quality.
        recovery_s: how long the session waits for a model that was lost and is started again.
        camera: how frames of a camera move the face, once some are pushed; see `push_video`.
        degradation_preference: what a live session lowers when steps of the model are late for a
            second: `balanced`, `maintain-framerate`, `maintain-resolution`, as in WebRTC, or
            `disabled`. The size of the frames and their number stay the same.
        mood: how the avatar feels at first; see `set_mood`.
        mood_strength: how much of that is shown, from 0 to 1.
        listening: how it shows its attention at first; see `set_listening`.

    Attributes:
        metrics: stage durations and counters of this session.
        output_sample_rate: sample rate of the frames' audio in Hz.

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
        output_sample_rate: int = SAMPLE_RATE,
        recovery_s: float = RECOVERY_S,
        camera: CameraOptions = _NO_CAMERA_OPTIONS,
        degradation_preference: DegradationPreference = "balanced",
        mood: str | Style = "neutral",
        mood_strength: float = 1.0,
        listening: Listening = "off",
    ) -> None:
        if max_hops < 1:
            raise ConfigError(f"max_hops must be at least 1, got {max_hops}")
        if not 0 < recovery_s <= MAX_RECOVERY_S:
            raise ConfigError(f"recovery_s must be up to {MAX_RECOVERY_S:g}, got {recovery_s}")
        check_voice_activity(voice_activity)
        check_playback_mode(playback)
        check_output_rate(output_sample_rate)
        check_degradation_preference(degradation_preference)
        self.output_sample_rate = output_sample_rate
        self.metrics = Metrics()
        self._worker, self._portrait, self._idle = worker, portrait, idle
        self._readable = asyncio.Event()
        lookahead = lookahead_in_frames(worker.pipeline, lookahead_ms)
        self._options = StateOptions(seed, steps, lookahead, motion)
        self._hub = EventHub()
        quiet_frames = IDLE_AFTER_FRAMES - hold_frames(voice_activity)
        self._playback = Playback(self._hub, playback, quiet_frames)
        self._wake = asyncio.Event()  # the scheduler may have something to do
        self._audio_input = AudioInput(
            segmenter_for(worker.pipeline, lookahead, output_sample_rate),
            max_hops,
            idle,
            self._now_s,
            self._wake.set,
            self.metrics,
            self._hub,
            output_sample_rate,
        )
        self._performer = Performer(mood, mood_strength, listening, seed=seed)
        if (mood, listening) != ("neutral", "off"):
            self._check_directable()
        self._frames = FrameQueue(self._now_s, idle, self.metrics, self._readable.set)
        self._camera = CameraInput(
            worker.pipeline, camera, self._now_s, self._hub, self.metrics, self._performer.see
        )
        times, levels = worker.step_times, worker.pipeline.quality_levels
        allowed = levels_for(
            degradation_preference if idle else "disabled",
            levels if times is None else times.with_costs(levels),
        )
        self._quality = QualityAdapter(allowed, load=0.0 if times is None else times.load)
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
            recovery_s=recovery_s,
            on_failure=self._warn_of_failure,
            camera=self._camera,
            quality=self._quality,
            performer=self._performer,
            on_quality=self._announce_quality,
        )
        self._recordings: set[SessionRecording] = set()
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
            EngineError: a step failed, and all frames made before it were read; the cause is
                chained.
            PortraitError: the portrait is not prepared for this model.
            DependencyError: an option needs a package that is not installed.
            SessionClosed: the session is not open.
            StopAsyncIteration: the session was closed.
        """
        if not len(self._frames):
            await self._await_frames()
        return self._hand_out()

    @property
    def epoch(self) -> int:
        """The number of interrupts; audio of frames with an older epoch must not be played."""
        return self._audio_input.epoch

    @property
    def closed(self) -> bool:
        """Whether the session was closed or has failed."""
        return self._closed

    @property
    def backlog_ms(self) -> int:
        """How much pushed speech has not been played yet."""
        return to_ms(self._audio_input.backlog + self._playback.unplayed)

    @property
    def state(self) -> str:
        """The avatar state: `speaking`, `listening` or `idle`."""
        return self._playback.state.name

    @property
    def quality(self) -> Quality:
        """What is computed for each frame now; see `degradation_preference`."""
        return self._quality.quality

    async def push_audio(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Push a chunk of speech of any length; wait while the queue of hops is full.

        Speech after `end_segment` begins the next segment. Speech that still waits in this call
        when `interrupt` is called is dropped as well.

        Args:
            pcm: int16, or float32 in [-1, 1] (values beyond are clipped, with a warning); `(n,)`,
                or `(n, channels)` with one or two channels, which are averaged. An empty chunk has
                no effect.
            sample_rate: in Hz, an integer from 8000 to 192000; may change between calls.

        Raises:
            AudioFormatError: `pcm` or `sample_rate` is not supported; nothing was queued.
            SessionClosed: the session is not open or was closed.
        """
        self._check_open()
        await self._audio_input.push(pcm, sample_rate)

    def push_video(self, frame: np.ndarray, timestamp: float | None = None) -> None:
        """Push a frame of a camera, whose face moves the avatar's, or is watched by it.

        Returns at once: the frame is read in another thread, and skipped if a newer one arrives
        first. The head pose, gaze, blinks, brows and smile of the largest face are shown by the
        portrait, in its own proportions; see `CameraOptions`. While there is no face, more than
        one, or no new frame, the avatar moves by itself, from half a second on.

        Args:
            frame: `(H, W, 3)` uint8 RGB; 320 to 640 pixels are enough. It is not kept.
            timestamp: when the frame was captured, in seconds of the event loop's clock
                (`loop.time()`), so that it fits the sound of that moment; None for now. A frame
                that is older than the one before is ignored.

        Raises:
            ConfigError: `frame` is not an image, `timestamp` is NaN or infinite, or no camera can
                drive this model.
            SessionClosed: the session is not open or was closed.
        """
        self._check_open()
        self._camera.push(frame, timestamp)

    def take_neutral(self) -> None:
        """Take the look of the driver's next frames as the neutral one, which is shown as rest.

        Without it, the first half second of a driver counts as neutral.
        """
        self._check_open()
        self._camera.take_neutral()

    def set_camera(self, options: CameraOptions) -> None:
        """Change from now on how the camera moves the face."""
        self._camera.options = options

    @property
    def camera_status(self) -> CameraStatus | None:
        """What the last frame of the camera showed; None before one was read."""
        return self._camera.status

    def set_mood(
        self, mood: str | Style, strength: float = 1.0, *, at: float | None = None
    ) -> None:
        """Change how the avatar feels; it shows within half a second, also in mid-sentence.

        Args:
            mood: a name of `performance.MOODS`, or a style.
            strength: how much of it is shown, from 0 to 1.
            at: when, in seconds of audio from the start of the current segment; None for now.

        Raises:
            ConfigError: there is no such mood, a number is out of range, or this model cannot be
                directed.
        """
        self._check_directable()
        self._performer.set_mood(mood, strength, self._audio_input.segment_id, at)

    def gesture(self, name: str, amount: float = 1.0, *, at: float | None = None) -> None:
        """Make a gesture. An interrupt ends those that run, and drops those that wait.

        When more than eight gestures and moods wait, the oldest is dropped.

        Args:
            name: one of `performance.GESTURES`.
            amount: how large it is, from 0.1 to 2.
            at: when its first movement is complete, in seconds of audio from the start of the
                current segment; None to begin with the next window.

        Raises:
            ConfigError: there is no such gesture, a number is out of range, or this model cannot be
                directed.
        """
        self._check_directable()
        self._performer.gesture(name, amount, self._audio_input.segment_id, at)

    @property
    def is_directable(self) -> bool:
        """Whether this model has moods, gestures and listening."""
        return self._worker.pipeline.is_directable

    def set_listening(self, mode: Listening) -> None:
        """Change how the avatar shows its attention while somebody else speaks.

        Args:
            mode: `off`, `calm` or `attentive`.

        Raises:
            ConfigError: the mode is unknown, or this model cannot be directed.
        """
        self._check_directable()
        self._performer.set_listening(mode)

    def push_listened(self, speaking: bool, pitch_hz: float | None = None) -> None:
        """Tell the avatar whether somebody else speaks now, who it may listen to.

        Call it every 20 to 100 ms while their audio comes, and with False when it ends. Without a
        call for half a second they are silent.

        Args:
            speaking: whether there is voice.
            pitch_hz: its pitch, if it is known.

        Raises:
            ConfigError: the pitch is NaN, infinite or not positive.
        """
        self._performer.hear(speaking, pitch_hz, self._now_s())

    async def end_segment(self) -> None:
        """End the current segment: its `SegmentEnd` follows the frame with its last audio.

        An incomplete hop is padded with silence, followed by the silence of the model's look-ahead,
        so up to 240 ms lie between this segment and the next. A segment without speech ends at
        once.

        Raises:
            SessionClosed: the session is not open or was closed.
        """
        self._check_open()
        await self._audio_input.end_segment()

    def interrupt(self) -> Interrupted:
        """Drop all speech that was not played, without waiting.

        The current segment is over: the next item is a `SegmentEnd` whose `interrupted` is set,
        also if nothing was pushed yet. Speech pushed next begins another. In a live session, frames
        that were made or are being made are played on without audio, in the new epoch, for at most
        200 ms, until the model delivers new ones; from there the face comes
        to rest. All other frames are dropped. A player that holds frames of an older `epoch` must
        show them without their audio, as `Playout` does. The avatar state is `listening` until the
        avatar speaks again. May be called at any time; after closing it has no effect.
        """
        if self._closed:
            return Interrupted(self._playback.played_ms, self.backlog_ms)
        segment_id, unread = self._audio_input.segment_id, self._audio_input.backlog
        ended = self._playback.current_segment(segment_id)
        self._audio_input.interrupt()
        end = SegmentEnd(ended, self.epoch, interrupted=True)
        self._frames.interrupt(self._audio_input.segment_id, end)
        self._wake.set()
        return self._playback.interrupt(segment_id, unread)

    def notify_played(self, frame: AVFrame) -> None:
        """Report that a frame and its audio are played now.

        For sessions opened with `playback="reported"`: the player calls this with each frame when
        it is shown, in order; skipped frames need no report. Segments, `state`, events and
        `played_ms` follow these reports, and so does the time at which the next step begins. A
        frame that was silenced by an interrupt counts as silence.

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
        self._record(frame)
        self._wake.set()

    def listen(self, listening: bool = True) -> None:
        """Set the avatar state to `listening` while somebody else speaks; False ends that."""
        self._playback.state.listen(listening)

    async def change_portrait(self, portrait: AnyPortrait) -> None:
        """Change the portrait from the next window on, without a gap.

        Speech, frame numbers and motion continue, and the frames keep their longer side. Returns
        when the model has taken the portrait; it is shown less than 300 ms of audio later.

        Args:
            portrait: a prepared portrait, from `Avatar.prepare`, or an avatar, whose portrait is
                taken; or anything that `Avatar.load` takes, which is prepared first: read in
                another thread, its face found between two steps, for about half a second.

        Raises:
            PortraitError: the portrait cannot be read, has no usable face or is not prepared for
                this model; the session keeps the old one.
            SessionClosed: the session is not open or was closed.
            ConfigError: the model cannot change portraits, or finds no faces.
        """
        self._check_open()
        prepared = prepared_of(portrait)
        if prepared is None:
            faces, size = FaceReader(self._worker), max(self._portrait.canvas.shape[:2])
            prepared = await asyncio.to_thread(prepare_any, portrait, faces, size)
            self._check_open()
        await self._change(prepared)
        self._portrait = prepared

    async def set_motion(self, motion: MotionOptions) -> None:
        """Change how the face moves, from the next window on; speech and motion continue.

        Returns when the model has taken it; it is shown less than 300 ms of audio later.

        Raises:
            ConfigError: the model moves in one way only; the face moves as before.
            SessionClosed: the session is not open or was closed.
        """
        self._check_open()
        await self._change(motion)

    async def _change(self, value: Portrait | MotionOptions) -> None:
        change = Change(value, asyncio.get_running_loop().create_future())
        self._scheduler.change(change)
        await change.done

    def record(
        self,
        path: str | os.PathLike[str],
        *,
        badge: bool = True,
        provenance: "Provenance | None" = None,
        credentials: "SigningCredentials | None" = None,
    ) -> SessionRecording:
        """Record what the session shows into a video file, in an `async with` block.

            async with session.record("talk.mp4"):
                async for item in session:
                    ...

        Frames are recorded when they count as played; see `playback`. So there must be a reader,
        and it must not change their arrays. The file survives a crash, and is complete when the
        block has ended. Frames of another size, after a change of the portrait, are scaled to fit.

        Args:
            path: a path that ends in .mp4, .m4v, .mov or .mkv. An existing file is overwritten.
            badge: draw the badge "AI avatar" into the recorded frames.
            provenance: what metadata and signature state; None knows the badge alone.
            credentials: sign the file with these.

        Raises:
            ConfigError: the ending of `path` is not supported, or cannot be signed.
        """
        from letstalk_rt.recording.file import Recording

        recording = Recording(
            path,
            badge=badge,
            max_video_frames=50 if self._idle else 1500,  # a file may be behind, a stream may not
            sample_rate=self.output_sample_rate,
            provenance=provenance,
            credentials=credentials,
        )
        height, width = self._portrait.canvas.shape[:2]
        return SessionRecording(
            recording, (width, height), self._recordings, self._warn_of_recording
        )

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener` with each `Event` from now on; return a function that stops this.

        It runs on the event loop and must not block.
        """
        return self._hub.listen(listener)

    def events(self) -> AsyncIterator[Event]:
        """Return the events from this call on, until the session is closed.

        When more than 64 events wait to be read, the oldest are dropped.
        """
        return self._hub.stream()

    async def aclose(self) -> None:
        """Close the session and drop all queued work. May be called twice, and before opening."""
        self._end()
        if self._failure is None:
            self._audio_input.drop_waiting()
            self._frames.clear()
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait([task])
            # A cancelled task keeps the traceback, whose frames keep the state of the model.
            self._task = None

    async def _run(self) -> None:
        try:
            await self._scheduler.run(self._portrait, self._options)
        except Exception as error:  # raised when the session is read
            logger.error("a session failed", extra={"error": type(error).__name__})
            self._failure = error
        finally:
            self._end()

    def _check_directable(self) -> None:
        if not self.is_directable:
            raise ConfigError(NOT_DIRECTABLE)

    def _warn_of_failure(self) -> None:
        self._hub.warn(
            "model-failed",
            "The model failed and begins anew; the video pauses until then.",
            self._now_s(),
        )

    def _announce_quality(self) -> None:
        level, lowest = self._quality.level, self._quality.lowest
        self.metrics.quality_level = level
        self.metrics.quality_changes += 1
        message = (
            "Full quality again."
            if level == 0
            else f"The machine is too slow for full quality now: level {level} of {lowest}, "
            f"{self.quality.fps} images per second."
        )
        self._hub.emit(Event("session.quality", message=message, quality_level=level))

    # Reading

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
                f"A frame arrived {late_s * 1000:.0f} ms after it was requested: the machine is "
                "too slow now. `letstalk doctor` says what would help.",
                self._now_s(),
            )

    def _check_open_for_reading(self) -> None:
        if self._failure is not None:
            if is_callers_mistake(self._failure):
                raise self._failure
            raise EngineError(_FAILED) from self._failure
        if self._closed:
            raise StopAsyncIteration
        self._check_open()

    def _hand_out(self) -> AVFrame | SegmentEnd:
        index, waiting = self._frames.index, self._frames.pop()
        item = waiting if isinstance(waiting, SegmentEnd) else self._frame_of(waiting, index)
        self._playback.hand_out(item)
        if isinstance(item, AVFrame) and not self._playback.is_reported:
            self._record(item)
        self._wake.set()
        return item

    def _record(self, frame: AVFrame) -> None:
        for recording in tuple(self._recordings):
            recording.show(frame)

    def _warn_of_recording(self) -> None:
        self._hub.warn(
            "recording-failed",
            "The recording has ended by a failure, which the end of its block raises.",
            self._now_s(),
        )

    def _frame_of(self, frame: QueuedFrame, index: int) -> AVFrame:
        audio, now_s = frame.audio, self._now_s()
        audio_in_s = self._audio_input.note_handed_out(audio.spoken)
        stamps = FrameStamps(
            audio_in_s,
            frame.hop_complete_s,
            frame.model_start_s,
            frame.made_s,
            now_s,
            frame.captured_s,
        )
        self.metrics.stamp_frame(stamps)
        self.metrics.reduced += self._quality.level > 0
        return AVFrame(
            frame.rgb,
            audio.pcm,
            index,
            audio.segment_id,
            self.epoch,
            stamps,
            spoken=audio.spoken * self.output_sample_rate // SAMPLE_RATE,
            voiced=frame.voiced,
            sample_rate=self.output_sample_rate,
            repeated=frame.repeated,
        )

    def _end(self) -> None:
        self._closed = True
        self._audio_input.close(self._closed_error)
        self._readable.set()
        self._scheduler.refuse_changes(self._closed_error())
        self._camera.close()
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
        mistake = is_callers_mistake(self._failure)
        error = SessionClosed(f"the session ended: {self._failure}" if mistake else _FAILED)
        error.__cause__ = self._failure
        return error

    def _now_s(self) -> float:
        if self._loop is None:  # getting it is a system call before Python 3.12
            self._loop = asyncio.get_running_loop()
        return self._loop.time()
