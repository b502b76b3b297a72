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
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoder, Wav2VecEncoderConfig
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.autoencoder.interfaces import (
    Autoencoder,
    EncodedPortrait,
    LandmarkAutoencoder,
)
from letstalk_rt.models.autoencoder.networks import AutoencoderConfig
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.denoiser import Denoiser, PortraitState, guided_velocity
from letstalk_rt.models.face.detector import FaceDetector, FaceFinder
from letstalk_rt.models.face.head_motion import HeadMotion
from letstalk_rt.models.face.lip_refiner import refined_lips
from letstalk_rt.models.memory import TemporalCache
from letstalk_rt.models.parts import (
    DETECTOR,
    HEAD,
    LIP_REFINER,
    MOTION,
    PARTS,
    ModuleT_co,
    Part,
    with_parts,
)
from letstalk_rt.models.presets import Preset
from letstalk_rt.models.sampler import sample, sample_mean


@dataclass(frozen=True)
class FaceModules:
    """The modules of a model whose latents encode landmarks.

    Attributes:
        autoencoder: the autoencoder, which decodes landmarks from latents.
        detector: the face detector.
        head: what moves with a head.
    """

    autoencoder: LandmarkAutoencoder
    detector: FaceDetector
    head: HeadMotion


class AvatarModel(nn.Module):
    """All networks of one preset, from the audio encoder to the painters.

    A model with the paper's autoencoder has no landmarks, so none of the `PARTS`.

    Args:
        preset: shapes of all parts.

    Raises:
        DependencyError: the preset requires a package that is not installed.
        ConfigError: the shapes of the preset's parts do not match.
    """

    autoencoder: Autoencoder
    audio: AudioEncoder
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
        _check_parts(preset, has_landmarks=self.autoencoder.landmarks is not None)
        for part in PARTS:
            if part.name in preset.parts:
                owner, _, name = part.name.rpartition(".")
                setattr(self.get_submodule(owner), name, part.build(preset))
        channels = self.autoencoder.latent_shape[0]
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_scale", torch.ones(channels, 1, 1))
        self.register_buffer("motion_scale", torch.ones(channels, 1, 1))
        # The guidance that the denoiser was distilled with: one call then yields the guided result.
        self.register_buffer("folded_guidance", torch.ones(()))

    def get(self, part: Part[ModuleT_co]) -> ModuleT_co | None:
        """Return a part; None if the preset does not name it: see `Part.without`."""
        if part.name not in self.preset.parts:
            return None
        return self.get_submodule(part.name)  # type: ignore[return-value]

    def part(self, part: Part[ModuleT_co]) -> ModuleT_co:
        """Return a part.

        Raises:
            ConfigError: the preset does not name it.
        """
        found = self.get(part)
        if found is None:
            raise ConfigError(
                f"preset {self.preset.name!r} has no {part.name!r} and so {part.without}; use the "
                "preset 'tiny', or train that part"
            )
        return found

    @property
    def face(self) -> FaceModules | None:
        """The modules that need landmarks; None if the latents do not encode them."""
        landmarks, detector, head = self.autoencoder.landmarks, self.get(DETECTOR), self.get(HEAD)
        if landmarks is None or detector is None or head is None:
            return None
        return FaceModules(landmarks, detector, head)

    def encode_portrait(self, image: Tensor) -> EncodedPortrait:
        """Compute the features of portraits `(B, 3, S, S)` in [-1, 1]; once per portrait."""
        landmarks, refiner = self.autoencoder.landmarks, self.get(LIP_REFINER)
        if landmarks is None or refiner is None:
            return self.autoencoder.encode_portrait(image)
        latent = landmarks.encode(image[:, None])[:, 0]
        points = landmarks.decode_landmarks(latent)
        moved = refined_lips(refiner, image, points) - points
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


def with_part(model: AvatarModel, part: Part[nn.Module], module: nn.Module) -> AvatarModel:
    """Return a copy of a model with this part, in the place of its own, ready for inference."""
    preset, prefix = model.preset, f"{part.name}."
    config = getattr(module, "config", None)
    if config is not None and hasattr(preset, part.name):
        preset = replace(preset, **{part.name: config})
    out = AvatarModel(with_parts(preset, {*preset.parts, part.name}))
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith(prefix)}
    weights |= {prefix + key: value for key, value in module.state_dict().items()}
    out.load_state_dict(weights)
    return out.eval().requires_grad_(False)


def _check_parts(preset: Preset, *, has_landmarks: bool) -> None:
    known = {part.name for part in PARTS}
    if unknown := sorted(set(preset.parts) - known):
        raise ConfigError(f"preset {preset.name!r}: there is no part {unknown[0]!r}")
    needy = [part.name for part in PARTS if part.needs_landmarks and part.name in preset.parts]
    if needy and not has_landmarks:
        raise ConfigError(
            f"preset {preset.name!r}: the part {needy[0]!r} needs an autoencoder whose "
            "latents hold landmarks; leave it out"
        )
    config, wanted = preset.motion, (preset.audio.lookahead_ms, preset.denoiser.window)
    if MOTION.name in preset.parts and (config.speech.lookahead_ms, config.window) != wanted:
        raise ConfigError(
            f"preset {preset.name!r}: a motion denoiser needs the audio encoder's look-ahead of "
            f"{wanted[0]} ms and a window of {wanted[1]} frames"
        )


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
