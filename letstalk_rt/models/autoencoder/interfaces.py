"""What may be asked of an autoencoder without knowing which one it is."""

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.latents import DecodedLayers, DecoderInputs, PortraitFeatures
from letstalk_rt.models.layers.network import Network

Frames: TypeAlias = Tensor | DecodedLayers
"""Decoded frames: `(..., 3, H, W)` in [-1, 1], or the layers that they are made of."""


class EncodedPortrait(Protocol):
    """What an autoencoder knows of B portraits; only the one that made it can read all of it.

    Attributes:
        latent: `(B, C, h, w)`.
    """

    latent: Tensor

    def repeat(self, times: int) -> Self:
        """Return the description for `times` frames of each portrait."""
        ...


class Autoencoder(Network, Protocol):
    """Frames to latents and back, perhaps guided by a portrait.

    `ReferenceAutoencoder` and `DCAutoencoder` are two of them. Each takes only the descriptions of
    portraits and the layouts that it made itself, so their types are not told here.

    Attributes:
        latent_shape: `(C, h, w)` of one frame.
        picture_size: side of the square frames, in pixels.
    """

    latent_shape: tuple[int, int, int]
    image_size: int

    @property
    def landmarks(self) -> "LandmarkAutoencoder | None":
        """The same autoencoder, where its latents carry the landmarks of the face."""
        ...

    def encode(self, x: Tensor, portrait: Any = None) -> Tensor:
        """Encode `(B, T, 3, H, W)` in [-1, 1] to `(B, T, C, h, w)`.

        `portrait` is what `encode_portrait` returned for one portrait per item; None where there is
        no portrait to compare the frames with.
        """
        ...

    def encode_portrait(self, picture: Tensor) -> EncodedPortrait:
        """Do the work that is done once per portrait, `(B, 3, H, W)` in [-1, 1]."""
        ...

    def decode(self, latents: Tensor, portrait: Any) -> Tensor:
        """Decode `(B, T, C, h, w)` to `(B, T, 3, H, W)` in [-1, 1], one portrait per item."""
        ...

    def decode_layers(self, latents: Tensor, portrait: Any) -> Frames:
        """As `decode`, to what frames are composited from."""
        ...

    def prepare_decoder(self, latents: Tensor, portrait: Any) -> Any:
        """Prepare to decode latents `(B, C, h, w)`, one portrait per latent.

        Here is done what costs the same for one frame as for many. Slices of the result are the
        layouts of some of the frames.
        """
        ...

    def run_decoder(self, layout: Any, portrait: Any) -> Frames:
        """Decode B frames that are laid out, one portrait per frame."""
        ...

    def without_background_flow(self, latents: Tensor) -> Tensor:
        """Return latents `(..., C, h, w)`, or noise, in which what is around the face rests.

        Where latents do not tell the two apart, they are returned as they are.
        """
        ...

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Let the decoder compute in another number format."""
        ...

    def quantizable_parts(self) -> Sequence[nn.Module]:
        """Return the parts of the decoder that may compute in 8-bit integers; none if empty."""
        ...


class LandmarkAutoencoder(Autoencoder, Protocol):
    """An autoencoder whose latents carry the landmarks of the face, which guide its decoder.

    Attributes:
        mean_points: landmarks of the average face, `(L, 2)` in [-1, 1].
    """

    mean_points: Tensor

    @property
    def landmark_matrix(self) -> Tensor:
        """The linear read-out of landmarks from a whole flat latent, `(2 L, C h w)`."""
        ...

    def decode_landmarks(self, latents: Tensor) -> Tensor:
        """Read the landmarks off latents `(..., C, h, w)`: `(..., L, 2)` in [-1, 1]."""
        ...

    def encode_with_heatmaps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, with the logits of the landmarks' heat maps, `(B, T, L, s, s)`."""
        ...

    def encode_portrait(self, picture: Tensor) -> PortraitFeatures:
        """Do the work that is done once per portrait, `(B, 3, H, W)` in [-1, 1]."""
        ...

    def decode_layers(self, latents: Tensor, portrait: PortraitFeatures) -> DecodedLayers:
        """Decode `(B, T, C, h, w)` to the layers of B times T frames, one portrait per item."""
        ...

    def prepare_decoder(self, latents: Tensor, portrait: PortraitFeatures) -> DecoderInputs:
        """Prepare to decode latents `(B, C, h, w)`, one portrait per latent."""
        ...

    def run_decoder(self, layout: DecoderInputs, portrait: PortraitFeatures) -> DecodedLayers:
        """Decode B frames that are laid out, one portrait per frame."""
        ...
