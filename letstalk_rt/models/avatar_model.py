"""All networks of one avatar model, and the scaling of the denoiser's inputs.

The denoiser generates motion: the latent of a frame minus the portrait latent, scaled to unit
variance. So a new face starts from its own portrait, and identity need not be generated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.audio_encoder.causal import CausalAudioEncoder
from letstalk_rt.models.audio_encoder.interfaces import AudioEncoder
from letstalk_rt.models.audio_encoder.lip_reader import LipReader
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoder, Wav2VecEncoderConfig
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.autoencoder.eyelid_painter import EyelidPainter
from letstalk_rt.models.autoencoder.interfaces import (
    Autoencoder,
    EncodedPortrait,
    LandmarkAutoencoder,
)
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter
from letstalk_rt.models.autoencoder.networks import AutoencoderConfig
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.denoiser import Denoiser, PortraitState, guided_velocity
from letstalk_rt.models.face.detector import FaceDetector, FaceFinder
from letstalk_rt.models.face.face_reader import FaceReader
from letstalk_rt.models.face.gestures import Gestures
from letstalk_rt.models.face.head_motion import HeadMotion
from letstalk_rt.models.face.lip_motion import LipMotion
from letstalk_rt.models.face.lip_refiner import LipRefiner, refined_lips
from letstalk_rt.models.face.lip_values import NUM_LIP_VALUES
from letstalk_rt.models.face.pose_reader import PoseReader
from letstalk_rt.models.face.spline import SPAN
from letstalk_rt.models.landmark_condition import LandmarkBranch
from letstalk_rt.models.memory import TemporalCache
from letstalk_rt.models.motion.denoiser import MotionDenoiser
from letstalk_rt.models.presets import Preset, with_landmark_condition
from letstalk_rt.models.sampler import sample, sample_mean


@dataclass(frozen=True)
class FaceModules:
    """The modules of a model whose latents encode landmarks.

    Attributes:
        autoencoder: the autoencoder, which decodes landmarks from latents.
        detector: the face detector.
        head: the process of head motion.
    """

    autoencoder: LandmarkAutoencoder
    detector: FaceDetector
    head: HeadMotion


class AvatarModel(nn.Module):
    """All networks of one preset, from the audio encoder to the mouth painter.

    A model with the paper's autoencoder has no landmarks, so no face detector, no head motion, no
    gestures and no mouth painter.

    Args:
        preset: shapes of all parts.

    Raises:
        DependencyError: the preset requires a package that is not installed.
        ConfigError: the shapes of the preset's parts do not match.
    """

    autoencoder: Autoencoder
    audio: AudioEncoder
    detector: FaceDetector | None
    head: HeadMotion | None
    lips: LipReader | None
    lip_motion: LipMotion | None
    mouth_painter: MouthPainter | None
    gestures: Gestures | None
    face_reader: FaceReader | None
    lip_refiner: LipRefiner | None
    eyelid_painter: EyelidPainter | None
    eye_painter: EyePainter | None
    pose_reader: PoseReader | None
    motion: MotionDenoiser | None
    latent_mean: Tensor
    latent_scale: Tensor
    motion_scale: Tensor
    folded_guidance: Tensor

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.autoencoder = _make_autoencoder(preset)
        self.audio = _make_audio(preset)
        self.denoiser = Denoiser(preset.denoiser)
        has_landmarks = self.autoencoder.landmarks is not None
        self.detector = FaceDetector() if has_landmarks else None
        self.head = HeadMotion() if has_landmarks else None
        self.lips = _make_lips(preset, has_landmarks)
        self.lip_motion = None if self.lips is None else LipMotion()
        self.mouth_painter = _make_mouth_painter(preset)
        self.gestures = _make_gestures(preset, has_landmarks)
        self.face_reader = FaceReader() if preset.face_reader and has_landmarks else None
        self.lip_refiner = LipRefiner() if preset.lip_refiner and has_landmarks else None
        self.eyelid_painter = EyelidPainter() if preset.eyelid_painter and has_landmarks else None
        self.eye_painter = _make_eye_painter(preset, has_landmarks)
        self.pose_reader = PoseReader() if preset.pose_reader and has_landmarks else None
        self.motion = _make_motion(preset, has_landmarks)
        channels = self.autoencoder.latent_shape[0]
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_scale", torch.ones(channels, 1, 1))
        self.register_buffer("motion_scale", torch.ones(channels, 1, 1))
        # The guidance that the denoiser was distilled with: one call then yields the guided result.
        self.register_buffer("folded_guidance", torch.ones(()))

    @property
    def face(self) -> FaceModules | None:
        """The modules that need landmarks; None if the latents do not encode them."""
        landmarks = self.autoencoder.landmarks
        if landmarks is None or self.detector is None or self.head is None:
            return None
        return FaceModules(landmarks, self.detector, self.head)

    def encode_portrait(self, image: Tensor) -> EncodedPortrait:
        """Compute the features of portraits `(B, 3, S, S)` in [-1, 1]; once per portrait."""
        landmarks = self.autoencoder.landmarks
        if landmarks is None or self.lip_refiner is None:
            return self.autoencoder.encode_portrait(image)
        latent = landmarks.encode(image[:, None])[:, 0]
        points = landmarks.decode_landmarks(latent)
        moved = refined_lips(self.lip_refiner, image, points) - points
        nearest = torch.linalg.pinv(landmarks.landmark_matrix)  # landmarks of a latent are linear
        change = (moved.flatten(1).float() @ nearest.T).view(latent.shape)
        return landmarks.portrait_features(image, latent + change.to(latent.dtype))

    def face_finder(self, crop_px: int | None = None) -> FaceFinder:
        """Return the face finder of this model.

        Args:
            crop_px: side of the crops to animate, in pixels; the model's own when None.

        Raises:
            ConfigError: this model has no face detector; see `loading.face_finder_for`.
        """
        face = self.face
        if face is None:
            raise ConfigError(
                f"preset {self.preset.name!r} has no face detector; use that of the embedded model"
            )
        side = face.autoencoder.image_size if crop_px is None else crop_px
        return FaceFinder(face.detector, face.autoencoder, preset=self.preset.name, crop_px=side)

    @property
    def distilled_guidance(self) -> float:
        """The guidance that the denoiser was distilled with, for which one call is enough."""
        return float(self.folded_guidance)

    def sample_window(
        self,
        noise: Tensor,
        tokens: Tensor,
        portrait: PortraitState,
        cache: TemporalCache,
        times: Sequence[float],
        guidance: float,
        *,
        predict: Callable[..., Tensor] | None = None,
        plain: bool = False,
    ) -> Tensor:
        """Sample the motion of a window from noise, with the sampler that fits the denoiser.

        Args:
            noise: `(B, N, C, h, w)`.
            tokens: audio tokens `(B, N, K, A)`.
            portrait: the portrait state, from `Denoiser.portrait_state`.
            cache: keys and values of memory.
            times: as returned by `timesteps`.
            guidance: weight of the audio against no audio.
            predict: see `guided_velocity`.
            plain: integrate velocities by Euler's method, even if the denoiser has a second time:
                for a flow that was not distilled, which knows neither mean velocities nor guidance
                as an input.

        Returns:
            The motion, of the shape of `noise`.
        """
        weight = guidance / self.distilled_guidance
        noise = self.without_background_noise(noise)

        def velocity(x: Tensor, t: float, end: float | None = None) -> Tensor:
            at = x.new_full(x.shape[:2], t)
            to = None if end is None else torch.full_like(at, end)
            return guided_velocity(
                self.denoiser, x, at, tokens, portrait, cache, weight, end=to, predict=predict
            )

        if self.denoiser.config.second_time and not plain:
            return sample_mean(velocity, noise, times)
        return sample(velocity, noise, times)

    def without_background_noise(self, noise: Tensor) -> Tensor:
        """Return noise `(B, N, C, h, w)` with zeros for the background flow, where latents have it.

        The background follows the face; motion that the face does not determine is not generated.
        """
        return self.autoencoder.without_background_flow(noise)

    def to_motion(self, latents: Tensor, portrait: Tensor) -> Tensor:
        """Convert latents `(B, T, C, h, w)` to motion relative to portraits `(B, C, h, w)`."""
        return (latents - portrait[:, None]) / self.motion_scale

    def to_latents(self, motion: Tensor, portrait: Tensor) -> Tensor:
        """Convert motion to latents, the inverse of `to_motion`."""
        return motion.float() * self.motion_scale + portrait[:, None]

    def normalized_portrait(self, portrait: Tensor) -> Tensor:
        """Scale portrait latents `(B, C, h, w)` to unit variance for the denoiser.

        The background flow of a portrait is zero.
        """
        scaled = (portrait - self.latent_mean) / self.latent_scale
        return self.autoencoder.without_background_flow(scaled)


def with_mouth_painter(model: AvatarModel, painter: MouthPainter) -> AvatarModel:
    """Return a copy of a model with this mouth painter, ready for inference."""
    preset = replace(model.preset, mouth_painter=painter.config)
    return _with_part(model, preset, "mouth_painter", painter)


def with_gestures(model: AvatarModel, gestures: Gestures) -> AvatarModel:
    """Return a copy of a model with these gestures, ready for inference."""
    preset = replace(model.preset, gestures=gestures.config)
    return _with_part(model, preset, "gestures", gestures)


def with_face_reader(model: AvatarModel, reader: FaceReader) -> AvatarModel:
    """Return a copy of a model with this face reader, ready for inference."""
    return _with_part(model, replace(model.preset, face_reader=True), "face_reader", reader)


def with_lip_refiner(model: AvatarModel, refiner: LipRefiner) -> AvatarModel:
    """Return a copy of a model with this lip refiner, ready for inference."""
    return _with_part(model, replace(model.preset, lip_refiner=True), "lip_refiner", refiner)


def with_eyelid_painter(model: AvatarModel, painter: EyelidPainter) -> AvatarModel:
    """Return a copy of a model with this eyelid painter, ready for inference."""
    return _with_part(model, replace(model.preset, eyelid_painter=True), "eyelid_painter", painter)


def with_eye_painter(model: AvatarModel, painter: EyePainter) -> AvatarModel:
    """Return a copy of a model with this eye painter, ready for inference."""
    preset = replace(model.preset, eye_painter=painter.config)
    return _with_part(model, preset, "eye_painter", painter)


def with_pose_reader(model: AvatarModel, reader: PoseReader) -> AvatarModel:
    """Return a copy of a model with this pose reader, ready for inference."""
    return _with_part(model, replace(model.preset, pose_reader=True), "pose_reader", reader)


def with_motion(model: AvatarModel, motion: MotionDenoiser) -> AvatarModel:
    """Return a copy of a model with this motion denoiser, ready for inference."""
    return _with_part(model, replace(model.preset, motion=motion.config), "motion", motion)


def with_landmark_branch(model: AvatarModel, branch: LandmarkBranch) -> AvatarModel:
    """Return a copy of a model whose denoiser has this landmark condition, ready for inference."""
    preset = with_landmark_condition(model.preset, has=True)
    return _with_part(model, preset, "denoiser.landmarks", branch)


def _with_part(model: AvatarModel, preset: Preset, name: str, part: nn.Module) -> AvatarModel:
    out = AvatarModel(preset)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith(f"{name}.")}
    weights |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    out.load_state_dict(weights)
    return out.eval().requires_grad_(False)


def _make_mouth_painter(preset: Preset) -> MouthPainter | None:
    if preset.mouth_painter is None:
        return None
    if not isinstance(preset.autoencoder, AutoencoderConfig):
        raise ConfigError(
            f"preset {preset.name!r}: a mouth painter needs landmarks, which this autoencoder "
            "does not encode"
        )
    return MouthPainter(preset.mouth_painter)


def _make_eye_painter(preset: Preset, has_landmarks: bool) -> EyePainter | None:
    if preset.eye_painter is None or not has_landmarks:
        return None
    return EyePainter(preset.eye_painter)


def _make_motion(preset: Preset, has_landmarks: bool) -> MotionDenoiser | None:
    config = preset.motion
    if config is None:
        return None
    wanted = preset.audio.lookahead_ms, preset.denoiser.window
    if not has_landmarks or (config.speech.lookahead_ms, config.window) != wanted:
        raise ConfigError(
            f"preset {preset.name!r}: a motion denoiser needs an autoencoder whose latents hold "
            f"landmarks, a look-ahead of {wanted[0]} ms and a window of {wanted[1]} frames; leave "
            "`motion` out"
        )
    return MotionDenoiser(config)


def _make_audio(preset: Preset) -> AudioEncoder:
    config = preset.audio
    if not isinstance(config, Wav2VecEncoderConfig):
        return CausalAudioEncoder(config)
    if preset.denoiser.window % config.stream.block_frames:
        raise ConfigError(
            f"preset {preset.name!r}: the window of {preset.denoiser.window} frames must be a "
            f"multiple of wav2vec 2.0's blocks of {config.stream.block_frames} frames"
        )
    return Wav2VecEncoder(config)


def _make_lips(preset: Preset, has_landmarks: bool) -> LipReader | None:
    if preset.lips is None:
        return None
    if not has_landmarks:
        raise ConfigError(
            f"preset {preset.name!r}: a lip reader needs an autoencoder whose latents hold "
            "landmarks; leave `lips` out"
        )
    config, lookahead_ms = preset.lips, preset.audio.lookahead_ms
    if config.values != NUM_LIP_VALUES or config.lookahead_ms != lookahead_ms:
        raise ConfigError(
            f"preset {preset.name!r}: the lip reader must predict {NUM_LIP_VALUES} values with the "
            f"audio encoder's look-ahead of {lookahead_ms} ms, got {config}"
        )
    return LipReader(config)


def _make_gestures(preset: Preset, has_landmarks: bool) -> Gestures | None:
    config = preset.gestures
    if config is None:
        return None
    if not has_landmarks or preset.denoiser.window != SPAN:
        raise ConfigError(
            f"preset {preset.name!r}: gestures need an autoencoder whose latents hold landmarks, "
            f"and a window of {SPAN} frames; leave `gestures` out"
        )
    if config.lookahead_ms != preset.audio.lookahead_ms:
        raise ConfigError(
            f"preset {preset.name!r}: gestures need the audio encoder's look-ahead of "
            f"{preset.audio.lookahead_ms} ms, got {config.lookahead_ms} ms"
        )
    return Gestures(config)


def _make_autoencoder(preset: Preset) -> Autoencoder:
    config = preset.autoencoder
    autoencoder: Autoencoder
    if isinstance(config, AutoencoderConfig):
        autoencoder = ReferenceAutoencoder(config)
    elif config.identity is not None:
        autoencoder = DCAutoencoder.of_identity(config.identity, config.image_size)
    else:
        autoencoder = DCAutoencoder.random(config.image_size)
    channels, height, width = autoencoder.latent_shape
    expected = (preset.denoiser.channels, preset.denoiser.side, preset.denoiser.side)
    if (channels, height, width) != expected:
        raise ConfigError(
            f"preset {preset.name!r}: the autoencoder's latents are {(channels, height, width)}, "
            f"the denoiser expects {expected}"
        )
    return autoencoder
