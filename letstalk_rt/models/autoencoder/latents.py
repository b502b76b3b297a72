"""What the reference-guided autoencoder works on: its latents, portraits, layouts and frames.

A latent is `(24, 4, 4)`: the face in its first 16 channels, its surroundings in the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder import background_flow

IMAGE_SIZE = 256
FACE_SHAPE = (16, 4, 4)
"""The first channels of a latent: the face, as the encoder sees it in the frame alone."""

FACE_SIZE = 16 * 4 * 4
LATENT_SHAPE = (16 + background_flow.CHANNELS, 4, 4)
LATENT_SIZE = LATENT_SHAPE[0] * 4 * 4
FLOW_SIZE = 128
"""Cells a side of the flow: two pixels each, for along the mouth it is torn."""


@dataclass
class PortraitFeatures:
    """What the decoder needs of a portrait; made once, then only read.

    Attributes:
        image: `(B, 3, 256, 256)` in [-1, 1].
        latent: `(B, C, h, w)`.
        points: landmarks as read off the latent, `(B, L, 2)` in [-1, 1].
        features: three maps, at 16, 32 and 64 cells a side.
    """

    image: Tensor
    latent: Tensor
    points: Tensor
    features: tuple[Tensor, ...]

    def repeat(self, times: int) -> "PortraitFeatures":
        """Repeat each item `times` times, for as many frames; a single one without a copy."""
        if times == 1:
            return self

        def repeated(part: Tensor) -> Tensor:
            return part[:, None].expand(-1, times, *part.shape[1:]).flatten(0, 1)

        return PortraitFeatures(
            repeated(self.image),
            repeated(self.latent),
            repeated(self.points),
            tuple(repeated(f) for f in self.features),
        )


@dataclass
class DecoderInputs:
    """Where everything is to be in B frames, before anything is painted.

    It is many small sums, which cost the same for one frame as for a window of them.

    Attributes:
        points: landmarks read off the latents, `(B, L, 2)`.
        flow: along landmarks and surroundings, `(B, 2, 128, 128)`.
        grids: where to read the portrait's features, `(B, s, s, 2)` for s of 16, 32 and 64.
        start: what painting starts from, `(B, C, 16, 16)`.
        maps: flow, and nearness of landmarks, `(B, 6, 64, 64)`.
        gap: the open mouth, `(B, 4, 64, 64)`.
        styles: scale and shift in each block, `(B, 2 C)`.
    """

    points: Tensor
    flow: Tensor
    grids: tuple[Tensor, ...]
    start: Tensor
    maps: Tensor
    gap: Tensor
    styles: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, frames: slice) -> "DecoderInputs":
        """Take some of the frames."""

        def part(value: Any) -> Any:
            return tuple(map(part, value)) if isinstance(value, tuple) else value[frames]

        return DecoderInputs(*(part(getattr(self, field.name)) for field in fields(self)))


@dataclass
class DecodedLayers:
    """Decoded frames, in the layers they are made of; `...` is `B`, or `B, T`.

    The picture is `warped + residual`. Flow and residual make it at any other size as well, from
    the portrait at that size.

    Attributes:
        warped: the portrait after the warp alone, `(..., 3, 256, 256)`.
        mask: share of the painted part, `(..., 1, 256, 256)` in [0, 1].
        change: what painting would change everywhere, `(..., 3, 256, 256)`.
        flow: `(..., 2, 128, 128)`, see `landmark_warp.warp`.
        points: landmarks read off the latent, `(..., L, 2)`.
    """

    warped: Tensor
    mask: Tensor
    change: Tensor
    flow: Tensor
    points: Tensor

    @property
    def residual(self) -> Tensor:
        """What the painting changes, `(..., 3, 256, 256)`."""
        return self.mask * self.change

    @property
    def frames(self) -> Tensor:
        """The whole, `(..., 3, 256, 256)`."""
        return self.warped + self.residual

    def __getitem__(self, index: Any) -> "DecodedLayers":
        """Take some of the frames, or of the items."""
        return self.map(lambda layer: layer[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "DecodedLayers":
        """Change each layer in the same way."""
        return DecodedLayers(*(change(getattr(self, field.name)) for field in fields(self)))


def face_part(latents: Tensor) -> Tensor:
    return latents[:, : FACE_SHAPE[0]]


def without_background_flow(latents: Tensor) -> Tensor:
    """Give latents `(..., 24, 4, 4)`, or faces alone, with surroundings at rest as a portrait's."""
    faces = latents[..., : FACE_SHAPE[0], :, :]
    return F.pad(faces, (0, 0, 0, 0, 0, background_flow.CHANNELS))


def background_part(latents: Tensor) -> Tensor:
    return latents[:, FACE_SHAPE[0] :]
