"""The interfaces that autoencoders implement."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.latents import (
    DecodedLayers,
    DecoderInputs,
    FramePart,
    PortraitFeatures,
)
from letstalk_rt.models.layers.network import Network

Frames: TypeAlias = Tensor | DecodedLayers
"""Decoded frames: `(..., 3, H, W)` in [-1, 1], or the layers that they consist of."""


class EncodedPortrait(Protocol):
    """The portrait features of B portraits, of whatever autoencoder encoded them.

    Attributes:
        latent: the portrait latents, `(B, C, h, w)`.
    """

    latent: Tensor

    def repeat(self, times: int) -> Self:
        """Return the features for `times` frames of each portrait."""
        ...


class Autoencoder(Network, Protocol):
    """Encodes frames to latents and decodes latents to frames, possibly guided by a portrait.

    `ReferenceAutoencoder` and `DCAutoencoder` implement it. Each accepts only portrait features and
    decoder inputs of its own, so their types are `Any` here.

    Attributes:
        latent_shape: shape of one frame's latent, `(C, h, w)`.
        image_size: height and width of the frames, in pixels.
    """

    latent_shape: tuple[int, int, int]
    image_size: int

    @property
    def landmarks(self) -> "LandmarkAutoencoder | None":
        """This autoencoder, if its latents encode the landmarks of the face; otherwise None."""
        ...

    def encode(self, x: Tensor, portrait: Any = None) -> Tensor:
        """Encode `(B, T, 3, H, W)` in [-1, 1] to `(B, T, C, h, w)`.

        `portrait` is what `encode_portrait` returned for one portrait per item; None where there is
        no portrait to compare the frames with.
        """
        ...

    def encode_portrait(self, image: Tensor) -> EncodedPortrait:
        """Compute the features of portraits `(B, 3, H, W)` in [-1, 1]; once per portrait."""
        ...

    def decode(self, latents: Tensor, portrait: Any) -> Tensor:
        """Decode `(B, T, C, h, w)` to `(B, T, 3, H, W)` in [-1, 1], one portrait per item."""
        ...

    def decode_layers(self, latents: Tensor, portrait: Any) -> Frames:
        """Decode as `decode` does, to the layers that frames are composited from."""
        ...

    def prepare_decoder(self, latents: Tensor, portrait: Any) -> Any:
        """Compute the decoder's inputs for latents `(B, C, h, w)`, one portrait per latent.

        This is the work that takes as long for one frame as for many. A slice of the result holds
        the inputs for these frames.
        """
        ...

    def run_decoder(self, inputs: Any, portrait: Any) -> Frames:
        """Decode B frames from the result of `prepare_decoder`, one portrait per frame."""
        ...

    def without_background_flow(self, latents: Tensor) -> Tensor:
        """Return latents or noise `(..., C, h, w)` with the background flow set to zero.

        Latents without a separate background flow are returned unchanged.
        """
        ...

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Set the number format of the decoder."""
        ...

    def quantizable_parts(self) -> Sequence[nn.Module]:
        """Return the parts of the decoder that may run in 8-bit integers."""
        ...


class LandmarkAutoencoder(Autoencoder, Protocol):
    """An autoencoder whose latents encode the landmarks of the face.

    Attributes:
        mean_points: landmarks of the mean face, `(L, 2)` in [-1, 1].
    """

    mean_points: Tensor

    @property
    def encoder(self) -> nn.Module:
        """Maps frames `(B, 3, S, S)` and `mean_points` to latents and heat maps."""
        ...

    @property
    def landmark_matrix(self) -> Tensor:
        """The linear map from a flattened latent to landmarks, `(2 L, C h w)`."""
        ...

    def decode_landmarks(self, latents: Tensor) -> Tensor:
        """Return the landmarks that latents `(..., C, h, w)` encode, `(..., L, 2)` in [-1, 1]."""
        ...

    def encode_with_heatmaps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents and the logits of the landmarks' heat maps, `(B, T, L, s, s)`."""
        ...

    def encoder_in(self, dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return a function as `encode_with_heatmaps`, of `(B, 3, H, W)`, in a number format."""
        ...

    def portrait_features(self, image: Tensor, latent: Tensor) -> PortraitFeatures:
        """Compute the features of portraits whose latents `(B, C, h, w)` are known."""
        ...

    def encode_portrait(self, image: Tensor) -> PortraitFeatures:
        """Compute the features of portraits `(B, 3, H, W)` in [-1, 1]; once per portrait."""
        ...

    def decode_layers(self, latents: Tensor, portrait: PortraitFeatures) -> DecodedLayers:
        """Decode `(B, T, C, h, w)` to the layers of B times T frames, one portrait per item."""
        ...

    def prepare_decoder(self, latents: Tensor, portrait: PortraitFeatures) -> DecoderInputs:
        """Prepare to decode latents `(B, C, h, w)`, one portrait per latent."""
        ...

    def run_decoder(
        self, inputs: DecoderInputs, portrait: PortraitFeatures, part: FramePart | None = None
    ) -> DecodedLayers:
        """Decode B frames from the result of `prepare_decoder`; a part of them if one is given."""
        ...

    def follow_landmarks(
        self,
        inputs: DecoderInputs,
        portrait: PortraitFeatures,
        earlier: DecoderInputs,
        decoded: DecodedLayers,
    ) -> DecodedLayers:
        """Return the layers of B frames from those of earlier ones, without running the decoder."""
        ...
