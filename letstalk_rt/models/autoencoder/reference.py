"""The reference-guided deep-compression autoencoder.

One frame becomes a latent of `(24, 4, 4)`. The decoder is guided by the portrait: the latent
encodes the landmarks and the background flow, the portrait is warped along them by a fixed formula,
and a small network corrects the flow and inpaints what a warp cannot produce (the inside of the
mouth, closed eyes, disocclusions). So the latent encodes motion only. The portrait is encoded once.

Source: reference guidance: RefVAE, arXiv:2606.01620 (by attention there, by a warp here).
"""

import copy
from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder import background_flow
from letstalk_rt.models.autoencoder.blocks import for_inference
from letstalk_rt.models.autoencoder.latents import (
    FACE_SHAPE,
    FACE_SIZE,
    FLOW_SIZE,
    IMAGE_SIZE,
    LATENT_SHAPE,
    LATENT_SIZE,
    DecodedLayers,
    DecoderInputs,
    FramePart,
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
from letstalk_rt.models.geometry.landmark_warp import face_flow, warp
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS

LANDMARK_GAIN = 4.0
"""Initial scale of landmarks in the latent, which gives their part about unit variance."""


class ReferenceAutoencoder(nn.Module):
    """An autoencoder of 256x256 frames with latents of `(24, 4, 4)`, guided by a portrait.

    Args:
        config: widths; the defaults when None.
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
        with torch.no_grad():  # the read-out is initialised as the inverse of `write_points`
            write = nn.init.orthogonal_(self.encoder.write_points.weight).mul_(LANDMARK_GAIN)
            self.read_points.weight.copy_(write.T / LANDMARK_GAIN**2)
        self.register_buffer("mean_points", torch.zeros(NUM_LANDMARKS, 2))

    @property
    def landmarks(self) -> Self:
        """This autoencoder: its latents encode landmarks."""
        return self

    @torch.no_grad()
    def set_mean_landmarks(self, mean_points: Tensor, spread: float = 0.12) -> None:
        """Initialise an untrained model with mean landmarks `(L, 2)` and their deviation."""
        self.mean_points.copy_(mean_points)
        axis = (torch.arange(32) + 0.5) / 16 - 1
        distance2 = (axis - mean_points[..., None]) ** 2 / (2 * spread**2)
        self.encoder.heat_prior.copy_(-distance2[:, 1, :, None] - distance2[:, 0, None, :])

    def encode(self, x: Tensor, portrait: PortraitFeatures | None = None) -> Tensor:
        """Encode `(B, T, 3, 256, 256)` in [-1, 1] to `(B, T, 24, 4, 4)`.

        Args:
            x: frames.
            portrait: one portrait per item, from which the background flow is measured; it is zero
                when None, as in a portrait latent.
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
        """Return latents and the logits of the landmarks' heat maps, `(B, T, L, 32, 32)`."""
        assert x.ndim == 5 and x.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE), x.shape
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        faces, heat = self.encoder(flat, self.mean_points)
        latents = without_background_flow(faces)
        return latents.unflatten(0, x.shape[:2]), heat.unflatten(0, x.shape[:2])

    def encoder_in(self, dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return a function as `encode_with_heatmaps`, of frames `(B, 3, 256, 256)`, in a format.

        In bfloat16 it takes half the time of float32; landmarks differ by 0.04 px (docs/log.md).
        """
        encoder = for_inference(copy.deepcopy(self.encoder)).to(dtype)

        def encode(frames: Tensor) -> tuple[Tensor, Tensor]:
            frames = frames.to(dtype, memory_format=torch.channels_last)
            faces, heat = encoder(frames, self.mean_points)
            return without_background_flow(faces), heat

        return encode

    def with_background_flow(
        self,
        latents: Tensor,
        frames: Tensor,
        portrait: PortraitFeatures,
        coarse: Tensor | None = None,
    ) -> Tensor:
        """Return latents `(B, 24, 4, 4)` with the background flow from portrait to frame.

        Args:
            latents: latents of the frames; their background part is replaced.
            frames: `(B, 3, 256, 256)`.
            portrait: one portrait per frame.
            coarse: flow by landmarks; computed from the latents when None.
        """
        points = self.decode_landmarks(latents.detach())
        with torch.autocast(frames.device.type, enabled=False):
            if coarse is None:
                coarse = face_flow(portrait.points.float(), points)
            measured = background_flow.measure_background_flow(
                frames, portrait.image, points, coarse.detach()
            )
        background = measured + background_part(portrait.latent)
        return torch.cat([face_part(latents), background.to(latents.dtype)], 1)

    def decode_landmarks(self, latents: Tensor) -> Tensor:
        """Return the landmarks that latents `(..., 24, 4, 4)` encode, `(..., L, 2)` in [-1, 1].

        The map is linear, so a loss on landmarks also trains what makes the latents.
        """
        flat = latents[..., : FACE_SHAPE[0], :, :].flatten(-3)
        offset = F.linear(flat.float(), self.read_points.weight.float())
        points: Tensor = self.mean_points + offset.unflatten(-1, (NUM_LANDMARKS, 2))
        return points

    @property
    def landmark_matrix(self) -> Tensor:
        """The linear map from a flattened latent to landmarks, `(2 L, 384)`."""
        return F.pad(self.read_points.weight.float(), (0, LATENT_SIZE - FACE_SIZE))

    def encode_portrait(self, image: Tensor) -> PortraitFeatures:
        """Compute the features of portraits `(B, 3, 256, 256)` in [-1, 1]; once per portrait."""
        assert image.ndim == 4 and image.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE), image.shape
        return self.portrait_features(image, self.encode(image[:, None])[:, 0])

    def portrait_features(self, image: Tensor, latent: Tensor) -> PortraitFeatures:
        """Compute the features of portraits whose latents `(B, C, h, w)` are known."""
        features = self.reference(image.contiguous(memory_format=torch.channels_last))
        return PortraitFeatures(image, latent, self.decode_landmarks(latent), features)

    def prepare_decoder(
        self, latents: Tensor, portrait: PortraitFeatures, coarse: Tensor | None = None
    ) -> DecoderInputs:
        """Compute the decoder's inputs for latents `(B, C, h, w)`, one portrait per latent.

        `coarse` replaces the flow by the latents' landmarks, as training does at its start.
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
        """Decode `(B, C, h, w)` to layers; for the arguments see `prepare_decoder`."""
        return self.run_decoder(self.prepare_decoder(latents, portrait, coarse), portrait)

    def run_decoder(
        self, inputs: DecoderInputs, portrait: PortraitFeatures, part: FramePart | None = None
    ) -> DecodedLayers:
        """Decode B frames, or a part of them, from the result of `prepare_decoder`.

        Args:
            inputs: from `prepare_decoder`.
            portrait: one portrait per frame.
            part: what is decoded of each frame; all when None.
        """
        layers: DecodedLayers = self.decoder(inputs, portrait, part)
        return layers

    def follow_landmarks(
        self,
        inputs: DecoderInputs,
        portrait: PortraitFeatures,
        earlier: DecoderInputs,
        decoded: DecodedLayers,
    ) -> DecodedLayers:
        """Return the layers of B frames from those of earlier ones, without running the decoder.

        The flow is that of their own landmarks with the earlier correction; the inpainting is the
        earlier one.

        Args:
            inputs: from `prepare_decoder`.
            portrait: one portrait per frame.
            earlier: inputs of the earlier frames, one per frame.
            decoded: their layers.
        """
        flow = decoded.flow + inputs.flow - earlier.flow
        warped = warp(portrait.image.float(), flow, "bicubic")
        return DecodedLayers(warped, decoded.mask, decoded.change, flow, inputs.points)

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
        """Return latents or noise `(..., 24, 4, 4)` with zero background flow, as in a portrait."""
        return without_background_flow(latents)

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Set the number format of the decoder; the other parts stay in float32."""
        self.decoder.to(dtype)

    def quantizable_parts(self) -> Sequence[nn.Module]:
        """Return the parts of the decoder that may run in 8-bit integers."""
        return self.decoder.mix, self.decoder.blocks, self.decoder.paint
