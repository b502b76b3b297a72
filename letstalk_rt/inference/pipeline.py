"""One step of the avatar, synchronous and batched: a hop of sound in, a window of pictures out.

All that a session remembers is in its `SessionState`, which is passed in and written in place.
This room knows no asyncio, no queue and no clock.
"""

import copy
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Self

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
from letstalk_rt.inference.frame_decoder import FrameDecoder
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, StateOptions
from letstalk_rt.inference.seam_easing import ease_seam
from letstalk_rt.inference.session_state import MAX_STEPS, BatchKey, SessionState, StateFactory
from letstalk_rt.metrics import NoClock, StageTimer
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather, overwrite, scatter
from letstalk_rt.models.face.detector import FaceFinder
from letstalk_rt.models.loading import face_finder_for, load_model
from letstalk_rt.threads import in_own_thread, thread_limit
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, Portrait

MAX_GUIDANCE = 10.0
_PLAIN = DecoderVariant()


class AvatarPipeline(Pipeline[SessionState]):
    """The model and its recurrence, shared by any number of sessions.

    Calls must come from one thread at a time.

    Args:
        model: in eval mode, on its device.
        steps: sampler steps per window; the preset's own when None.
        guidance: weight of the sound against none; the preset's own when None.
        variant: number format of the decoder, the costly part, and whether it is compiled. The
            denoiser follows on a GPU; all else is float32.
        replayed: record the denoiser and the decoder as CUDA graphs.

    Attributes:
        frame_decoder: makes frames of latents.
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
        self.dtype = DTYPES.get(variant.kind, torch.float32)
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
        self.parts = self.frame_decoder.parts
        self._states = StateFactory(model, steps=steps, guidance=guidance)

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
        """Read a model and put it on its device. Blocking, about a second.

        Args:
            preset: name of the model.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            steps: sampler steps per window.
            guidance: weight of the sound against none.
            threads: of the CPU that torch may use; as torch decides when None.
            weights: file to read; the package's own when None.
            dtype: `float32`, `bfloat16`, `float16`, `int8` (CPU), or `auto`: on a CPU the fastest,
                measured once on this machine.
            compiled: run denoiser and decoder through torch.compile, on CUDA also as recorded
                graphs. The first window of each batch size then takes a minute. None: on a CPU what
                was measured to be faster (`letstalk_rt.inference.autotune`), else no.

        Raises:
            ConfigError: unknown preset, device or dtype, or a setting out of range.
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
        """Make a pipeline of a model that is on its device; see `load` for the settings."""
        device = model.motion_scale.device
        model.autoencoder.to(memory_format=torch.channels_last)
        variant = _choose_variant(model, dtype, compiled)
        graphs = variant.compiled and device.type == "cuda"
        made = cls(model, steps=steps, guidance=guidance, variant=variant, replayed=graphs)
        if device.type == "cuda":
            choose_attention(model)
        return made

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.motion_scale.device

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> SessionState:
        """Do all the work that is done once per portrait, and start a session.

        Args:
            portrait: from `prepare_portrait`.
            options: what the session asks for.

        Raises:
            PortraitError: `portrait` is not prepared.
            ConfigError: an option is out of range.
        """
        return self._states.create(portrait, options)

    def change_portrait(self, state: SessionState, portrait: Portrait) -> None:
        """Go on with another face, in the midst of its motion; the next window shows it.

        Raises:
            PortraitError: `portrait` is not prepared; nothing has changed.
        """
        self._states.change_portrait(state, portrait)

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
        """Hear one hop and show one window, in each of B sessions.

        The window shows the sound up to one look-ahead before the end of the hop: with 80 ms, its
        first frame belongs to the second-last frame of the hop before.

        Args:
            pcm: `(B, hop)` float32 in [-1, 1] at 16 kHz.
            states: of B sessions that have one `batch_key`; updated in place.
            deliver: is called with each of the `parts` of the window, `(B, n, H, W, 3)`, as soon as
                it is made. One core is then left to other work, which so disturbs it less.
            clock: is told of the stages audio, sample, layout and paint, and for each part of the
                latter of decode and composite.

        Returns:
            `(B, N, H, W, 3)` uint8, new memory.

        Raises:
            AudioFormatError: `pcm` has the wrong shape or dtype, or holds NaN; nothing has changed.
        """
        self._check(pcm, states)
        decode_pool = self.frame_decoder.decode_pool
        threads = decode_pool.model_threads if decode_pool and deliver else None
        with thread_limit(threads):
            with clock.stage("audio"):
                tokens = self.encode_audio(torch.from_numpy(pcm).to(self.device), states)
            with clock.stage("sample"):
                latents = self._sample(tokens, states)
            with clock.stage("layout"):
                sketches = self.frame_decoder.lay_out(latents, states)
        eye_closures = [state.motion_control.eye_closures(latents.shape[1]) for state in states]
        shown = []
        painting = self.frame_decoder.paint(sketches, eye_closures, states, clock)
        with clock.stage("paint"), closing(painting):
            for part in painting:
                if deliver is not None:
                    deliver(part)
                shown.append(part)
        return shown[0] if len(shown) == 1 else np.concatenate(shown, 1)

    @torch.inference_mode()
    def interrupt(self, state: SessionState, *, unseen: int = 0) -> None:
        """Forget the speech heard so far; the face stays where it is and comes to rest.

        Args:
            state: of the session; changed in place.
            unseen: how many of the last frames were never shown. The motion goes on from the
                frame before them, so that the face does not jump.
        """
        overwrite(state.audio, state.silence)
        state.memory.rewind(unseen)
        state.cache.rewind(unseen)
        state.motion_control.rewind(unseen)
        state.motion_control.ease_from(state.memory.latents[:, -1])

    @torch.inference_mode()
    def encode_audio(self, pcm: Tensor, states: Sequence[SessionState]) -> Tensor:
        """Return the audio tokens of the frames of this step, `(B, N, K, A)`.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: of B sessions; what was heard before is updated in place.
        """
        audio = gather([state.audio for state in states])
        tokens: Tensor = self.model.audio(pcm, audio)
        scatter(audio, [state.audio for state in states])
        missing = self.lookahead_frames - states[0].lookahead_frames
        if missing:  # the sound to come is guessed to be as the last was, backwards: no click
            windows = -(-missing // self.frames_per_window)
            guess = torch.cat([pcm.flip(1), pcm] * windows, 1)[:, : windows * self.hop]
            ahead = self.model.audio(guess, copy.deepcopy(audio))
            tokens = torch.cat([tokens, ahead], 1)[:, missing : missing + self.frames_per_window]
        return tokens

    def _sample(self, tokens: Tensor, states: Sequence[SessionState]) -> Tensor:
        """Give the latents of the next window, `(B, N, C, h, w)`."""
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
            self._draw(states).to(self.device),
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
        motion = torch.cat(
            [s.motion_control.apply(m[None]) for s, m in zip(states, motion, strict=True)]
        )
        portraits = torch.cat([state.features.latent for state in states])
        return self.model.to_latents(motion, portraits)

    def _draw(self, states: Sequence[SessionState]) -> Tensor:
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
                "sessions of one batch must agree in picture size, steps and look-ahead, got "
                f"{sorted(keys)}; step them apart"
            )


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
