"""Data of the reference-guided autoencoder: latents, portrait features, decoder inputs, frames.

A latent is `(24, 4, 4)`: the face in the first 16 channels, the background flow in the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder import background_flow

IMAGE_SIZE = 256
FACE_SHAPE = (16, 4, 4)
"""The first channels of a latent: the face, which is encoded from the frame alone."""

FACE_SIZE = 16 * 4 * 4
LATENT_SHAPE = (16 + background_flow.CHANNELS, 4, 4)
LATENT_SIZE = LATENT_SHAPE[0] * 4 * 4
FLOW_SIZE = 128
"""Height and width of the flow, in cells of two pixels; it is discontinuous along the mouth."""


CELL_PX = 4
"""Pixels along each side of a cell of the decoder's finest maps, which have 64x64."""


@dataclass(frozen=True)
class FramePart:
    """A rectangle of a frame, in cells of the decoder's finest maps.

    Attributes:
        rows: rows of cells.
        columns: columns of cells.
    """

    rows: slice
    columns: slice

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Rows and columns in pixels of the frame."""
        return self._scaled(CELL_PX)

    def of(self, maps: Tensor) -> Tensor:
        """Return this part of maps `(..., s, s)` of whole frames, for s of 64, 128 or 256."""
        return maps[(..., *self._scaled(maps.shape[-1] * CELL_PX // IMAGE_SIZE))]

    def _scaled(self, by: int) -> tuple[slice, slice]:
        rows, columns = self.rows, self.columns
        return slice(rows.start * by, rows.stop * by), slice(columns.start * by, columns.stop * by)


WHOLE_FRAME = FramePart(slice(0, IMAGE_SIZE // CELL_PX), slice(0, IMAGE_SIZE // CELL_PX))


@dataclass
class PortraitFeatures:
    """What the decoder needs of a portrait; computed once and not changed.

    Attributes:
        image: `(B, 3, 256, 256)` in [-1, 1].
        latent: `(B, C, h, w)`.
        points: landmarks that the latent encodes, `(B, L, 2)` in [-1, 1].
        features: three feature maps, of 16x16, 32x32 and 64x64.
    """

    image: Tensor
    latent: Tensor
    points: Tensor
    features: tuple[Tensor, ...]

    def repeat(self, times: int) -> "PortraitFeatures":
        """Repeat each item for `times` frames; return self, not a copy, for 1."""
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
    """What the decoder needs of B latents: landmarks, flow, and maps that follow from them.

    It is computed by many small operations, which take as long for one frame as for a window.

    Attributes:
        points: landmarks that the latents encode, `(B, L, 2)`.
        flow: flow of landmarks and background, `(B, 2, 128, 128)`.
        grids: sampling grids of the portrait's features, `(B, s, s, 2)` for s of 16, 32 and 64.
        start: initial hidden states, `(B, C, 16, 16)`.
        maps: flow, and proximity of landmarks, `(B, 6, 64, 64)`.
        gap: mask of the open mouth, `(B, 4, 64, 64)`.
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
        """Return the inputs for some of the frames."""

        def part(value: Any) -> Any:
            return tuple(map(part, value)) if isinstance(value, tuple) else value[frames]

        return DecoderInputs(*(part(getattr(self, field.name)) for field in fields(self)))


@dataclass
class DecodedLayers:
    """Decoded frames as the layers that they consist of; `...` is `B`, or `B, T`.

    A frame is `warped + residual`. A frame of another size follows from the portrait of that size,
    the flow and the residual. Of frames of which a part was decoded, `warped`, `mask` and `change`
    are this part.

    Attributes:
        warped: the warped portrait, `(..., 3, 256, 256)`.
        mask: opacity of the inpainting, `(..., 1, 256, 256)` in [0, 1].
        change: inpainted pixels minus `warped`, before the mask, `(..., 3, 256, 256)`.
        flow: `(..., 2, 128, 128)`, see `landmark_warp.warp`.
        points: landmarks that the latents encode, `(..., L, 2)`.
    """

    warped: Tensor
    mask: Tensor
    change: Tensor
    flow: Tensor
    points: Tensor

    @property
    def residual(self) -> Tensor:
        """The change by inpainting, `(..., 3, 256, 256)`."""
        return self.mask * self.change

    @property
    def frames(self) -> Tensor:
        """The complete frames, `(..., 3, 256, 256)`."""
        return self.warped + self.residual

    def __getitem__(self, index: Any) -> "DecodedLayers":
        """Return some of the frames, or of the items."""
        return self.map(lambda layer: layer[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "DecodedLayers":
        """Apply a function to each layer."""
        return DecodedLayers(*(change(getattr(self, field.name)) for field in fields(self)))


def face_part(latents: Tensor) -> Tensor:
    """Return the channels of the face."""
    return latents[:, : FACE_SHAPE[0]]


def without_background_flow(latents: Tensor) -> Tensor:
    """Return latents `(..., 24, 4, 4)` with these face channels and zero background flow."""
    faces = latents[..., : FACE_SHAPE[0], :, :]
    return F.pad(faces, (0, 0, 0, 0, 0, background_flow.CHANNELS))


def background_part(latents: Tensor) -> Tensor:
    """Return the channels of the background flow."""
    return latents[:, FACE_SHAPE[0] :]
