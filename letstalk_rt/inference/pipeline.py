"""The pipeline: one synchronous, batched step takes a hop of audio and returns a window of frames.

All memory of a session is in its `SessionState`, which is passed in and updated in place. Nothing
here uses asyncio, queues or wall-clock time.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import AudioFormatError, ConfigError, InputError
from letstalk_rt.inference.audio_stage import AudioStage, AudioState
from letstalk_rt.inference.autotune import DecoderVariant, machine_key
from letstalk_rt.inference.code_control import NO_LANDMARKS, eye_closures
from letstalk_rt.inference.cuda_graphs import CompiledFunction
from letstalk_rt.inference.devices import DTYPES, choose_device
from letstalk_rt.inference.driver_camera import DriverCamera
from letstalk_rt.inference.face_reader import FaceReader
from letstalk_rt.inference.footage_player import FootagePlayer
from letstalk_rt.inference.footage_stage import FootageStage
from letstalk_rt.inference.frame_decoder import FrameDecoder, FrameDetails
from letstalk_rt.inference.lower_face import has_lower_faces
from letstalk_rt.inference.motion_stage import MotionStage, MotionState
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.protocol import (
    DEFAULT_OPTIONS,
    NOT_DIRECTABLE,
    Deliver,
    Pipeline,
    StateOptions,
    Steering,
    check_steps,
)
from letstalk_rt.inference.quality import Quality
from letstalk_rt.inference.sample_stage import LatentState, SampleStage, check_undirected
from letstalk_rt.inference.session_state import BatchKey, SessionState, StateFactory
from letstalk_rt.inference.shared_models import ReadyModel, ready_model, shared_model
from letstalk_rt.metrics import NoClock, StageTimer
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.detector import FaceFinder
from letstalk_rt.models.loading import face_finder_for
from letstalk_rt.models.parts import MOTION
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.threads import in_own_thread, thread_limit
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, FaceTrack, MotionOptions, Portrait

MAX_GUIDANCE = 10.0
STEERED_FRAMES = 2
"""Frames that are rendered together while a camera moves the face of a live session: later ones of
a window show newer motion. Fewer would leave one of two threads idle."""

_PLAIN = DecoderVariant()


class AvatarPipeline(Pipeline[SessionState]):
    """The `Pipeline` of an `AvatarModel`, shared by any number of sessions.

    It must be called from one thread at a time.

    Args:
        model: in eval mode, on its device and in the number formats of `variant`; see `on`.
        steps: sampling steps per window; None for the preset's default.
        guidance: weight of the audio condition against none; None for the preset's default.
        variant: number format of the decoder, the most expensive part, and whether it is compiled.
            On a GPU the denoiser uses the same format; all else is float32.
        replayed: whether to record the denoiser and the decoder as CUDA graphs.

    Attributes:
        audio_stage: encodes audio.
        frame_decoder: decodes latents to frames.
    """

    fps = FPS

    def __init__(
        self,
        model: AvatarModel,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        variant: DecoderVariant = _PLAIN,
        replayed: bool = False,
    ) -> None:
        steps = model.preset.steps if steps is None else steps
        check_steps(steps)
        guidance = model.preset.guidance if guidance is None else guidance
        if not 0 <= guidance <= MAX_GUIDANCE:
            raise ConfigError(f"guidance must be from 0 to {MAX_GUIDANCE}, got {guidance}")
        self.model = model
        self.steps = steps
        self.guidance = guidance
        self.variant = variant
        self.dtype = DTYPES.get(variant.dtype, torch.float32)
        self.finder: FaceFinder = face_finder_for(model)
        self.frames_per_window: int = model.denoiser.config.window
        self.hop = self.frames_per_window * SAMPLES_PER_FRAME
        self.lookahead_frames: int = model.audio.lookahead_frames
        options = {"compiled": variant.compiled, "recorded": replayed}
        predict = CompiledFunction(model.denoiser.predict, name="denoiser", **options)
        self.audio_stage = AudioStage(model, model.audio)
        self._sample_stage = SampleStage(model, guidance, predict)
        self.is_directable = model.get(MOTION) is not None
        self._motion_stage = MotionStage(model) if self.is_directable else None
        self.frame_decoder = FrameDecoder(model, **options)
        self.partial_sizes = self.frame_decoder.partial_sizes
        self._footage_stage = FootageStage(model, self.frame_decoder)
        self.quality_levels = self.frame_decoder.quality_levels
        self.machine = f"{machine_key(model)} {model.preset.name} {variant}, {steps} steps"
        moving = self._motion_stage or self._sample_stage
        parts = (self._footage_stage, self.audio_stage, moving, self.frame_decoder)
        self._states = StateFactory(model, parts, steps=steps)
        self._face_reader: FaceReader | None = None
        self._ready: ReadyModel | None = None  # keeps the model shared

    @classmethod
    def load(
        cls,
        preset: str = "tiny",
        device: str = "auto",
        *,
        steps: int | None = None,
        guidance: float | None = None,
        threads: int | None = None,
        weights: Path | None = None,
        dtype: str = "auto",
        compiled: bool | None = None,
    ) -> Self:
        """Load a model and move it to its device. Blocks for about a second.

        Pipelines of the same model in one process share its weights: further ones load at once.

        Args:
            preset: name of the model.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            steps: sampling steps per window; None for the preset's default.
            guidance: weight of the audio condition against none; None for the preset's default.
            threads: CPU threads that torch may use; None for torch's default.
            weights: checkpoint to load; None for the one in the package.
            dtype: `float32`, `bfloat16`, `float16`, `int8` (CPU), or `auto`: on a CPU the fastest,
                measured once on this machine; on a GPU a 16-bit format.
            compiled: whether to run denoiser and decoder through torch.compile, on CUDA also as
                CUDA graphs. The first window of each batch size then takes a minute. None compiles
                only on a CPU on which that was measured to be faster
                (`letstalk_rt.inference.autotune`).

        Raises:
            ConfigError: the preset, device or dtype is unknown, or a setting is out of range.
            WeightsError: the weights are missing, damaged or of another model.
        """
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        where = choose_device(device)
        ready = in_own_thread(shared_model)(preset, weights, where, dtype, compiled)
        return in_own_thread(cls._of)(ready, steps, guidance)

    @classmethod
    def on(
        cls,
        model: AvatarModel,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        dtype: str = "auto",
        compiled: bool | None = None,
    ) -> Self:
        """Create a pipeline from a model on its device, which is converted in place.

        See `load` for the settings.
        """
        return cls._of(ready_model(model, dtype, compiled), steps, guidance)

    @classmethod
    def _of(cls, ready: ReadyModel, steps: int | None, guidance: float | None) -> Self:
        variant = ready.variant
        graphs = variant.compiled and ready.model.motion_scale.device.type == "cuda"
        made = cls(ready.model, steps=steps, guidance=guidance, variant=variant, replayed=graphs)
        made._ready = ready
        return made

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.motion_scale.device

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> SessionState:
        """Create the state of a session, with all computation that is done once per portrait.

        Args:
            portrait: from `prepare_portrait`.
            options: options of the session.

        Raises:
            PortraitError: `portrait` is not prepared for this model.
            ConfigError: an option is out of range.
        """
        return self._states.create(portrait, options)

    def change_portrait(self, state: SessionState, portrait: Portrait) -> None:
        """Change the portrait from the next window on; the motion continues.

        Raises:
            PortraitError: `portrait` is not prepared for this model; nothing has changed.
        """
        self._states.change_portrait(state, portrait)

    @torch.inference_mode()
    def set_motion(self, state: SessionState, motion: MotionOptions) -> None:
        """Change how the face of a session moves, from the next window on.

        Raises:
            ConfigError: this model has no motion denoiser, which that needs; nothing has changed.
        """
        if MotionState in state:
            state[MotionState].set_options(motion)
        else:
            check_undirected(motion, self.model)
        if FootagePlayer in state:
            state[FootagePlayer].expressiveness = motion.expressiveness
        state.options = replace(state.options, motion=motion)

    def set_quality(self, state: SessionState, quality: Quality) -> None:
        """Change what is computed for a session from the next window on.

        Raises:
            ConfigError: this model has no such quality.
        """
        self.frame_decoder.set_quality(state[PictureState], quality)

    def batch_key(self, state: SessionState) -> BatchKey:
        """Return what sessions must have in common to run in one step."""
        return state.batch_key

    @torch.inference_mode()
    def step(
        self,
        pcm: np.ndarray,
        states: Sequence[SessionState],
        deliver: Deliver | None = None,
        *,
        clock: StageTimer = NoClock(),  # noqa: B008 (it has no state)
    ) -> list[np.ndarray]:
        """Take one hop and return one window for each of B sessions.

        The window ends one look-ahead before the end of the hop: with 80 ms, its first frame shows
        the second-last frame of the previous hop's audio. All networks work at sizes of their own,
        so the pictures of the sessions may have different sizes.

        Args:
            pcm: `(B, hop)` float32 in [-1, 1] at 16 kHz.
            states: states of B sessions with the same `batch_key`; updated in place.
            deliver: called with each partial window, B arrays `(n, H, W, 3)`, as soon as it is
                ready. One core is then left free, so that other processes disturb the step less.
            clock: measures the stages audio, sample, layout and paint, and within paint the stages
                decode, follow and composite of each frame.

        Returns:
            B windows `(N, H, W, 3)` uint8, new memory.

        Raises:
            AudioFormatError: `pcm` has the wrong shape or dtype, or holds NaN; nothing has changed.
            InputError: the states differ in `batch_key`; nothing has changed.
        """
        self._check(pcm, states)
        if FootagePlayer in states[0]:
            partial_windows = self._play(pcm, states, clock)
        elif self._motion_stage is not None:
            partial_windows = self._move(pcm, states, clock, is_live=deliver is not None)
        else:
            partial_windows = self._generate(pcm, states, clock, is_live=deliver is not None)
        parts = []
        with closing(partial_windows):
            for part in partial_windows:
                if deliver is not None:
                    deliver(part)
                parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(one) for one in zip(*parts, strict=True)]

    def _generate(
        self, pcm: np.ndarray, states: Sequence[SessionState], clock: StageTimer, *, is_live: bool
    ) -> Generator[list[np.ndarray], None, None]:
        """Yield the partial windows of sessions whose latents a denoiser generates; see `step`."""
        threads = self._threads(is_live)
        moving = [state[LatentState] for state in states]
        audio = torch.from_numpy(pcm).to(self.device)
        with thread_limit(threads), clock.stage("audio"):
            tokens = self._tokens(audio, states)
        with thread_limit(threads), clock.stage("sample"):
            motion = self._sample_stage(tokens, states[0].times, moving)
            portraits = torch.cat([state[PictureState].features.latent for state in states])
            latents = self.model.to_latents(motion, portraits)
        undrawn = FrameDetails([(0.0, 0.0)] * self.frames_per_window, None)
        yield from self._paint(latents, [undrawn] * len(states), states, clock, threads)

    def _move(
        self, pcm: np.ndarray, states: Sequence[SessionState], clock: StageTimer, *, is_live: bool
    ) -> Generator[list[np.ndarray], None, None]:
        """Yield the partial windows of sessions whose faces a motion denoiser moves; see `step`."""
        threads, stage = self._threads(is_live), self._motion_stage
        motions = [state[MotionState] for state in states]
        assert stage is not None, "see `step`"
        for state, motion in zip(states, motions, strict=True):
            motion.direction = state.take_direction()
        with thread_limit(threads):
            with clock.stage("audio"):
                audio = torch.from_numpy(pcm).to(self.device)
                heard = stage.hear(audio, motions, states[0].lookahead_frames)
            with clock.stage("sample"):
                window = stage(heard, len(states[0].times), motions)
        for first, count in self._driven_parts(states, is_live=is_live):
            with thread_limit(threads), clock.stage("sample"):
                part, shown, details = window.part(first, count), [], []
                for number, (state, motion) in enumerate(zip(states, motions, strict=True)):
                    portrait = state[PictureState].features.latent[0]
                    directed = motion.direction and motion.direction.part(first, count)
                    face = motion.control.face(part.codes[number], portrait, directed)
                    shown.append(face.latents)
                    closures, sound = eye_closures(face.shut), part.sound[number]
                    details.append(FrameDetails(closures, sound, face.eyes, face.brows))
            yield from self._paint(torch.stack(shown), details, states, clock, threads)

    def _tokens(self, audio: Tensor, states: Sequence[SessionState]) -> Tensor:
        """Return the audio tokens of the frames of this step, `(B, N, K, A)`."""
        heard = [state[AudioState] for state in states]
        return self.audio_stage(audio, heard, states[0].lookahead_frames)

    def _threads(self, is_live: bool) -> int | None:
        """Return how many threads compute what comes before the decoder; None for all."""
        decode_pool = self.frame_decoder.decode_pool
        return decode_pool.model_threads if decode_pool and is_live else None

    def _driven_parts(
        self, states: Sequence[SessionState], *, is_live: bool
    ) -> Iterator[tuple[int, int]]:
        """Yield the first frame and the number of frames of what is rendered together.

        Cameras move the faces in these frames.
        """
        steerings = [state.take_steering() for state in states]
        count = self.frames_per_window
        if is_live and self.frame_decoder.decode_pool and len(states) == 1 and any(steerings):
            count = STEERED_FRAMES
        for first in range(0, self.frames_per_window, count):
            for state, steering in zip(states, steerings, strict=True):
                if steering is not None and (window := steering(first, count)) is not None:
                    state[MotionState].control.drive(window)
            yield first, count

    def _paint(
        self,
        latents: Tensor,
        details: Sequence[FrameDetails],
        states: Sequence[SessionState],
        clock: StageTimer,
        threads: int | None,
    ) -> Generator[list[np.ndarray], None, None]:
        """Yield partial windows with the next frames of B sessions.

        Args:
            latents: of these frames, `(B, n, C, h, w)`.
            details: what is drawn onto them.
            states: states of B sessions; updated in place.
            clock: measures the stages.
            threads: how many compute what comes before the decoder; None for all.
        """
        with thread_limit(threads), clock.stage("layout"):
            pictures = [state[PictureState] for state in states]
            inputs = self.frame_decoder.prepare(latents, pictures)
        with (
            clock.stage("paint"),
            closing(self.frame_decoder.decode(inputs, details, pictures, clock)) as parts,
        ):
            yield from parts

    def _play(
        self, pcm: np.ndarray, states: Sequence[SessionState], clock: StageTimer
    ) -> Generator[list[np.ndarray], None, None]:
        """Yield the partial windows of sessions whose portraits are footage; see `step`."""
        stage = self._motion_stage
        assert stage is not None, "only a model with a motion denoiser plays footage"
        with clock.stage("audio"):
            audio = torch.from_numpy(pcm).to(self.device)
            motions = [state[MotionState] for state in states]
            lips = stage.lip_values(stage.hear(audio, motions, states[0].lookahead_frames))
            tokens = self._tokens(audio, states) if has_lower_faces(self.model) else None
        with clock.stage("paint"), closing(self._footage_stage(lips, tokens, states)) as parts:
            yield from parts

    @torch.inference_mode()
    def steer(self, state: SessionState, steering: Steering) -> None:
        """Let a camera move the face in the next window; see `DrivablePipeline.steer`.

        A film in the place of a portrait keeps its own motion.

        Raises:
            ConfigError: the model has no landmarks.
        """
        if MotionState not in state:
            raise ConfigError(NO_LANDMARKS)
        if FootagePlayer not in state:
            state.steering = steering

    def direct(self, state: SessionState, window: DirectedWindow) -> None:
        """Change the motion of the next window; see `Pipeline.direct`.

        A film in the place of a portrait keeps its own motion.

        Raises:
            ConfigError: the model has no motion denoiser.
        """
        if not self.is_directable:
            raise ConfigError(NOT_DIRECTABLE)
        if FootagePlayer not in state:
            state.direction = window

    def open_camera(self) -> DriverCamera:
        """Return what reads a camera, for one session; see `DrivablePipeline.open_camera`."""
        return DriverCamera.of(self.model)

    @torch.inference_mode()
    def interrupt(self, state: SessionState, *, unseen: int = 0) -> None:
        """Forget all past speech; the face comes to rest from its present position.

        Args:
            state: state of the session; updated in place.
            unseen: how many of the last frames were never shown. The motion continues from the
                frame before them, so that the face does not jump.
        """
        state.interrupt(unseen)

    @torch.inference_mode()
    def track_faces(self, frames: np.ndarray, last: FaceTrack | None) -> list[FaceTrack | None]:
        """Return the face in each of consecutive frames of a film; None where there is none.

        Args:
            frames: `(n, H, W, 3)` uint8.
            last: the face in the frame before; None if there is none.

        Raises:
            ConfigError: the model cannot follow faces.
        """
        if self.model.face is None:
            raise ConfigError(
                f"preset {self.model.preset.name!r} cannot follow faces, which films as portraits "
                "need; use a picture, or the preset 'tiny'"
            )
        if self._face_reader is None:
            autoencoder = self.model.face.autoencoder
            self._face_reader = FaceReader(self.finder, autoencoder, self.dtype)
        reader = self._face_reader
        reader.reset(last)
        found = [reader.read(rgb) for rgb in frames]
        return [None if face is None else face.track for face in found]

    def _check(self, pcm: np.ndarray, states: Sequence[SessionState]) -> None:
        wanted = (len(states), self.hop)
        if pcm.shape != wanted or pcm.dtype != np.float32:
            raise AudioFormatError(f"pcm must be {wanted} float32, got {pcm.shape} {pcm.dtype}")
        if not np.isfinite(pcm).all():
            raise AudioFormatError("pcm holds NaN or infinity; values must lie in [-1, 1]")
        keys = {state.batch_key for state in states}
        if len(keys) != 1:
            raise InputError(
                "sessions of one batch must have the same steps and look-ahead, and films or "
                f"pictures as portraits, got {sorted(keys)}; run them in separate steps"
            )
