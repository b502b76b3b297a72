"""All networks of one avatar model, and the units its denoiser works in.

The denoiser sees motion: the latent of a frame minus the latent of the portrait, scaled to unit
variance. So a new face starts from its own portrait and identity need not be generated.
"""

import torch
from torch import Tensor, nn

from letstalk_rt.audio.encoder import CausalAudioEncoder
from letstalk_rt.models.autoencoder import LATENT_SHAPE, ReferenceAutoencoder
from letstalk_rt.models.finder import FaceDetector, FaceFinder
from letstalk_rt.models.presets import Preset
from letstalk_rt.models.transformer import Denoiser


class AvatarModel(nn.Module):
    """Autoencoder, audio encoder, denoiser and face detector of one preset.

    Args:
        preset: shapes of all parts.
    """

    latent_mean: Tensor
    latent_scale: Tensor
    motion_scale: Tensor

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.autoencoder = ReferenceAutoencoder(preset.autoencoder)
        self.audio = CausalAudioEncoder(preset.audio)
        self.denoiser = Denoiser(preset.denoiser)
        self.detector = FaceDetector()
        channels = LATENT_SHAPE[0]
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_scale", torch.ones(channels, 1, 1))
        self.register_buffer("motion_scale", torch.ones(channels, 1, 1))

    def finder(self) -> FaceFinder:
        """Give what finds faces in pictures."""
        return FaceFinder(self.detector, self.autoencoder)

    def to_motion(self, latents: Tensor, portrait: Tensor) -> Tensor:
        """Turn latents `(B, T, C, h, w)` into motion relative to portraits `(B, C, h, w)`."""
        return (latents - portrait[:, None]) / self.motion_scale

    def to_latents(self, motion: Tensor, portrait: Tensor) -> Tensor:
        """Undo `to_motion`."""
        return motion.float() * self.motion_scale + portrait[:, None]

    def normalized_portrait(self, portrait: Tensor) -> Tensor:
        """Scale portrait latents `(B, C, h, w)` to unit variance, as the denoiser takes them."""
        return (portrait - self.latent_mean) / self.latent_scale
