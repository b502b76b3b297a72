"""Decodes the part of a frame that needs it: the lower face, and warps the rest.

Most of what the decoder's finest level changes is around the mouth. Elsewhere the flow of the
landmarks alone is off by a fraction of a pixel, and hardly anything is inpainted. So the finest
level, which has three quarters of the operations, runs in a rectangle around the mouth; towards the
edges of that rectangle its results fade out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.autoencoder.latents import (
    CELL_PX,
    FLOW_SIZE,
    IMAGE_SIZE,
    DecodedLayers,
    DecoderInputs,
    FramePart,
    PortraitFeatures,
)
from letstalk_rt.models.geometry.landmark_warp import warp
from letstalk_rt.models.geometry.landmarks import LIPS

ABOVE, BELOW, BESIDE = 10, 14, 16
"""Cells of the decoder's finest maps around the middle of the lips: the jaw opens downwards."""

_FADE_CELLS = 3.0
_CELLS = IMAGE_SIZE // CELL_PX


def mouth_part(points: Tensor) -> FramePart:
    """Return the part of a frame around its mouth; all have one size.

    Args:
        points: landmarks `(L, 2)` in [-1, 1].
    """
    x, y = ((points[list(LIPS)].float().mean(0) + 1) * (_CELLS / 2)).round().long().tolist()
    top = min(max(y - ABOVE, 0), _CELLS - ABOVE - BELOW)
    left = min(max(x - BESIDE, 0), _CELLS - 2 * BESIDE)
    return FramePart(slice(top, top + ABOVE + BELOW), slice(left, left + 2 * BESIDE))


def decode_mouths(
    autoencoder: LandmarkAutoencoder, inputs: DecoderInputs, portrait: PortraitFeatures
) -> DecodedLayers:
    """Decode the mouth of one frame, and warp the rest of it.

    Args:
        autoencoder: the autoencoder.
        inputs: from `prepare_decoder`, of one frame.
        portrait: its portrait.

    Returns:
        The layers of the whole frame.
    """
    assert len(inputs) == 1, len(inputs)
    part = mouth_part(inputs.points[0])
    decoded = autoencoder.run_decoder(inputs, portrait, part)
    fade = _fade(part, decoded.flow)
    flow = torch.lerp(inputs.flow, decoded.flow, _resized(fade, FLOW_SIZE))
    around = _around(part)
    mask = F.pad(decoded.mask * part.of(_resized(fade, IMAGE_SIZE)), around)
    warped = warp(portrait.image.float(), flow, "bicubic")
    return DecodedLayers(warped, mask, F.pad(decoded.change, around), flow, inputs.points)


def _fade(part: FramePart, like: Tensor) -> Tensor:
    """Return how much of what was decoded is shown in each cell, `(1, 1, 64, 64)`."""
    middle = torch.arange(_CELLS, device=like.device, dtype=like.dtype) + 0.5
    down, across = (
        torch.minimum(middle - side.start, side.stop - middle).clamp(0, _FADE_CELLS) / _FADE_CELLS
        for side in (part.rows, part.columns)
    )
    return torch.minimum(down[:, None], across)[None, None]


def _resized(fade: Tensor, size: int) -> Tensor:
    return F.interpolate(fade, (size, size), mode="bilinear", align_corners=False)


def _around(part: FramePart) -> tuple[int, int, int, int]:
    """Return how many pixels there are to the left, to the right, above and below of a part."""
    rows, columns = part.pixels
    return columns.start, IMAGE_SIZE - columns.stop, rows.start, IMAGE_SIZE - rows.stop
