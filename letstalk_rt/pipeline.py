"""One step of the avatar, synchronous and batched: a hop of sound in, a window of pictures out.

All that a session remembers is in its `SessionState`, which is passed in and written in place.
This room knows no asyncio, no queue and no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.audio.encoder import LOOKAHEAD_FRAMES, AudioState
from letstalk_rt.errors import AudioFormatError, ConfigError, PortraitError
from letstalk_rt.metrics import NoClock, Stages
from letstalk_rt.models.autoencoder import LATENT_SHAPE, PICTURE_SIZE, PortraitFeatures
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.finder import FaceFinder
from letstalk_rt.models.loading import load_model
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.sampler import NoiseState, sample, timesteps
from letstalk_rt.models.state import gather, overwrite, scatter
from letstalk_rt.models.transformer import PortraitState
from letstalk_rt.portrait import Compositor
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, Portrait

MAX_STEPS = 50
MAX_GUIDANCE = 10.0
SETTLE_SAMPLES = 50 * SAMPLES_PER_FRAME
"""Silence that fills the audio encoder's reach: two seconds."""


@dataclass
class SessionState:
    """All that one session remembers.

    The portrait's parts are only read; sound and memory are written in place, so their addresses
    hold for as long as the session lives.

    Attributes:
        audio: of the audio encoder.
        silence: what the audio encoder remembers after long silence; shared, never written.
        memory: anchor and last latents, as motion.
        features: the portrait as the decoder sees it.
        portrait: the portrait as the denoiser sees it.
        compositor: puts the face back into the portrait.
        noise: source of the session's chance.
        size: height and width of its pictures.
    """

    audio: AudioState
    silence: AudioState
    memory: MemoryBank
    features: PortraitFeatures
    portrait: PortraitState
    compositor: Compositor
    noise: NoiseState
    size: tuple[int, int]

    @torch.inference_mode()
    def reset(self) -> None:
        """Become as new: silence heard, the face at rest in its portrait."""
        overwrite(self.audio, self.silence)
        self.memory.reset()
        self.noise.reset()


class AvatarPipeline:
    """The model and its recurrence, shared by any number of sessions.

    Calls must come from one thread at a time.

    Args:
        model: in eval mode, on its device.
        steps: sampler steps per window; the preset's own when None.
        guidance: weight of the sound against none; the preset's own when None.
        dtype: of the decoder, the costly part; the rest is float32.
    """

    fps = FPS
    lookahead_frames = LOOKAHEAD_FRAMES

    def __init__(
        self,
        model: AvatarModel,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        dtype: torch.dtype = torch.float32,
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
        self.dtype = dtype
        self.finder: FaceFinder = model.finder()
        self.frames_per_window: int = model.denoiser.config.window
        self.hop = self.frames_per_window * SAMPLES_PER_FRAME
        self._times = timesteps(steps)
        model.autoencoder.decoder.to(dtype=dtype)
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
    ) -> Self:
        """Read a model and put it on its device. Blocking, about a second.

        Args:
            preset: name of the model.
            device: `auto`, `cpu` or `cuda`.
            steps: sampler steps per window.
            guidance: weight of the sound against none.
            threads: of the CPU that torch may use; as torch decides when None.
            weights: file to read; the package's own when None.

        Raises:
            ConfigError: unknown preset or device, or a setting out of range.
            WeightsError: the weights are missing, damaged or of another model.
        """
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        where = choose_device(device)
        model = load_model(preset, weights).to(where)
        model.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(model, steps=steps, guidance=guidance, dtype=_decoder_dtype(where))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.motion_scale.device

    @torch.inference_mode()
    def init_state(self, portrait: Portrait, *, seed: int = 0) -> SessionState:
        """Do all the work that is done once per portrait, and start a session.

        Args:
            portrait: from `prepare_portrait`.
            seed: of the session's chance; the same seed and sound give the same video.
        """
        crop = portrait.crop
        if crop.shape != (PICTURE_SIZE, PICTURE_SIZE, 3) or crop.dtype != np.uint8:
            raise PortraitError(
                f"the face crop must be ({PICTURE_SIZE}, {PICTURE_SIZE}, 3) uint8, "
                f"got {crop.shape} {crop.dtype}; make it with prepare_portrait"
            )
        picture = torch.from_numpy(crop.copy()).to(self.device).permute(2, 0, 1)[None]
        model = self.model
        features = model.autoencoder.describe(picture.float() / 127.5 - 1)
        at_rest = torch.zeros(1, *LATENT_SHAPE, device=self.device)
        return SessionState(
            audio=self._hear_silence(),
            silence=self._silence,
            memory=MemoryBank.anchored(at_rest, model.denoiser.config.memory),
            features=features,
            portrait=model.denoiser.portrait_state(model.normalized_portrait(features.latent)),
            compositor=Compositor(portrait, self.device),
            noise=NoiseState(seed, torch.zeros(1, *LATENT_SHAPE)),
            size=(portrait.canvas.shape[0], portrait.canvas.shape[1]),
        )

    @torch.inference_mode()
    def step(
        self,
        pcm: np.ndarray,
        states: Sequence[SessionState],
        *,
        clock: Stages = NoClock(),  # noqa: B008 (it has no state)
    ) -> np.ndarray:
        """Hear one hop and show one window, in each of B sessions.

        The window shows the sound up to 80 ms before the end of the hop: its first frame belongs
        to the second-last frame of the hop before.

        Args:
            pcm: `(B, hop)` float32 in [-1, 1] at 16 kHz.
            states: of B sessions whose pictures have one size; updated in place.
            clock: is told of the stages audio, sample, decode and composite.

        Returns:
            `(B, N, H, W, 3)` uint8, new memory.

        Raises:
            AudioFormatError: `pcm` has the wrong shape or dtype, or holds NaN; nothing has changed.
        """
        self._check(pcm, states)
        with clock.stage("audio"):
            audio = gather([state.audio for state in states])
            tokens = self.model.audio(torch.from_numpy(pcm).to(self.device), audio)
            scatter(audio, [state.audio for state in states])
        with clock.stage("sample"):
            latents, features = self._sample(tokens, states)
        with clock.stage("decode"):
            pictures = self.model.autoencoder.decode(latents, features)
        with clock.stage("composite"):
            shown = [s.compositor.compose(p) for s, p in zip(states, pictures, strict=True)]
            return np.stack(shown)

    @torch.inference_mode()
    def interrupt(self, state: SessionState) -> None:
        """Forget the speech heard so far; the face stays where it is and comes to rest."""
        overwrite(state.audio, state.silence)

    @torch.inference_mode()
    def _hear_silence(self) -> AudioState:
        """Make an audio state that has settled; a fresh one's zeros are no sound it ever heard."""
        state = self.model.audio.init_state(1)
        self.model.audio(torch.zeros(1, SETTLE_SAMPLES, device=self.device), state)
        return state

    def _sample(
        self, tokens: Tensor, states: Sequence[SessionState]
    ) -> tuple[Tensor, PortraitFeatures]:
        memory = gather([state.memory for state in states])
        portrait = gather([state.portrait for state in states])
        features = gather([state.features for state in states])
        count, preset = self.frames_per_window, self.model.preset
        noise = torch.cat(
            [s.noise.draw(count, preset.noise_correlation, preset.temperature) for s in states]
        )

        def velocity(x: Tensor, t: float) -> Tensor:
            at = x.new_full(x.shape[:2], t)
            out: Tensor = self.model.denoiser(
                x, at, tokens, portrait, memory.latents, memory.filled
            )
            return out

        motion = sample(velocity, noise.to(self.device), self._times)
        memory.write(motion)
        scatter(memory, [state.memory for state in states])
        return self.model.to_latents(motion, features.latent), features

    def _check(self, pcm: np.ndarray, states: Sequence[SessionState]) -> None:
        wanted = (len(states), self.hop)
        if pcm.shape != wanted or pcm.dtype != np.float32:
            raise AudioFormatError(f"pcm must be {wanted} float32, got {pcm.shape} {pcm.dtype}")
        if not np.isfinite(pcm).all():
            raise AudioFormatError("pcm holds NaN or infinity; values must lie in [-1, 1]")
        sizes = {state.size for state in states}
        assert len(sizes) == 1, sizes


def choose_device(name: str) -> torch.device:
    """Give the device of this name; `auto` is the GPU where there is one.

    Raises:
        ConfigError: unknown, or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no GPU; use 'cpu' or 'auto'")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device must be 'auto', 'cpu' or 'cuda', got {name!r}")
    return torch.device(name)


def _decoder_dtype(device: torch.device) -> torch.dtype:
    """Choose bfloat16 where matrix units make it faster: on GPUs, and on processors with AMX."""
    if device.type == "cuda" or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32
