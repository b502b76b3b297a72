"""The state of a session in the pipeline, and how it is created from a portrait."""

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.inference.code_control import CodeControl
from letstalk_rt.inference.footage_player import FootagePlayer
from letstalk_rt.inference.motion_stage import USUAL_BLINKS_PER_MIN, MotionState
from letstalk_rt.inference.protocol import StateOptions, Steering
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.inference.sample_stage import LatentState
from letstalk_rt.models.audio_encoder.causal import AudioEncoderState
from letstalk_rt.models.audio_encoder.interfaces import AudioEncoder
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoderState
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import overwrite
from letstalk_rt.models.denoiser import PortraitState
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.motion.code import NUM_STYLE
from letstalk_rt.models.motion.speech_encoder import SpeechEncoder, SpeechState
from letstalk_rt.models.parts import EYE_PAINTER, MOTION, MOUTH_PAINTER
from letstalk_rt.models.sampler import NoiseState, timesteps
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.portrait.eye_compositor import EyeCompositor
from letstalk_rt.portrait.mouth_compositor import MouthCompositor
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, MotionOptions, Portrait

SETTLE_SAMPLES = 52 * SAMPLES_PER_FRAME
"""Silence that fills the audio encoder's receptive field: two seconds, in whole windows."""


class BatchKey(NamedTuple):
    """The properties that all sessions of one batch must share.

    Attributes:
        steps: sampling steps per window.
        lookahead_frames: how many frames the video is behind the audio.
        footage: whether the portraits are films.
    """

    steps: int
    lookahead_frames: int
    footage: bool


@dataclass
class QualityState:
    """What a session computes for each frame, and where it is in the pattern of repeated images.

    Attributes:
        quality: what is computed.
        made: frames made since that was set, or the portrait.
        last_image: the last image, `(H, W, 3)` uint8, kept while images are repeated.
    """

    quality: Quality = FULL_QUALITY
    made: int = 0
    last_image: np.ndarray | None = None

    def image(self, made: np.ndarray | None) -> np.ndarray:
        """Return the next image: what was made, or the last one again."""
        image = self.last_image if made is None else made
        assert image is not None, "the first frame has an image"
        if self.quality.fps < FPS:
            self.last_image = image.copy()  # the caller may change what it gets
        return image


@dataclass
class SessionState:
    """Everything that the pipeline remembers of one session.

    What depends on the portrait is only read, and replaced by `change_portrait`; audio and memory
    are written in place, so their tensor addresses never change.

    Attributes:
        audio: state of the audio encoder.
        silence: state of the audio encoder after long silence; shared and never written.
        features: portrait features, for the decoder.
        compositor: puts the face back into the canvas.
        mouths: inpaints open mouths in composited frames; None for a model without mouth painter.
        eyes: shows the eyes of composited frames as wanted; None for a model without eye painter.
        times: timesteps of the sampler.
        lookahead_frames: how many frames the video is behind the audio.
        player: shows the footage of a portrait that is a film; otherwise None.
        motion: the motion of the face, if the model has a motion denoiser.
        latents: the motion of latents, if it has none.
        quality: what is computed for each frame.
        steering: moves the face in the next window; None without a camera.
        direction: changes the motion of the next window; None if nothing does.
    """

    audio: AudioEncoderState | Wav2VecEncoderState
    silence: AudioEncoderState | Wav2VecEncoderState
    features: Any
    compositor: Compositor
    mouths: MouthCompositor | None
    eyes: EyeCompositor | None
    times: list[float]
    lookahead_frames: int
    player: FootagePlayer | None
    motion: MotionState | None
    latents: LatentState | None
    quality: QualityState = field(default_factory=QualityState)
    steering: Steering | None = None
    direction: DirectedWindow | None = None

    @property
    def batch_key(self) -> BatchKey:
        """The key that sessions must share to run in one batch."""
        moves = self.player is not None
        return BatchKey(len(self.times), self.lookahead_frames, moves)

    def take_steering(self) -> Steering | None:
        """Return what moves the face in the next window, which holds for that one only."""
        steering, self.steering = self.steering, None
        return steering

    def take_direction(self) -> DirectedWindow | None:
        """Return what changes the motion of the next window, which holds for that one only."""
        direction, self.direction = self.direction, None
        return direction

    def interrupt(self, unseen: int) -> None:
        """Forget all past speech; the motion goes on before the last `unseen` frames."""
        overwrite(self.audio, self.silence)
        for part in self._moving:
            part.interrupt(unseen)

    @torch.inference_mode()
    def reset(self) -> None:
        """Return to the initial state: silence before, the face at rest as in the portrait."""
        overwrite(self.audio, self.silence)
        for part in self._moving:
            part.reset()
        self.quality, self.steering, self.direction = QualityState(), None, None

    @property
    def _moving(self) -> list[FootagePlayer | MotionState | LatentState]:
        parts = (self.player, self.motion, self.latents)
        return [part for part in parts if part is not None]


class StateFactory:
    """Creates the states of sessions, with all computation that is done once per portrait.

    Args:
        model: in eval mode, on its device and in its number formats.
        steps: default number of sampling steps per window.
    """

    def __init__(self, model: AvatarModel, *, steps: int) -> None:
        self._model, self._steps = model, steps
        self._silence = self._silent_state(model.audio)
        motion = model.get(MOTION)
        self._speech_silence: SpeechState | None = (
            None if motion is None else self._silent_state(motion.speech)
        )

    @torch.inference_mode()
    def create(self, portrait: Portrait, options: StateOptions) -> SessionState:
        """Create the state of a session.

        Raises:
            PortraitError: `portrait` is not prepared for this model.
            ConfigError: `lookahead_frames` is out of range.
        """
        model = self._model
        features, compositor = self._describe(portrait), self._compositor(portrait)
        return SessionState(
            audio=copy.deepcopy(self._silence),
            silence=self._silence,
            features=features,
            compositor=compositor,
            mouths=self._mouth_compositor(compositor, features, options.seed),
            eyes=self._eye_compositor(compositor, features),
            times=timesteps(self._steps if options.steps is None else options.steps),
            lookahead_frames=_lookahead(options, model.audio.lookahead_frames),
            player=self._player(portrait, options.motion.expressiveness, options.seed),
            motion=self._motion(options, features),
            latents=self._latents(options, features),
        )

    @torch.inference_mode()
    def change_portrait(self, state: SessionState, portrait: Portrait) -> None:
        """Change the portrait from the next window on; the motion continues.

        Raises:
            PortraitError: `portrait` is not prepared for this model; nothing has changed.
        """
        features = self._describe(portrait)
        if state.motion is not None:
            control, seed = state.motion.control, state.motion.noise.seed
            state.player = self._player(portrait, control.options.expressiveness, seed)
            control.set_portrait(features)
        else:
            assert state.latents is not None, "one of both moves the face"
            seed = state.latents.noise.seed
            state.latents.portrait = self._portrait_state(features)
        state.compositor = self._compositor(portrait)
        state.mouths = self._mouth_compositor(state.compositor, features, seed)
        state.eyes = self._eye_compositor(state.compositor, features)
        state.features = features
        state.quality = QualityState(state.quality.quality)  # no image of the old size is repeated

    @torch.inference_mode()
    def set_motion(self, state: SessionState, motion: MotionOptions) -> None:
        """Change how the face moves, from the next window on.

        Raises:
            ConfigError: the model has no motion denoiser, which that needs; nothing has changed.
        """
        if state.motion is None:
            return _check_undirected(motion, self._model)
        state.motion.control.options = motion
        state.motion.blink_gain.fill_(motion.blinks_per_min / USUAL_BLINKS_PER_MIN)
        if state.player is not None:
            state.player.expressiveness = motion.expressiveness

    def _player(self, portrait: Portrait, expressiveness: float, seed: int) -> FootagePlayer | None:
        if portrait.footage is None:
            return None
        return FootagePlayer(self._model, portrait.footage, expressiveness, seed)

    def _motion(self, options: StateOptions, features: Any) -> MotionState | None:
        denoiser, silence = self._model.get(MOTION), self._speech_silence
        if denoiser is None or silence is None:
            return None
        blink_gain = torch.tensor([options.motion.blinks_per_min / USUAL_BLINKS_PER_MIN])
        return MotionState(
            speech=copy.deepcopy(silence),
            silence=silence,
            memory=denoiser.init_memory(1),
            noise=NoiseState(options.seed, torch.zeros(1, 1 + denoiser.config.size)),
            style=torch.zeros(1, NUM_STYLE, device=self._device),
            blink_gain=blink_gain.to(self._device),
            control=CodeControl(options.motion, self._model, features),
        )

    def _latents(self, options: StateOptions, features: Any) -> LatentState | None:
        if self._speech_silence is not None:  # the motion denoiser moves the face
            return None
        _check_undirected(options.motion, self._model)
        denoiser, shape = self._model.denoiser, self._model.autoencoder.latent_shape
        at_rest = torch.zeros(1, *shape, device=self._device)
        return LatentState(
            memory=MemoryBank.anchored(at_rest, denoiser.config.memory),
            cache=denoiser.init_cache(at_rest),
            portrait=self._portrait_state(features),
            noise=NoiseState(options.seed, torch.zeros(1, *shape)),
        )

    def _portrait_state(self, features: Any) -> PortraitState:
        model = self._model
        return model.denoiser.portrait_state(model.normalized_portrait(features.latent))

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
        image = torch.from_numpy(crop.copy()).to(self._device).permute(2, 0, 1)[None]
        return self._model.encode_portrait(image.float() / 127.5 - 1)

    def _compositor(self, portrait: Portrait) -> Compositor:
        return Compositor(portrait, self._device, layered=self._model.face is not None)

    def _mouth_compositor(
        self, compositor: Compositor, features: Any, seed: int
    ) -> MouthCompositor | None:
        painter = self._model.get(MOUTH_PAINTER)
        if painter is None:
            return None
        points = compositor.to_canvas(features.points)
        return MouthCompositor(painter, compositor.canvas, points, seed)

    def _eye_compositor(self, compositor: Compositor, features: Any) -> EyeCompositor | None:
        painter = self._model.get(EYE_PAINTER)
        if painter is None:
            return None
        points = compositor.to_canvas(features.points)
        return EyeCompositor(painter, compositor.canvas, points, features.points)

    @torch.inference_mode()
    def _silent_state(self, encoder: AudioEncoder | SpeechEncoder) -> Any:
        """Create the state of an encoder after long silence, which an initial state is not."""
        state = encoder.init_state(1)
        encoder(torch.zeros(1, SETTLE_SAMPLES, device=self._device), state)
        return state


def _check_undirected(motion: MotionOptions, model: AvatarModel) -> None:
    if (motion.expressiveness, motion.head_motion, motion.gaze_at_camera) != (1.0, True, False):
        raise ConfigError(
            f"preset {model.preset.name!r} has no motion denoiser, which expressiveness, head "
            "motion and gaze need; leave these options out"
        )


def _lookahead(options: StateOptions, most: int) -> int:
    """Return the look-ahead in frames: the one of the options, or the model's own."""
    value = most if options.lookahead_frames is None else options.lookahead_frames
    if not 0 <= value <= most:
        raise ConfigError(f"lookahead_frames must be from 0 to {most}, got {value}")
    return value
