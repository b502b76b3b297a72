"""The reference-guided deep-compression autoencoder.

One frame becomes a latent of `(24, 4, 4)`. The decoder is given the portrait: the latent says
where the face landmarks are and how their surroundings moved, the portrait is warped there by a
fixed formula, and a small network corrects the flow and paints what no warp can know (the open
mouth, closed eyes, what the head uncovers). So the latent carries motion only. All portrait work is
done once per portrait.

Source: reference guidance: RefVAE, arXiv:2606.01620 (there by attention, here by a warp).
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder import background_flow
from letstalk_rt.models.autoencoder.latents import (
    FACE_SHAPE,
    FACE_SIZE,
    FLOW_SIZE,
    IMAGE_SIZE,
    LATENT_SHAPE,
    LATENT_SIZE,
    DecodedLayers,
    DecoderInputs,
    PortraitFeatures,
    background_part,
    face_part,
    without_background_flow,
)
from letstalk_rt.models.autoencoder.networks import (
    AutoencoderConfig,
    Decoder,
    Encoder,
    ReferenceEncoder,
)
from letstalk_rt.models.geometry.landmark_warp import face_flow
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS

LANDMARK_GAIN = 4.0
"""Size at which landmarks begin in the latent: it gives their part about unit variance."""


class ReferenceAutoencoder(nn.Module):
    """256x256 frames to latents of `(24, 4, 4)` and back, guided by a portrait.

    Args:
        config: widths.
    """

    latent_shape = LATENT_SHAPE
    image_size = IMAGE_SIZE
    mean_points: Tensor

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.encoder = Encoder(self.config.encoder)
        self.reference = ReferenceEncoder(self.config.reference)
        self.decoder = Decoder(self.config)
        self.read_points = nn.Linear(FACE_SIZE, 2 * NUM_LANDMARKS, bias=False)
        with torch.no_grad():  # the read-out begins as what undoes the writing
            write = nn.init.orthogonal_(self.encoder.write_points.weight).mul_(LANDMARK_GAIN)
            self.read_points.weight.copy_(write.T / LANDMARK_GAIN**2)
        self.register_buffer("mean_points", torch.zeros(NUM_LANDMARKS, 2))

    @property
    def landmarks(self) -> Self:
        """This autoencoder: its latents carry landmarks."""
        return self

    @torch.no_grad()
    def set_mean_landmarks(self, mean_points: Tensor, spread: float = 0.12) -> None:
        """Tell an untrained model where landmarks `(L, 2)` are on average, and how they vary."""
        self.mean_points.copy_(mean_points)
        axis = (torch.arange(32) + 0.5) / 16 - 1
        distance2 = (axis - mean_points[..., None]) ** 2 / (2 * spread**2)
        self.encoder.heat_prior.copy_(-distance2[:, 1, :, None] - distance2[:, 0, None, :])

    def encode(self, x: Tensor, portrait: PortraitFeatures | None = None) -> Tensor:
        """Encode `(B, T, 3, 256, 256)` in [-1, 1] to `(B, T, 24, 4, 4)`.

        Args:
            x: frames.
            portrait: one item for each of B, that the surroundings are compared with; without it
                they are taken to be at rest, as a portrait's own are.
        """
        latents = self.encode_with_heatmaps(x)[0]
        if portrait is None:
            return latents
        flat = self.with_background_flow(
            latents.flatten(0, 1), x.flatten(0, 1), portrait.repeat(x.shape[1])
        )
        encoded: Tensor = flat.unflatten(0, x.shape[:2])
        return encoded

    def encode_with_heatmaps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, with the heat maps' logits `(B, T, L, 32, 32)` beside the latents."""
        assert x.ndim == 5 and x.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE), x.shape
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        faces, heat = self.encoder(flat, self.mean_points)
        latents = without_background_flow(faces)
        return latents.unflatten(0, x.shape[:2]), heat.unflatten(0, x.shape[:2])

    def with_background_flow(
        self,
        latents: Tensor,
        frames: Tensor,
        portrait: PortraitFeatures,
        coarse: Tensor | None = None,
    ) -> Tensor:
        """Add what only a comparison with the portrait shows to latents `(B, 24, 4, 4)`.

        Args:
            latents: of the frames; their surroundings are replaced.
            frames: `(B, 3, 256, 256)`.
            portrait: one item per frame.
            coarse: flow by landmarks, in place of that read off the latents.
        """
        points = self.decode_landmarks(latents.detach())
        with torch.autocast(frames.device.type, enabled=False):
            if coarse is None:
                coarse = face_flow(portrait.points.float(), points)
            moved = background_flow.measure_background_flow(
                frames, portrait.image, points, coarse.detach()
            )
        here = moved + background_part(portrait.latent)
        return torch.cat([face_part(latents), here.to(latents.dtype)], 1)

    def decode_landmarks(self, latents: Tensor) -> Tensor:
        """Read the face landmarks off latents `(..., 24, 4, 4)`: `(..., L, 2)` in [-1, 1].

        The read-out is linear, so landmarks are a handle on the latent: see `training.flow_loss`.
        """
        flat = latents[..., : FACE_SHAPE[0], :, :].flatten(-3)
        offset = F.linear(flat.float(), self.read_points.weight.float())
        placed: Tensor = self.mean_points + offset.unflatten(-1, (NUM_LANDMARKS, 2))
        return placed

    @property
    def landmark_matrix(self) -> Tensor:
        """The read-out of landmarks from a whole flat latent, `(2 L, 384)`."""
        return F.pad(self.read_points.weight.float(), (0, LATENT_SIZE - FACE_SIZE))

    def encode_portrait(self, picture: Tensor) -> PortraitFeatures:
        """Do all the work that is done once per portrait, `(B, 3, 256, 256)` in [-1, 1]."""
        assert picture.ndim == 4 and picture.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE), picture.shape
        return self.portrait_features(picture, self.encode(picture[:, None])[:, 0])

    def portrait_features(self, picture: Tensor, latent: Tensor) -> PortraitFeatures:
        """As `encode_portrait`, for a portrait whose latent `(B, C, h, w)` is known already."""
        features = self.reference(picture.contiguous(memory_format=torch.channels_last))
        return PortraitFeatures(picture, latent, self.decode_landmarks(latent), features)

    def prepare_decoder(
        self, latents: Tensor, portrait: PortraitFeatures, coarse: Tensor | None = None
    ) -> DecoderInputs:
        """Prepare to decode `(B, C, h, w)`; one portrait item per latent.

        `coarse` overrides the landmarks' flow read off the latents (training does so at its start).
        """
        points = self.decode_landmarks(latents)
        moved = background_part(latents) - background_part(portrait.latent)
        with torch.autocast(latents.device.type, enabled=False):
            if coarse is None:
                coarse = face_flow(portrait.points.float(), points)
            coarse = coarse + background_flow.flow_from_latent(moved, points, FLOW_SIZE)
        return self.decoder.prepare(latents, points, portrait.latent, coarse)

    def decode_latents(
        self, latents: Tensor, portrait: PortraitFeatures, coarse: Tensor | None = None
    ) -> DecodedLayers:
        """Decode `(B, C, h, w)` and keep the parts; arguments as of `prepare_decoder`."""
        return self.run_decoder(self.prepare_decoder(latents, portrait, coarse), portrait)

    def run_decoder(self, layout: DecoderInputs, portrait: PortraitFeatures) -> DecodedLayers:
        """Decode B frames that are laid out; one portrait item for each."""
        painted: DecodedLayers = self.decoder(layout, portrait)
        return painted

    def decode_layers(self, latents: Tensor, portrait: PortraitFeatures) -> DecodedLayers:
        """Decode `(B, T, 24, 4, 4)` to the layers of B times T frames, one portrait per item."""
        assert latents.ndim == 5 and latents.shape[2:] == LATENT_SHAPE, latents.shape
        count = latents.shape[1]
        decoded = self.decode_latents(latents.flatten(0, 1), portrait.repeat(count))
        return decoded.map(lambda layer: layer.unflatten(0, (-1, count)))

    def decode(self, latents: Tensor, portrait: PortraitFeatures) -> Tensor:
        """Decode `(B, T, 24, 4, 4)` to `(B, T, 3, 256, 256)` in [-1, 1], one portrait per item."""
        return self.decode_layers(latents, portrait).frames.clamp(-1, 1)

    def without_background_flow(self, latents: Tensor) -> Tensor:
        """Return latents or noise `(..., 24, 4, 4)` whose surroundings are as in a portrait."""
        return without_background_flow(latents)

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Let the decoder compute in another number format; the rest stays in float32."""
        self.decoder.to(dtype)

    def quantizable_parts(self) -> Sequence[nn.Module]:
        """Return the parts of the decoder that may compute in 8-bit integers."""
        return self.decoder.mix, self.decoder.blocks, self.decoder.paint
