"""The pipeline: one synchronous, batched step takes a hop of audio and returns a window of frames.

All memory of a session is in its `SessionState`, which is passed in and updated in place. Nothing
here uses asyncio, queues or wall-clock time.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import AudioFormatError, ConfigError, InputError
from letstalk_rt.inference.autotune import (
    DecoderVariant,
    apply_variant,
    choose_attention,
    fastest_variant,
)
from letstalk_rt.inference.cuda_graphs import CompiledFunction
from letstalk_rt.inference.devices import DTYPES, choose_device, choose_dtype
from letstalk_rt.inference.driver_camera import DriverCamera
from letstalk_rt.inference.face_reader import FaceReader
from letstalk_rt.inference.frame_decoder import FrameDecoder, FrameDetails
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, StateOptions
from letstalk_rt.inference.quality import Quality, new_images
from letstalk_rt.inference.seam_easing import ease_seam
from letstalk_rt.inference.session_state import MAX_STEPS, BatchKey, SessionState, StateFactory
from letstalk_rt.metrics import NoClock, StageTimer
from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather, scatter
from letstalk_rt.models.face.detector import FaceFinder
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.models.face.gestures import GestureWindow
from letstalk_rt.models.loading import face_finder_for, load_model
from letstalk_rt.threads import in_own_thread, thread_limit
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, FaceTrack, Portrait

MAX_GUIDANCE = 10.0
_PLAIN = DecoderVariant()


@dataclass(frozen=True)
class LipReading:
    """What the lip reader hears in the frames of a step.

    Attributes:
        values: lip values in the size of measured ones, `(B, N, Q)`.
        sound: the sound around each frame, `(B, N, S)`, see `mouth_sound`.
    """

    values: Tensor
    sound: Tensor


class AvatarPipeline(Pipeline[SessionState]):
    """The `Pipeline` of an `AvatarModel`, shared by any number of sessions.

    It must be called from one thread at a time.

    Args:
        model: in eval mode, on its device.
        steps: sampling steps per window; None for the preset's default.
        guidance: weight of the audio condition against none; None for the preset's default.
        variant: number format of the decoder, the most expensive part, and whether it is compiled.
            On a GPU the denoiser uses the same format; all else is float32.
        replayed: whether to record the denoiser and the decoder as CUDA graphs.

    Attributes:
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
        if not 1 <= steps <= MAX_STEPS:
            raise ConfigError(f"steps must be from 1 to {MAX_STEPS}, got {steps}")
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
        apply_variant(model, variant)
        if self.device.type != "cpu" and model.preset.denoiser_follows:
            model.denoiser.to(self.dtype)
        options = {"compiled": variant.compiled, "recorded": replayed}
        self._predict = CompiledFunction(model.denoiser.predict, name="denoiser", **options)
        self.frame_decoder = FrameDecoder(model, **options)
        self.partial_sizes = self.frame_decoder.partial_sizes
        self.quality_levels = self.frame_decoder.quality_levels
        self._states = StateFactory(model, steps=steps)
        self._face_reader: FaceReader | None = None

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
        model = in_own_thread(load_model)(preset, weights).to(where)
        return in_own_thread(cls.on)(
            model, steps=steps, guidance=guidance, dtype=dtype, compiled=compiled
        )

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
        """Create a pipeline from a model that is on its device; see `load` for the settings."""
        device = model.motion_scale.device
        model.autoencoder.to(memory_format=torch.channels_last)
        if model.mouth_painter is not None:
            model.mouth_painter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        variant = _choose_variant(model, dtype, compiled)
        graphs = variant.compiled and device.type == "cuda"
        made = cls(model, steps=steps, guidance=guidance, variant=variant, replayed=graphs)
        if device.type == "cuda":
            choose_attention(model)
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

    def set_quality(self, state: SessionState, quality: Quality) -> None:
        """Change what is computed for a session from the next window on.

        Raises:
            ConfigError: this model has no such quality.
        """
        self.frame_decoder.set_quality(state, quality)

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
    ) -> np.ndarray:
        """Take one hop and return one window for each of B sessions.

        The window ends one look-ahead before the end of the hop: with 80 ms, its first frame shows
        the second-last frame of the previous hop's audio.

        Args:
            pcm: `(B, hop)` float32 in [-1, 1] at 16 kHz.
            states: states of B sessions with the same `batch_key`; updated in place.
            deliver: called with each partial window, `(B, n, H, W, 3)`, as soon as it is ready. One
                core is then left free, so that other processes disturb the step less.
            clock: measures the stages audio, sample, layout and paint, and within paint the stages
                decode, follow and composite of each frame.

        Returns:
            `(B, N, H, W, 3)` uint8, new memory.

        Raises:
            AudioFormatError: `pcm` has the wrong shape or dtype, or holds NaN; nothing has changed.
            InputError: the states differ in `batch_key`; nothing has changed.
        """
        self._check(pcm, states)
        if states[0].player is not None:
            return self._play(pcm, states, deliver, clock)
        decode_pool = self.frame_decoder.decode_pool
        threads = decode_pool.model_threads if decode_pool and deliver else None
        with thread_limit(threads):
            with clock.stage("audio"):
                audio = torch.from_numpy(pcm).to(self.device)
                tokens = self.encode_audio(audio, states)
                heard = self.read_lips(audio, states)
                gestures = self.gesture(audio, states)
                eye_closures = self._eye_closures(gestures, states)
            with clock.stage("sample"):
                latents = self._sample(tokens, heard, gestures, states)
            with clock.stage("layout"):
                inputs = self.frame_decoder.prepare(latents, states)
        parts = []
        sounds = [None] * len(states) if heard is None else list(heard.sound)
        details = [FrameDetails(*one) for one in zip(eye_closures, sounds, strict=True)]
        partial_windows = self.frame_decoder.decode(inputs, details, states, clock)
        with clock.stage("paint"), closing(partial_windows):
            for part in partial_windows:
                if deliver is not None:
                    deliver(part)
                parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    @torch.inference_mode()
    def drive(self, state: SessionState, window: DriveWindow) -> None:
        """Let a camera move the face in the next window; see `DrivablePipeline.drive`.

        A film in the place of a portrait keeps its own motion.
        """
        if state.player is None:
            state.motion_control.drive(window)

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
        state.silence_audio()
        if state.player is not None:
            state.player.interrupt(unseen)
        state.memory.rewind(unseen)
        state.cache.rewind(unseen)
        state.motion_control.rewind(unseen)
        if state.gestures is not None:
            state.gestures.motion.rewind(unseen)
        state.motion_control.ease_from(state.memory.latents[:, -1])

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

    def _play(
        self,
        pcm: np.ndarray,
        states: Sequence[SessionState],
        deliver: Deliver | None,
        clock: StageTimer,
    ) -> np.ndarray:
        """Return the next window of sessions whose portraits are footage; see `step`."""
        with clock.stage("audio"):
            heard = self.read_lips(torch.from_numpy(pcm).to(self.device), states)
        assert heard is not None, "footage needs a lip reader"
        columns = []
        for state, values in zip(states, heard.values, strict=True):
            assert state.player is not None, "one batch is all footage"
            quality = state.quality.quality
            render = partial(state.player.render, with_painter=quality.mouth_painter)
            is_new = new_images(state.quality.made, self.frames_per_window, quality.fps)
            shown = zip(state.player.next(values), is_new, strict=True)
            columns.append([partial(render, f) if new else None for f, new in shown])
            state.quality.made += self.frames_per_window
        jobs = [partial(_rendered, row) for row in zip(*columns, strict=True)]
        parts = []
        with clock.stage("paint"):
            for images in self.frame_decoder.in_order(jobs):
                each = zip(states, images, strict=True)
                frames = np.stack([state.quality.image(image) for state, image in each])
                if deliver is not None and len(self.partial_sizes) > 1:
                    deliver(frames[:, None])
                parts.append(frames)
        window = np.stack(parts, 1)
        if deliver is not None and len(self.partial_sizes) == 1:
            deliver(window)
        return window

    @torch.inference_mode()
    def encode_audio(self, pcm: Tensor, states: Sequence[SessionState]) -> Tensor:
        """Return the audio tokens of the frames of this step, `(B, N, K, A)`.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: states of B sessions; the states of the audio encoder are updated in place.
        """
        ahead = self.lookahead_frames - states[0].lookahead_frames
        return self._encode(self.model.audio, pcm, [state.audio for state in states], ahead)

    @torch.inference_mode()
    def read_lips(self, pcm: Tensor, states: Sequence[SessionState]) -> LipReading | None:
        """Return what the lip reader hears in the frames of this step.

        None if the model has no lip reader.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: states of B sessions; the states of the lip reader are updated in place.
        """
        lips, lip_motion = self.model.lips, self.model.lip_motion
        if lips is None or lip_motion is None:
            return None
        ahead = self.lookahead_frames - states[0].lookahead_frames
        heard = self._encode(lips.hear, pcm, [s.lips for s in states], ahead)
        values, sound = heard.split([lips.config.values, MOUTH_SOUND], -1)
        return LipReading(lip_motion.to_shown(values), sound)

    @torch.inference_mode()
    def gesture(self, pcm: Tensor, states: Sequence[SessionState]) -> GestureWindow | None:
        """Return the gestures of the frames of this step; None if the model has none.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: states of B sessions; the states of their gestures are updated in place.
        """
        gestures = self.model.gestures
        if gestures is None:
            return None
        sessions = [state.gestures for state in states if state.gestures is not None]
        ahead = self.lookahead_frames - states[0].lookahead_frames
        prosody = self._encode(gestures.prosody, pcm, [s.prosody for s in sessions], ahead)
        noise = torch.cat([s.noise.draw(1, 0.0, 1.0) for s in sessions]).to(self.device)
        batch = gather([s.motion for s in sessions])
        window: GestureWindow = gestures(prosody, noise, batch)
        scatter(batch, [s.motion for s in sessions])
        return window

    def _eye_closures(
        self, gestures: GestureWindow | None, states: Sequence[SessionState]
    ) -> list[Sequence[float]]:
        """Return how far the eyes of each session are closed in the frames of this step."""
        controls = [state.motion_control for state in states]
        if gestures is not None:
            own: list[Sequence[float]] = gestures.eye_closures.tolist()
        else:
            own = [control.eye_closures(self.frames_per_window) for control in controls]
        pairs = zip(controls, own, strict=True)
        return [control.driven_eye_closures(closures) for control, closures in pairs]

    def _encode(
        self,
        encoder: Callable[[Tensor, Any], Tensor],
        pcm: Tensor,
        states: Sequence[Any],
        ahead: int,
    ) -> Tensor:
        """Return the output of an encoder for the frames of this step, `(B, N, ...)`.

        Args:
            encoder: encodes the next part of a stream; updates its state.
            pcm: `(B, hop)` on the model's device.
            states: states of the encoder; updated in place.
            ahead: how many frames of the look-ahead have not arrived. Their audio is guessed as the
                hop mirrored in time, which is continuous.
        """
        state = gather(states)
        encoded = encoder(pcm, state)
        scatter(state, states)
        if ahead:
            windows = -(-ahead // self.frames_per_window)
            guess = torch.cat([pcm.flip(1), pcm] * windows, 1)[:, : windows * self.hop]
            following = encoder(guess, copy.deepcopy(state))
            encoded = torch.cat([encoded, following], 1)[:, ahead : ahead + self.frames_per_window]
        return encoded

    def _sample(
        self,
        tokens: Tensor,
        heard: LipReading | None,
        gestures: GestureWindow | None,
        states: Sequence[SessionState],
    ) -> Tensor:
        """Return the latents of the next window, `(B, N, C, h, w)`.

        Args:
            tokens: audio tokens, `(B, N, K, A)`.
            heard: from `read_lips`.
            gestures: from `gesture`.
            states: states of B sessions.
        """
        denoiser = self.model.denoiser
        memory = gather([state.memory for state in states])
        kept = gather([state.cache for state in states])
        cache = (
            kept
            if denoiser.config.cached
            else denoiser.encode_memory(memory.latents, memory.filled)
        )
        portrait = gather([state.portrait for state in states])
        motion = self.model.sample_window(
            self._draw_noise(states).to(self.device),
            tokens,
            portrait,
            cache,
            states[0].times,
            self.guidance,
            predict=self._predict,
        )
        motion = ease_seam(motion, memory, self.model.preset.seam)
        memory.write(motion)
        denoiser.update_cache(motion, kept)
        scatter(memory, [state.memory for state in states])
        scatter(kept, [state.cache for state in states])
        shown = []
        for index, state in enumerate(states):
            values = None if heard is None else heard.values[index][None]
            moved = None if gestures is None else gestures.motion[index][None]
            shown.append(state.motion_control.apply(motion[index][None], values, moved))
        portraits = torch.cat([state.features.latent for state in states])
        return self.model.to_latents(torch.cat(shown), portraits)

    def _draw_noise(self, states: Sequence[SessionState]) -> Tensor:
        """Draw the noise of the next window, `(B, N, C, h, w)`, on the CPU."""
        count, preset = self.frames_per_window, self.model.preset
        drawn = [s.noise.draw(count, preset.noise_correlation, preset.temperature) for s in states]
        return torch.cat(drawn)

    def _check(self, pcm: np.ndarray, states: Sequence[SessionState]) -> None:
        wanted = (len(states), self.hop)
        if pcm.shape != wanted or pcm.dtype != np.float32:
            raise AudioFormatError(f"pcm must be {wanted} float32, got {pcm.shape} {pcm.dtype}")
        if not np.isfinite(pcm).all():
            raise AudioFormatError("pcm holds NaN or infinity; values must lie in [-1, 1]")
        keys = {state.batch_key for state in states}
        if len(keys) != 1:
            raise InputError(
                "sessions of one batch must have the same frame size, steps and look-ahead, got "
                f"{sorted(keys)}; run them in separate steps"
            )


def _rendered(jobs: Sequence[Callable[[], np.ndarray] | None]) -> list[np.ndarray | None]:
    """Return the same frame of each session, `(H, W, 3)` uint8; None for one without a job."""
    return [None if job is None else job() for job in jobs]


def _choose_variant(model: AvatarModel, dtype: str, compiled: bool | None) -> DecoderVariant:
    """Choose how the decoder runs on the model's device; see `AvatarPipeline.load`."""
    device = model.motion_scale.device
    if dtype == "auto" and device.type == "cpu":
        variant = fastest_variant(model)
    elif dtype == "int8":
        variant = DecoderVariant("int8")
    else:
        variant = DecoderVariant(str(choose_dtype(dtype, device)).removeprefix("torch."))
    return variant if compiled is None else replace(variant, compiled=compiled)
