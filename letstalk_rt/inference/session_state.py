"""What a model remembers of a session, and how it is made from a portrait.

This room knows no asyncio, no queue and no clock.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.inference.motion_control import MotionController
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.models.audio_encoder.causal import AudioEncoderState
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoderState
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import overwrite
from letstalk_rt.models.denoiser import PortraitState
from letstalk_rt.models.memory import MemoryBank, TemporalCache
from letstalk_rt.models.sampler import NoiseState, timesteps
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.types import SAMPLES_PER_FRAME, Portrait

MAX_STEPS = 50
REST_WINDOWS = 3
"""Of silence, until the motion has come to rest."""

SETTLE_SAMPLES = 52 * SAMPLES_PER_FRAME
"""Silence that fills the audio encoder's reach: two seconds, in whole windows."""


class BatchKey(NamedTuple):
    """What sessions of one batch must agree in.

    Attributes:
        size: height and width of the frames.
        steps: sampler steps per window.
        lookahead_frames: how far the frames are behind the audio.
    """

    size: tuple[int, int]
    steps: int
    lookahead_frames: int


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
        motion_control: changes the motion that is shown, and blinks.
        times: of the sampler.
        lookahead_frames: how far the pictures are behind the sound.
    """

    audio: AudioEncoderState | Wav2VecEncoderState
    silence: AudioEncoderState | Wav2VecEncoderState
    memory: MemoryBank
    cache: TemporalCache
    features: Any
    portrait: PortraitState
    compositor: Compositor
    noise: NoiseState
    size: tuple[int, int]
    motion_control: MotionController
    times: list[float]
    lookahead_frames: int

    @property
    def batch_key(self) -> BatchKey:
        """What other sessions must share to run in one batch with this one."""
        return BatchKey(self.size, len(self.times), self.lookahead_frames)

    @torch.inference_mode()
    def reset(self) -> None:
        """Become as new: silence heard, the face at rest in its portrait."""
        overwrite(self.audio, self.silence)
        self.memory.reset()
        self.cache.reset()
        self.noise.reset()
        self.motion_control.reset()


class StateFactory:
    """Makes the states of sessions: all the work that is done once per portrait.

    Args:
        model: in eval mode, on its device and in its number formats.
        steps: sampler steps per window of a session that asks for none.
        guidance: weight of the sound against none.
    """

    def __init__(self, model: AvatarModel, *, steps: int, guidance: float) -> None:
        self._model, self._steps, self._guidance = model, steps, guidance
        self._silence = self._hear_silence()

    @torch.inference_mode()
    def create(self, portrait: Portrait, options: StateOptions) -> SessionState:
        """Start a session.

        Raises:
            PortraitError: `portrait` is not prepared.
            ConfigError: `steps` or `lookahead_frames` is out of range.
        """
        model, device = self._model, self._device
        features = self._describe(portrait)
        shape = model.autoencoder.latent_shape
        at_rest = torch.zeros(1, *shape, device=device)
        portrait_state = model.denoiser.portrait_state(model.normalized_portrait(features.latent))
        lookahead = model.audio.lookahead_frames
        rest = self._rest(portrait_state)
        return SessionState(
            audio=self._hear_silence(),
            silence=self._silence,
            memory=MemoryBank.anchored(at_rest, model.denoiser.config.memory),
            cache=model.denoiser.init_cache(at_rest),
            features=features,
            portrait=portrait_state,
            compositor=self._compositor(portrait),
            noise=NoiseState(options.seed, torch.zeros(1, *shape)),
            size=(portrait.canvas.shape[0], portrait.canvas.shape[1]),
            motion_control=MotionController(options.motion, model, features, options.seed, rest),
            times=timesteps(_checked("steps", options.steps, self._steps, 1, MAX_STEPS)),
            lookahead_frames=_checked(
                "lookahead_frames", options.lookahead_frames, lookahead, 0, lookahead
            ),
        )

    @torch.inference_mode()
    def change_portrait(self, state: SessionState, portrait: Portrait) -> None:
        """Go on with another face, in the midst of its motion; the next window shows it.

        Raises:
            PortraitError: `portrait` is not prepared; nothing has changed.
        """
        features, model = self._describe(portrait), self._model
        state.compositor = self._compositor(portrait)
        state.portrait = model.denoiser.portrait_state(model.normalized_portrait(features.latent))
        state.size = (portrait.canvas.shape[0], portrait.canvas.shape[1])
        state.motion_control.set_portrait(features, self._rest(state.portrait))
        state.features = features

    @property
    def _device(self) -> torch.device:
        return self._model.motion_scale.device

    def _describe(self, portrait: Portrait) -> Any:
        crop, size = portrait.crop, self._model.autoencoder.image_size
        if crop.shape != (size, size, 3) or crop.dtype != np.uint8:
            raise PortraitError(
                f"the face crop must be ({size}, {size}, 3) uint8, "
                f"got {crop.shape} {crop.dtype}; make it with prepare_portrait"
            )
        picture = torch.from_numpy(crop.copy()).to(self._device).permute(2, 0, 1)[None]
        return self._model.autoencoder.encode_portrait(picture.float() / 127.5 - 1)

    def _compositor(self, portrait: Portrait) -> Compositor:
        return Compositor(portrait, self._device, layered=self._model.face is not None)

    def _rest(self, portrait: PortraitState) -> Tensor | None:
        """Give the motion that the model makes of a portrait in silence, `(1, C, h, w)`.

        Only where latents tell how far the mouth is open.
        """
        model, shape = self._model, self._model.autoencoder.latent_shape
        if model.face is None:
            return None
        window = model.denoiser.config.window
        silence = torch.zeros(1, window * SAMPLES_PER_FRAME, device=self._device)
        tokens = model.audio(silence, copy.deepcopy(self._silence))
        memory = MemoryBank.anchored(
            torch.zeros(1, *shape, device=self._device), model.denoiser.config.memory
        )
        noise = torch.zeros(1, window, *shape, device=self._device)
        times = timesteps(self._steps)
        for _ in range(REST_WINDOWS):
            cache = model.denoiser.encode_memory(memory.latents, memory.filled)
            motion = model.sample_window(noise, tokens, portrait, cache, times, self._guidance)
            memory.write(motion)
        return motion.mean(1)

    @torch.inference_mode()
    def _hear_silence(self) -> AudioEncoderState | Wav2VecEncoderState:
        """Make an audio state that has settled; a fresh one's zeros are no sound it ever heard."""
        state: AudioEncoderState | Wav2VecEncoderState = self._model.audio.init_state(1)
        self._model.audio(torch.zeros(1, SETTLE_SAMPLES, device=self._device), state)
        return state


def _checked(name: str, value: int | None, own: int, least: int, most: int) -> int:
    """Give what was asked for, or the model's own."""
    value = own if value is None else value
    if not least <= value <= most:
        raise ConfigError(f"{name} must be from {least} to {most}, got {value}")
    return value
