"""The eyelid compositor: closes the eyes of composited frames, on the canvas.

The closed eyes of a portrait are painted once. A blink slides the lids down: what was painted
between the crease and the line of lashes is drawn up to where the lid is, and the line with it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.eyelid_painter import EyelidPainter
from letstalk_rt.models.geometry.eye_crop import (
    EYE_HEIGHT,
    EYE_WIDTH,
    LidEdges,
    align_eyes,
    lid_edges,
    lid_mask,
)
from letstalk_rt.portrait.crop_blending import blend_crop, cut_crop

_FINE = 2
"""Lids are stored with this many pixels per pixel of a crop, along each side."""

_CREASE = 0.6  # height of the crease above the upper lid, over the height of the eye
_LASHES_PX, _BELOW_PX = 2.5, 5.5  # what a half-closed lid covers below its edge; a closed one more
_FADE_IN = 0.25  # eye closure from which the lid is opaque
_GRAIN_PX, _MOST_GRAIN = 4, 0.08  # width of the texture of skin, and its largest amplitude
_FINE_SIZE = (_FINE * EYE_HEIGHT, _FINE * EYE_WIDTH)
_EDGES = ("upper", "lower")


class EyelidCompositor:
    """The eyelids of one portrait; prepared once, never changed by a frame.

    Args:
        painter: the network.
        portrait: `(H, W, 3)` uint8, on the painter's device.
        points: its landmarks, `(1, L, 2)` in its pixels.
    """

    def __init__(self, painter: EyelidPainter, portrait: Tensor, points: Tensor) -> None:
        crops, edges = [], []
        for eye in (0, 1):
            to_crop = align_eyes(points, eye)
            crop = cut_crop(portrait, to_crop.scaled(_FINE), _FINE_SIZE)
            crops.append(crop.flip(-1) if eye else crop)
            edges.append(lid_edges(to_crop(points.float()), eye))
        upper, lower = (torch.cat([getattr(one, edge) for one in edges]) for edge in _EDGES)
        both, fine = LidEdges(upper, lower), torch.cat(crops)
        painted = painter(F.avg_pool2d(fine, _FINE), both, both.closed)
        smooth = F.interpolate(painted, scale_factor=_FINE, mode="bicubic")
        self._lids = (smooth + _grain(fine, _fine(lower))).clamp(-1, 1)
        self._crease = _fine(_crease(both))
        self._closed = _fine(both.closed)

    @torch.inference_mode()
    def __call__(self, frames: Tensor, points: Tensor, eye_closures: Sequence[float]) -> None:
        """Close the eyes of frames, in place.

        Args:
            frames: `(N, H, W, 3)` uint8.
            points: their landmarks, `(N, L, 2)` in their pixels.
            eye_closures: eye closure of each frame: 0 leaves the eyes unchanged, 1 closes them.
        """
        assert len(eye_closures) == len(frames) == len(points), (len(eye_closures), len(frames))
        for number, closure in enumerate(eye_closures):
            for eye in (0, 1) if closure > 0 else ():
                self._close(frames[number], points[number : number + 1].float(), eye, closure)

    def _close(self, frame: Tensor, points: Tensor, eye: int, closure: float) -> None:
        to_crop = align_eyes(points, eye)
        colours, alpha = self._lid(eye, lid_edges(to_crop(points), eye, _FINE), closure)
        if eye:
            colours, alpha = colours.flip(-1), alpha.flip(-1)
        blend_crop(frame, colours, alpha, to_crop.scaled(_FINE), _FINE)

    def _lid(self, eye: int, lids: LidEdges, closure: float) -> tuple[Tensor, Tensor]:
        """Return a lid, `(1, 3, 128, 160)` in [-1, 1], and its opacity `(1, 1, 128, 160)`."""
        here = slice(eye, eye + 1)
        crease = _crease(lids)
        edge = torch.lerp(lids.upper, lids.closed, closure)
        y = (torch.arange(_FINE * EYE_HEIGHT, device=edge.device)[:, None] + 0.5) / _FINE
        height = (self._closed[here] - self._crease[here]) / (edge - crease).clamp(min=0.5)
        on_lid = self._crease[here, None] + (y - crease[:, None]) * height[:, None]
        source = torch.where(y > edge[:, None], y + (self._closed[here] - edge)[:, None], on_lid)
        source = torch.where(y < crease[:, None], y, source)
        lid = F.grid_sample(
            self._lids[here], _grid(source), padding_mode="border", align_corners=False
        )
        opacity = min(1.0, closure / _FADE_IN)
        mask = lid_mask(lids.upper, edge, _LASHES_PX + _BELOW_PX * closure**4)
        return lid, mask * opacity


def _crease(lids: LidEdges) -> Tensor:
    """Return the height of the crease in each column; lids move below it."""
    height = lids.lower - lids.upper
    return lids.upper - _CREASE * height.amax(-1, keepdim=True)


def _grain(crops: Tensor, lower: Tensor) -> Tensor:
    """Return the texture of the skin below the eyes, mirrored at the lower lids, like `crops`.

    The painter has seen video, whose skin is smoother than that of a photograph.
    """
    side = _GRAIN_PX * _FINE // 2
    padded = F.pad(crops, (side, side, side, side), mode="reflect")
    texture = (crops - F.avg_pool2d(padded, 2 * side + 1, 1)).clamp(-_MOST_GRAIN, _MOST_GRAIN)
    y = (torch.arange(crops.shape[-2], device=crops.device)[:, None] + 0.5) / _FINE
    mirror = lower[:, None] + _LASHES_PX
    source = torch.where(y < mirror, 2 * mirror - y, y)
    return F.grid_sample(texture, _grid(source), padding_mode="reflection", align_corners=False)


def _fine(line: Tensor) -> Tensor:
    """Return a line `(B, W)` with more columns."""
    return F.interpolate(line[:, None], scale_factor=_FINE, mode="linear")[:, 0]


def _grid(rows: Tensor) -> Tensor:
    """Return the positions for `grid_sample` of each pixel, given its row: `(B, h, w, 2)`."""
    x = (torch.arange(rows.shape[-1], device=rows.device) + 0.5) / (_FINE * EYE_WIDTH) * 2 - 1
    y = rows / EYE_HEIGHT * 2 - 1
    return torch.stack([x.expand_as(y), y], -1)
