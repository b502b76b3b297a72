"""The step scheduler of a session: takes hops of speech or silence and runs steps when due.

All calls of the model run in the worker's thread, so the event loop is never blocked.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic

import numpy as np

from letstalk_rt.audio.segmenter import Hop, SegmentBoundary, silence_like
from letstalk_rt.audio.voice_activity import VoiceActivity, VoiceActivityDetector, make_vad
from letstalk_rt.errors import ConfigError, InputError, SessionClosed
from letstalk_rt.inference.protocol import DeliverFrames, State, StateOptions
from letstalk_rt.inference.quality import Quality
from letstalk_rt.inference.step_times import SlownessWatch
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.metrics import Metrics
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.performance.performer import Performer
from letstalk_rt.session.adaptive_quality import QualityAdapter, StepTiming
from letstalk_rt.session.audio_input import AudioInput, StepInput
from letstalk_rt.session.camera_input import CameraInput
from letstalk_rt.session.camera_steering import CameraSteering
from letstalk_rt.session.camera_times import CameraTimes
from letstalk_rt.session.frame_queue import FrameQueue, QueuedFrame
from letstalk_rt.session.model_session import RECOVERY_S, ModelSession, as_awaitable
from letstalk_rt.session.pacing import LeadTime
from letstalk_rt.types import FPS, MotionOptions, Portrait, SegmentEnd

_EARLY_S = 0.001  # the precision of timers


@dataclass(frozen=True, slots=True)
class Change:
    """A request to change the portrait, or how the face moves.

    Attributes:
        value: the new portrait, or the new options of motion.
        done: resolved when the model has taken it.
    """

    value: Portrait | MotionOptions
    done: "asyncio.Future[None]"

    def finish(self, error: Exception | None) -> None:
        """Resolve `done`, unless the caller has cancelled it."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


@dataclass(slots=True)
class _Step:
    """A running step and the metadata of its frames."""

    hop: Hop
    epoch: int
    voiced: list[bool]
    queued_s: float
    started_s: float
    made_s: list[float] = field(default_factory=list)  # of each frame, since `started_s`
    is_new: list[bool] = field(default_factory=list)  # whether each frame has an image of its own
    is_late: bool = False
    steering: CameraSteering | None = None


class StepScheduler(Generic[State]):
    """Decides when the steps of one session run, and runs them.

    Args:
        worker: runs the model.
        audio_input: provides the hops.
        frames: receives the frames.
        metrics: records the durations of steps.
        wake: set by others when there may be something to do.
        now_s: returns monotonic seconds.
        live: whether silence replaces speech that does not arrive in time.
        lookahead_frames: how many frames the video is behind the audio.
        voice_activity: how voice is distinguished from noise.
        recovery_s: how long the session waits for a model that was lost.
        on_failure: called when a call of the model has failed and the session goes on.
        camera: what a camera has seen; None if there is none.
        quality: decides on the quality level.
        performer: decides how the motion of each window is changed.
        on_quality: called when that has changed.
    """

    def __init__(
        self,
        worker: ModelWorker[State],
        audio_input: AudioInput,
        frames: FrameQueue,
        metrics: Metrics,
        wake: asyncio.Event,
        now_s: Callable[[], float],
        *,
        live: bool,
        lookahead_frames: int,
        voice_activity: VoiceActivity,
        recovery_s: float = RECOVERY_S,
        on_failure: Callable[[], None] = lambda: None,
        camera: CameraInput | None = None,
        quality: QualityAdapter | None = None,
        performer: Performer | None = None,
        on_quality: Callable[[], None] = lambda: None,
    ) -> None:
        self._camera, self._camera_times = camera, CameraTimes()
        self._worker = worker
        self._recovery_s, self._on_failure = recovery_s, on_failure
        self._audio_input, self._frames, self._metrics = audio_input, frames, metrics
        self._wake, self._now_s = wake, now_s
        self._live, self._lookahead = live, lookahead_frames
        self._voice_activity: VoiceActivity = voice_activity
        self._window = worker.pipeline.frames_per_window
        self._lead = LeadTime(FPS)
        self._quality, self._on_quality = quality or QualityAdapter(), on_quality
        self._performer = performer or Performer()
        self._image: np.ndarray | None = None  # the last one
        self._epoch = 0  # of the model's last step
        self._slowness, self._steps_of_all = SlownessWatch(worker.step_times), 0
        self._voiced = deque([False] * lookahead_frames)  # of frames not made yet
        self._changes: deque[Change] = deque()

    async def run(self, portrait: Portrait, options: StateOptions) -> None:
        """Run steps until cancelled.

        Args:
            portrait: the portrait to animate.
            options: options of the session state.
        """
        model = ModelSession(
            self._worker, portrait, options, self._metrics, self._recovery_s, self._on_failure
        )
        try:
            await model.open()
            if self._quality.level:  # this machine is known to be too slow for full quality
                await self._change_quality(model)
            detector = await self._create_detector()
            while True:
                work = await self._next_work()
                if isinstance(work, Change):
                    await self._change(model, work)
                elif isinstance(work.item, SegmentBoundary):
                    self._frames.put(SegmentEnd(work.item.segment_id, self._audio_input.epoch))
                else:
                    await self._run_step(model, detector, work.item, work.queued_s)
        finally:
            model.close()

    def change(self, change: Change) -> None:
        """Request a change from the next step on."""
        self._changes.append(change)
        self._wake.set()

    def refuse_changes(self, reason: Exception) -> None:
        """Fail all pending changes with `reason`."""
        for change in self._changes:
            change.finish(reason)
        self._changes.clear()

    # When to step

    async def _next_work(self) -> StepInput | Change:
        """Wait until a step is due, then take a hop of speech or create one of silence."""
        while True:
            self._wake.clear()
            if self._changes:
                return self._changes.popleft()
            wait_s = self._step_wait_s()
            if wait_s <= _EARLY_S:
                if self._audio_input.waiting:
                    return self._audio_input.take()
                wait_s = self._speech_wait_s()
                if wait_s <= _EARLY_S:
                    return self._audio_input.fill()
            try:
                async with asyncio.timeout(None if wait_s == math.inf else wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass  # a step is due

    def _step_wait_s(self) -> float:
        """Return the seconds until a step should begin; infinity while enough frames wait.

        A live step begins as late as possible without making the reader wait, because new speech
        is shown only after all frames made before it. After an interrupt it begins at once.
        """
        if self._live and self._audio_input.epoch != self._epoch:
            return 0.0
        if self._frames.frames > self._window:
            return math.inf
        if not self._live:
            return 0.0
        return self._frames.due_s - self._lead.lead_s - self._now_s()

    def _speech_wait_s(self) -> float:
        """Return the seconds until silence replaces missing speech; infinity if not live."""
        if not self._live:
            return math.inf
        return (
            self._audio_input.speech_end_s - self._now_s() if self._audio_input.in_speech else 0.0
        )

    # The step

    async def _run_step(
        self,
        model: ModelSession[State],
        detector: VoiceActivityDetector,
        hop: Hop,
        queued_s: float,
    ) -> None:
        """Generate the window of one hop, unless an interrupt comes first."""
        epoch = self._audio_input.epoch
        is_first = epoch != self._epoch
        if is_first:
            await self._resume_after_interrupt(model, detector, epoch)
        model_input, voiced = await self._detect_voice(detector, hop)
        if epoch != self._audio_input.epoch:
            return
        step = _Step(hop, epoch, voiced, queued_s, self._now_s())
        steering, quality = self._steering(step), self._quality.quality
        step.steering = steering
        is_regular = await model.step(
            model_input,
            lambda: self._deliver(step, model.new_images()),
            is_wanted=lambda: epoch == self._audio_input.epoch,
            steering=steering,
            direction=self._direction(step),
        )
        if is_regular:  # times after a failure say nothing about the next step
            assert len(step.made_s) == self._window, len(step.made_s)
            self._lead.note(step.made_s)
        ended_s = self._now_s()
        took_s = ended_s - step.started_s - (steering.waited_s if steering else 0.0)
        timing = StepTiming(ended_s, took_s, self._window / FPS, step.is_late)
        self._metrics.stamp_step(timing.took_s, timing.media_s)
        if is_regular:
            await self._watch_speed(quality, timing)
        if is_regular and not is_first:  # the first frame after an interrupt has no fixed due time
            await self._adapt_quality(model, timing)

    def _steering(self, step: _Step) -> CameraSteering | None:
        """Return what moves the face in the frames of a step; None without a camera."""
        if self._camera is None or not self._camera.is_driving:
            return None
        return CameraSteering(
            self._camera,
            self._camera_times,
            self._window,
            step.started_s,
            behind_s=(self._lookahead + 0.5) / FPS,
            heard_s=step.queued_s if self._audio_input.is_real_time else None,
            now_s=self._now_s,
            pause=self._worker.pause if self._live else lambda until_s: None,
        )

    def _direction(self, step: _Step) -> DirectedWindow | None:
        """Return how the motion of a step is changed; None if not at all."""
        now_s, due_s = self._now_s(), self._frames.due_s
        shown_s = max(now_s, due_s) if due_s < math.inf else now_s
        return self._performer.window(step.hop.frame_audio, step.voiced, now_s, shown_s)

    async def _adapt_quality(self, model: ModelSession[State], timing: StepTiming) -> None:
        """Lower or raise the quality, if the last steps ask for it."""
        if self._quality.note_step(timing):
            await self._change_quality(model)

    async def _change_quality(self, model: ModelSession[State]) -> None:
        await model.set_quality(self._quality.quality)
        self._on_quality()

    async def _watch_speed(self, quality: Quality, timing: StepTiming) -> None:
        """Doubt what was measured on this machine, if steps take far longer."""
        steps, self._steps_of_all = self._steps_of_all, self._worker.load.steps
        is_alone = self._steps_of_all - steps == 1
        if self._slowness.note(quality, timing.took_s, is_alone=is_alone):
            await asyncio.to_thread(self._slowness.doubt)

    def _deliver(self, step: _Step, is_new: list[bool]) -> DeliverFrames:
        """Return a callback that passes partial windows from the model thread to the event loop.

        Frames that an earlier attempt has delivered are left out.
        """
        loop = asyncio.get_running_loop()
        known, step.is_new = len(step.made_s), is_new

        def deliver(frames: np.ndarray) -> None:
            nonlocal known
            frames, known = frames[known:], max(0, known - len(frames))
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(self._put_frames, step, frames)

        return deliver

    def _put_frames(self, step: _Step, frames: np.ndarray) -> None:
        """Queue the next frames of a step."""
        assert frames.dtype == np.uint8, frames.dtype
        now_s, hop = self._now_s(), step.hop
        for made in frames:
            number = len(step.made_s)
            audio, rgb = hop.frame_audio[number], self._image_for(step, number, made)
            step.made_s.append(now_s - step.started_s)
            step.is_late |= self._live and -math.inf < self._frames.due_s < now_s
            captured_s = step.steering.captured_at(number) if step.steering else None
            stamps = (step.queued_s, step.started_s, now_s, rgb is not made, captured_s)
            if step.epoch != self._audio_input.epoch:
                silence = silence_like(audio, self._audio_input.segment_id)
                self._frames.put_stale(QueuedFrame(rgb, silence, False, *stamps))
                continue
            self._frames.put(QueuedFrame(rgb, audio, step.voiced[number], *stamps))
            if number + 1 == hop.end_after:
                self._frames.put(SegmentEnd(audio.segment_id, step.epoch))

    def _image_for(self, step: _Step, number: int, made: np.ndarray) -> np.ndarray:
        """Return the image of a frame: for a repeated one the same array as for the one before.

        So that encoders can tell that there is nothing to encode.
        """
        if step.is_new[number] or self._image is None:
            self._image = made
        return self._image

    async def _resume_after_interrupt(
        self, model: ModelSession[State], detector: VoiceActivityDetector, epoch: int
    ) -> None:
        """Pass an interrupt to the model, with the number of frames that were not shown."""
        unseen = self._frames.end_bridge(self._now_s() + self._lead.lead_s)
        await model.interrupt(unseen)
        self._performer.interrupt(unseen)
        detector.reset()
        self._voiced = deque([False] * self._lookahead)
        self._epoch = epoch

    async def _detect_voice(
        self, detector: VoiceActivityDetector, hop: Hop
    ) -> tuple[np.ndarray, list[bool]]:
        """Return the model's input `(hop,)` for a hop, and which frames of the step have voice.

        In a live session, the input is zeros where no voice is detected.
        """
        if detector.blocking:
            voiced = await as_awaitable(self._worker.submit(detector.detect, hop.pcm))
        else:
            voiced = detector.detect(hop.pcm)
        self._voiced.extend(voiced)
        shown = [self._voiced.popleft() for _ in hop.frame_audio]
        muted = self._live and not any(voiced)
        return np.zeros_like(hop.pcm) if muted else hop.pcm, shown

    async def _create_detector(self) -> VoiceActivityDetector:
        if self._voice_activity == "silero":  # loads a network
            return await as_awaitable(self._worker.submit(make_vad, self._voice_activity))
        return make_vad(self._voice_activity)

    async def _change(self, model: ModelSession[State], change: Change) -> None:
        refusal: Exception | None = None
        try:
            if isinstance(change.value, MotionOptions):
                await model.set_motion(change.value)
            else:
                await model.change_portrait(change.value)
        except (InputError, ConfigError) as error:  # the caller's mistake: the old one stays
            refusal = error
        except BaseException:
            change.finish(SessionClosed("the session ended before it took the change"))
            raise
        change.finish(refusal)
