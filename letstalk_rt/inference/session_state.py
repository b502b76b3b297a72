"""The state of a session in the pipeline, and how it is created from a portrait."""

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.inference.code_control import CodeControl
from letstalk_rt.inference.footage_player import FootagePlayer
from letstalk_rt.inference.motion_control import MotionController
from letstalk_rt.inference.motion_stage import USUAL_BLINKS_PER_MIN, MotionState
from letstalk_rt.inference.protocol import StateOptions, Steering
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.models.audio_encoder.causal import AudioEncoderState
from letstalk_rt.models.audio_encoder.interfaces import AudioEncoder
from letstalk_rt.models.audio_encoder.lip_reader import LipReader, LipReaderState
from letstalk_rt.models.audio_encoder.prosody import ProsodyReader, ProsodyState
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoderState
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import overwrite
from letstalk_rt.models.denoiser import PortraitState
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.models.face.gestures import NUM_NOISE, GestureState
from letstalk_rt.models.memory import MemoryBank, TemporalCache
from letstalk_rt.models.motion.code import NUM_STYLE
from letstalk_rt.models.motion.speech_encoder import SpeechEncoder, SpeechState
from letstalk_rt.models.sampler import NoiseState, timesteps
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.portrait.eye_compositor import EyeCompositor
from letstalk_rt.portrait.eyelid_compositor import EyelidCompositor
from letstalk_rt.portrait.mouth_compositor import MouthCompositor
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, Portrait

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
class GestureSession:
    """What the pipeline remembers of the gestures of one session.

    Attributes:
        prosody: state of the prosody reader.
        silence: state of the prosody reader after long silence; shared and never written.
        motion: state of the gesture network.
        noise: random number generator of the gestures.
    """

    prosody: ProsodyState
    silence: ProsodyState
    motion: GestureState
    noise: NoiseState


@dataclass
class SessionState:
    """Everything that the pipeline remembers of one session.

    What depends on the portrait is only read, and replaced by `change_portrait`; audio and memory
    are written in place, so their tensor addresses never change.

    Attributes:
        audio: state of the audio encoder.
        silence: state of the audio encoder after long silence; shared and never written.
        lips: state of the lip reader, if the model has one.
        lip_silence: state of the lip reader after long silence; shared and never written.
        gestures: gestures of the session, if the model has them.
        memory: memory bank of motion: the anchor and the last clean latents.
        cache: keys and values of the memory bank, if the denoiser caches them.
        features: portrait features, for the decoder.
        portrait: portrait state, for the denoiser.
        compositor: puts the face back into the canvas.
        mouths: inpaints open mouths in composited frames; None for a model without mouth painter.
        eyes: shows the eyes of composited frames as wanted, or closes them alone if the model has
            an eyelid painter; None for a model with neither, where the compositor closes them.
        noise: random number generator of the sampler's noise.
        motion_control: changes the motion that is shown, and schedules blinks.
        times: timesteps of the sampler.
        lookahead_frames: how many frames the video is behind the audio.
        player: shows the footage of a portrait that is a film; otherwise None.
        quality: what is computed for each frame.
        steering: moves the face in the next window; None without a camera.
        motion: the motion of the whole face, if the model has a motion denoiser.
    """

    audio: AudioEncoderState | Wav2VecEncoderState
    silence: AudioEncoderState | Wav2VecEncoderState
    lips: LipReaderState | None
    lip_silence: LipReaderState | None
    gestures: GestureSession | None
    memory: MemoryBank
    cache: TemporalCache
    features: Any
    portrait: PortraitState
    compositor: Compositor
    mouths: MouthCompositor | None
    eyes: EyeCompositor | EyelidCompositor | None
    noise: NoiseState
    motion_control: MotionController
    times: list[float]
    lookahead_frames: int
    player: FootagePlayer | None
    quality: QualityState = field(default_factory=QualityState)
    steering: Steering | None = None
    motion: MotionState | None = None

    @property
    def batch_key(self) -> BatchKey:
        """The key that sessions must share to run in one batch."""
        moves = self.player is not None
        return BatchKey(len(self.times), self.lookahead_frames, moves)

    def drive(self, window: DriveWindow) -> None:
        """Let a camera move the face in the next frames."""
        control = self.motion_control if self.motion is None else self.motion.control
        control.drive(window)

    def take_steering(self) -> Steering | None:
        """Return what moves the face in the next window, which holds for that one only."""
        steering, self.steering = self.steering, None
        return steering

    def silence_audio(self) -> None:
        """Forget all past audio, as after long silence."""
        overwrite(self.audio, self.silence)
        if self.lips is not None:
            overwrite(self.lips, self.lip_silence)
        if self.gestures is not None:
            overwrite(self.gestures.prosody, self.gestures.silence)
        if self.motion is not None:
            self.motion.silence_audio()

    @torch.inference_mode()
    def reset(self) -> None:
        """Return to the initial state: silence before, the face at rest as in the portrait."""
        self.silence_audio()
        self.memory.reset()
        self.cache.reset()
        self.noise.reset()
        if self.gestures is not None:
            self.gestures.motion.reset()
            self.gestures.noise.reset()
        self.motion_control.reset()
        if self.motion is not None:
            self.motion.reset()
        if self.player is not None:
            self.player.reset()
        self.quality, self.steering = QualityState(), None


class StateFactory:
    """Creates the states of sessions, with all computation that is done once per portrait.

    Args:
        model: in eval mode, on its device and in its number formats.
        steps: default number of sampling steps per window.
    """

    def __init__(self, model: AvatarModel, *, steps: int) -> None:
        self._model, self._steps = model, steps
        self._silence = self._silent_state(model.audio)
        self._lip_silence = None if model.lips is None else self._silent_state(model.lips)
        motion, gestures = model.motion, model.gestures
        self._speech_silence: SpeechState | None = (
            None if motion is None else self._silent_state(motion.speech)
        )
        self._prosody_silence: ProsodyState | None = (
            None if gestures is None else self._silent_state(gestures.prosody)
        )

    @torch.inference_mode()
    def create(self, portrait: Portrait, options: StateOptions) -> SessionState:
        """Create the state of a session.

        Raises:
            PortraitError: `portrait` is not prepared for this model.
            ConfigError: `lookahead_frames` is out of range.
        """
        model, device = self._model, self._device
        features, compositor = self._describe(portrait), self._compositor(portrait)
        shape = model.autoencoder.latent_shape
        at_rest = torch.zeros(1, *shape, device=device)
        portrait_state = model.denoiser.portrait_state(model.normalized_portrait(features.latent))
        return SessionState(
            audio=copy.deepcopy(self._silence),
            silence=self._silence,
            lips=copy.deepcopy(self._lip_silence),
            lip_silence=self._lip_silence,
            gestures=self._gestures(options),
            memory=MemoryBank.anchored(at_rest, model.denoiser.config.memory),
            cache=model.denoiser.init_cache(at_rest),
            features=features,
            portrait=portrait_state,
            compositor=compositor,
            mouths=self._mouth_compositor(compositor, features, options.seed),
            eyes=self._eye_compositor(compositor, features),
            noise=NoiseState(options.seed, torch.zeros(1, *shape)),
            motion_control=MotionController(options.motion, model, features, options.seed),
            times=timesteps(self._steps if options.steps is None else options.steps),
            lookahead_frames=_lookahead(options, model.audio.lookahead_frames),
            player=self._player(portrait, options.motion.expressiveness, options.seed),
            motion=self._motion(options, features),
        )

    @torch.inference_mode()
    def change_portrait(self, state: SessionState, portrait: Portrait) -> None:
        """Change the portrait from the next window on; the motion continues.

        Raises:
            PortraitError: `portrait` is not prepared for this model; nothing has changed.
        """
        features, model = self._describe(portrait), self._model
        expressiveness, seed = state.motion_control.options.expressiveness, state.noise.seed
        state.player = self._player(portrait, expressiveness, seed)
        state.compositor = self._compositor(portrait)
        state.mouths = self._mouth_compositor(state.compositor, features, state.noise.seed)
        state.eyes = self._eye_compositor(state.compositor, features)
        state.portrait = model.denoiser.portrait_state(model.normalized_portrait(features.latent))
        state.motion_control.set_portrait(features)
        if state.motion is not None:
            state.motion.control.set_portrait(features)
        state.features = features
        state.quality = QualityState(state.quality.quality)  # no image of the old size is repeated

    def _player(self, portrait: Portrait, expressiveness: float, seed: int) -> FootagePlayer | None:
        if portrait.footage is None:
            return None
        return FootagePlayer(self._model, portrait.footage, expressiveness, seed)

    def _gestures(self, options: StateOptions) -> GestureSession | None:
        gestures, silence = self._model.gestures, self._prosody_silence
        if gestures is None or silence is None:
            return None
        return GestureSession(
            prosody=copy.deepcopy(silence),
            silence=silence,
            motion=gestures.init_state(1, options.motion.blinks_per_min),
            noise=NoiseState(options.seed, torch.zeros(1, NUM_NOISE)),
        )

    def _motion(self, options: StateOptions, features: Any) -> MotionState | None:
        denoiser, silence = self._model.motion, self._speech_silence
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
        painter = self._model.mouth_painter
        if painter is None:
            return None
        points = compositor.to_canvas(features.points)
        return MouthCompositor(painter, compositor.canvas, points, seed)

    def _eye_compositor(
        self, compositor: Compositor, features: Any
    ) -> EyeCompositor | EyelidCompositor | None:
        model = self._model
        if model.eye_painter is not None:
            points = compositor.to_canvas(features.points)
            return EyeCompositor(model.eye_painter, compositor.canvas, points, features.points)
        if model.eyelid_painter is not None:
            points = compositor.to_canvas(features.points)
            return EyelidCompositor(model.eyelid_painter, compositor.canvas, points)
        return None

    @torch.inference_mode()
    def _silent_state(
        self, encoder: AudioEncoder | LipReader | ProsodyReader | SpeechEncoder
    ) -> Any:
        """Create the state of an encoder after long silence, which an initial state is not."""
        state = encoder.init_state(1)
        encoder(torch.zeros(1, SETTLE_SAMPLES, device=self._device), state)
        return state


def _lookahead(options: StateOptions, most: int) -> int:
    """Return the look-ahead in frames: the one of the options, or the model's own."""
    value = most if options.lookahead_frames is None else options.lookahead_frames
    if not 0 <= value <= most:
        raise ConfigError(f"lookahead_frames must be from 0 to {most}, got {value}")
    return value
