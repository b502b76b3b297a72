"""One step of the avatar, synchronous and batched: a hop of sound in, a window of pictures out.

All that a session remembers is in its `SessionState`, which is passed in and written in place.
This room knows no asyncio, no queue and no clock.
"""

import copy
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.audio.encoder import AudioState
from letstalk_rt.audio.speech_encoder import SpeechState
from letstalk_rt.compositor import Compositor
from letstalk_rt.devices import DTYPES, choose_device, choose_dtype
from letstalk_rt.errors import AudioFormatError, ConfigError, InputError, PortraitError
from letstalk_rt.graphs import Replay
from letstalk_rt.metrics import NoClock, Stages
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.finder import FaceFinder
from letstalk_rt.models.latents import Decoded
from letstalk_rt.models.loading import face_finder_for, load_model
from letstalk_rt.models.memory import MemoryBank, TemporalCache
from letstalk_rt.models.motion import Director
from letstalk_rt.models.sampler import NoiseState, timesteps
from letstalk_rt.models.seams import ease_seam
from letstalk_rt.models.state import gather, overwrite, scatter
from letstalk_rt.models.transformer import PortraitState
from letstalk_rt.threads import Painters, apart, limited
from letstalk_rt.tuning import Variant, apply, choose_attention, fastest
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, MotionOptions, Portrait

MAX_STEPS = 50
MAX_GUIDANCE = 10.0
_AS_MADE = MotionOptions()
_PLAIN = Variant()
REST_WINDOWS = 3
"""Of silence, until the motion has come to rest."""

SETTLE_SAMPLES = 52 * SAMPLES_PER_FRAME
"""Silence that fills the audio encoder's reach: two seconds, in whole windows."""


@dataclass
class SessionState:
    """All that one session remembers.

    The portrait's parts are only read, and replaced by `change_portrait`; sound and memory are
    written in place, so their addresses hold for as long as the session lives.

    Attributes:
        audio: of the audio encoder.
        silence: what the audio encoder remembers after long silence; shared, never written.
        memory: anchor and last latents, as motion.
        cache: keys and values of memory, where the denoiser keeps them.
        features: the portrait as the decoder sees it.
        portrait: the portrait as the denoiser sees it.
        compositor: puts the face back into the portrait.
        noise: source of the session's chance.
        size: height and width of its pictures.
        director: changes the motion that is shown, and blinks.
        times: of the sampler.
        lookahead_frames: how far the pictures are behind the sound.
    """

    audio: AudioState | SpeechState
    silence: AudioState | SpeechState
    memory: MemoryBank
    cache: TemporalCache
    features: Any
    portrait: PortraitState
    compositor: Compositor
    noise: NoiseState
    size: tuple[int, int]
    director: Director
    times: list[float]
    lookahead_frames: int

    @torch.inference_mode()
    def reset(self) -> None:
        """Become as new: silence heard, the face at rest in its portrait."""
        overwrite(self.audio, self.silence)
        self.memory.reset()
        self.cache.reset()
        self.noise.reset()
        self.director.reset()


class AvatarPipeline:
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
        parts: in how many frames each a window is handed over, see `step`. On a CPU frame by frame,
            for the first is due while the last is still painted; a GPU paints all at once, and code
            that is compiled would be so again for each part's shape.
        painters: threads that paint the parts side by side, where there are any.
    """

    fps = FPS

    def __init__(
        self,
        model: AvatarModel,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        variant: Variant = _PLAIN,
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
        apply(model, variant)
        if self.device.type != "cpu" and model.preset.denoiser_follows:
            model.denoiser.to(self.dtype)
        options = {"compiled": variant.compiled, "recorded": replayed}
        whole = self.device.type != "cpu" or variant.compiled
        self.parts = [self.frames_per_window] if whole else [1] * self.frames_per_window
        self.painters = None if whole else Painters(self.frames_per_window)
        self._predict = Replay(model.denoiser.predict, name="denoiser", **options)
        self._lays_out = not whole
        self._decode = Replay(self._decoder(), name="decoder", **options)
        self._silence = self._hear_silence()

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
                was measured to be faster (`letstalk_rt.tuning`), else no.

        Raises:
            ConfigError: unknown preset, device or dtype, or a setting out of range.
            WeightsError: the weights are missing, damaged or of another model.
        """
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        where = choose_device(device)
        model = apart(load_model)(preset, weights).to(where)
        return apart(cls.on)(model, steps=steps, guidance=guidance, dtype=dtype, compiled=compiled)

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
        if dtype == "auto" and device.type == "cpu":
            variant = fastest(model)
        elif dtype == "int8":
            variant = Variant("int8")
        else:
            variant = Variant(str(choose_dtype(dtype, device)).removeprefix("torch."))
        if compiled is not None:
            variant = replace(variant, compiled=compiled)
        graphs = variant.compiled and device.type == "cuda"
        made = cls(model, steps=steps, guidance=guidance, variant=variant, replayed=graphs)
        if device.type == "cuda":
            choose_attention(model)
        return made

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.motion_scale.device

    @torch.inference_mode()
    def init_state(
        self,
        portrait: Portrait,
        *,
        seed: int = 0,
        steps: int | None = None,
        lookahead_frames: int | None = None,
        motion: MotionOptions = _AS_MADE,
    ) -> SessionState:
        """Do all the work that is done once per portrait, and start a session.

        Args:
            portrait: from `prepare_portrait`.
            seed: of the session's chance; the same seed and sound give the same video.
            steps: sampler steps per window; the pipeline's when None.
            lookahead_frames: how much of the coming sound the pictures wait for, from 0 to the
                model's own, which None stands for. Less is sooner, and lips follow less well: what
                is missing of the sound is guessed.
            motion: how the face moves.

        Raises:
            PortraitError: `portrait` is not prepared.
            ConfigError: `steps` or `lookahead_frames` is out of range.
        """
        features = self._describe(portrait)
        model, shape = self.model, self.model.autoencoder.latent_shape
        at_rest = torch.zeros(1, *shape, device=self.device)
        portrait_state = model.denoiser.portrait_state(model.normalized_portrait(features.latent))
        return SessionState(
            audio=self._hear_silence(),
            silence=self._silence,
            memory=MemoryBank.anchored(at_rest, model.denoiser.config.memory),
            cache=model.denoiser.init_cache(at_rest),
            features=features,
            portrait=portrait_state,
            compositor=self._compositor(portrait),
            noise=NoiseState(seed, torch.zeros(1, *shape)),
            size=(portrait.canvas.shape[0], portrait.canvas.shape[1]),
            director=Director(motion, model, features, seed, self._rest(portrait_state)),
            times=timesteps(_checked("steps", steps, self.steps, 1, MAX_STEPS)),
            lookahead_frames=_checked(
                "lookahead_frames", lookahead_frames, self.lookahead_frames, 0
            ),
        )

    @torch.inference_mode()
    def change_portrait(self, state: SessionState, portrait: Portrait) -> None:
        """Go on with another face, in the midst of its motion; the next window shows it.

        Raises:
            PortraitError: `portrait` is not prepared; nothing has changed.
        """
        features, model = self._describe(portrait), self.model
        state.compositor = self._compositor(portrait)
        state.portrait = model.denoiser.portrait_state(model.normalized_portrait(features.latent))
        state.size = (portrait.canvas.shape[0], portrait.canvas.shape[1])
        state.director.follow(features, self._rest(state.portrait))
        state.features = features

    def _decoder(self) -> Callable[..., Any]:
        autoencoder = self.model.autoencoder
        return autoencoder.paint if self._lays_out else autoencoder.decode_layers

    def _describe(self, portrait: Portrait) -> Any:
        crop, size = portrait.crop, self.model.autoencoder.picture_size
        if crop.shape != (size, size, 3) or crop.dtype != np.uint8:
            raise PortraitError(
                f"the face crop must be ({size}, {size}, 3) uint8, "
                f"got {crop.shape} {crop.dtype}; make it with prepare_portrait"
            )
        picture = torch.from_numpy(crop.copy()).to(self.device).permute(2, 0, 1)[None]
        return self.model.autoencoder.describe(picture.float() / 127.5 - 1)

    def _rest(self, portrait: PortraitState) -> Tensor | None:
        """Give the motion that the model makes of a portrait in silence, `(1, C, h, w)`.

        Only where latents tell how far the mouth is open.
        """
        model, shape = self.model, self.model.autoencoder.latent_shape
        if model.face is None:
            return None
        silence = torch.zeros(1, self.hop, device=self.device)
        tokens = model.audio(silence, copy.deepcopy(self._silence))
        memory = MemoryBank.anchored(
            torch.zeros(1, *shape, device=self.device), model.denoiser.config.memory
        )
        noise = torch.zeros(1, self.frames_per_window, *shape, device=self.device)
        times = timesteps(self.steps)
        for _ in range(REST_WINDOWS):
            cache = model.denoiser.recall(memory.latents, memory.filled)
            motion = model.sample_window(noise, tokens, portrait, cache, times, self.guidance)
            memory.write(motion)
        return motion.mean(1)

    @torch.inference_mode()
    def step(
        self,
        pcm: np.ndarray,
        states: Sequence[SessionState],
        deliver: Callable[[np.ndarray], None] | None = None,
        *,
        clock: Stages = NoClock(),  # noqa: B008 (it has no state)
    ) -> np.ndarray:
        """Hear one hop and show one window, in each of B sessions.

        The window shows the sound up to one look-ahead before the end of the hop: with 80 ms, its
        first frame belongs to the second-last frame of the hop before.

        Args:
            pcm: `(B, hop)` float32 in [-1, 1] at 16 kHz.
            states: of B sessions whose pictures have one size; updated in place.
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
        threads = self.painters.spared if self.painters and deliver else None
        with limited(threads):
            with clock.stage("audio"):
                tokens = self._hear(torch.from_numpy(pcm).to(self.device), states)
            with clock.stage("sample"):
                latents = self._sample(tokens, states)
            with clock.stage("layout"):
                sketches = self._sketch(latents, states)
        closures = [state.director.closures(latents.shape[1]) for state in states]
        shown = []
        painting = self._painted(sketches, closures, states, clock)
        with clock.stage("paint"), closing(painting):
            for part in painting:
                if deliver is not None:
                    deliver(part)
                shown.append(part)
        return shown[0] if len(shown) == 1 else np.concatenate(shown, 1)

    def _sketch(self, latents: Tensor, states: Sequence[SessionState]) -> list[Any]:
        """Prepare the latents `(B, N, C, h, w)` of a window for painting; gives B things to slice.

        Where frames are painted one by one, what costs the same for one as for all is done here.
        """
        if not self._lays_out:
            return list(latents)
        pairs = zip(latents, states, strict=True)
        return [self.model.autoencoder.lay_out(x, s.features.repeat(len(x))) for x, s in pairs]

    def _painted(
        self,
        sketches: Sequence[Any],
        closures: Sequence[Sequence[float]],
        states: Sequence[SessionState],
        clock: Stages,
    ) -> Generator[np.ndarray, None, None]:
        """Give the parts of a window in order, `(B, n, H, W, 3)`, each as soon as it is there.

        Painting changes no state, so parts are painted side by side where there are threads for it.
        """
        jobs, first = [], 0
        for count in self.parts:
            here = slice(first, first + count)
            first += count
            drawn, eyes = [one[here] for one in sketches], [one[here] for one in closures]
            jobs.append(partial(self._paint, drawn, eyes, states, clock))
        if self.painters is None:
            return (job() for job in jobs)
        return _in_order([self.painters.submit(job) for job in jobs])

    @torch.inference_mode()
    def _paint(
        self,
        sketches: Sequence[Any],
        closures: Sequence[Sequence[float]],
        states: Sequence[SessionState],
        clock: Stages,
    ) -> np.ndarray:
        """Give the pictures of n frames of each session: `(B, n, H, W, 3)` uint8."""
        with clock.stage("decode"):
            frames = self._decoded(sketches, states)
        with clock.stage("composite"):
            each = zip(states, frames, closures, strict=True)
            return np.stack([self._compose(*one) for one in each])

    def _decoded(
        self, sketches: Sequence[Any], states: Sequence[SessionState]
    ) -> Sequence[Tensor | Decoded]:
        """Decode the frames of each session.

        A processor decodes one session after the other: the maps of several do not stay in its
        cache, and four together take a tenth longer.
        """
        pairs = zip(sketches, states, strict=True)
        if self._lays_out:
            return [self._decode(x, s.features.repeat(len(x))) for x, s in pairs]
        if self.device.type == "cpu":
            return [self._decode(x[None], s.features)[0] for x, s in pairs]
        frames = self._decode(torch.stack(list(sketches)), gather([s.features for s in states]))
        return [frames[i] for i in range(len(states))]

    def _compositor(self, portrait: Portrait) -> Compositor:
        return Compositor(portrait, self.device, layered=self.model.face is not None)

    @staticmethod
    def _compose(
        state: SessionState, frames: Tensor | Decoded, closures: Sequence[float]
    ) -> np.ndarray:
        """Put the frames of one session into its portrait: `(n, H, W, 3)` uint8."""
        if isinstance(frames, Tensor):
            return state.compositor.compose(frames)  # such a model blinks by itself
        return state.compositor.compose_layers(frames, closures)

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
        state.director.rewind(unseen)
        state.director.ease_from(state.memory.latents[:, -1])

    @torch.inference_mode()
    def _hear_silence(self) -> AudioState | SpeechState:
        """Make an audio state that has settled; a fresh one's zeros are no sound it ever heard."""
        state: AudioState | SpeechState = self.model.audio.init_state(1)
        self.model.audio(torch.zeros(1, SETTLE_SAMPLES, device=self.device), state)
        return state

    def _hear(self, pcm: Tensor, states: Sequence[SessionState]) -> Tensor:
        """Give the audio tokens of the frames of this step, `(B, N, K, A)`."""
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
        cache = kept if denoiser.config.cached else denoiser.recall(memory.latents, memory.filled)
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
        denoiser.remember(motion, kept)
        scatter(memory, [state.memory for state in states])
        scatter(kept, [state.cache for state in states])
        motion = torch.cat(
            [s.director.direct(m[None]) for s, m in zip(states, motion, strict=True)]
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
        alike = {(state.size, len(state.times), state.lookahead_frames) for state in states}
        if len(alike) != 1:
            raise InputError(
                "sessions of one batch must agree in picture size, steps and look-ahead, got "
                f"{sorted(alike)}; step them apart"
            )


def _in_order(jobs: "Sequence[Future[np.ndarray]]") -> Generator[np.ndarray, None, None]:
    """Give what jobs give, each as soon as it is there; closed or failed, none goes on unseen."""
    try:
        for job in jobs:
            yield job.result()
    finally:
        wait(jobs)


def _checked(name: str, value: int | None, own: int, least: int, most: int | None = None) -> int:
    value = own if value is None else value
    most = own if most is None else most
    if not least <= value <= most:
        raise ConfigError(f"{name} must be from {least} to {most}, got {value}")
    return value
