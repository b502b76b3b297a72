"""The compositor: puts generated faces back into the canvas.

Faces that are decoded to layers are composited at the size of the canvas: the canvas's own pixels
are warped along the flow, and only the residual from the network is scaled up. So skin, hair and
eyes stay as sharp as the photograph, whatever the resolution of the model.

On a CPU the pixels are warped by OpenCV in 8-bit integers, in half the time and a quarter of the
memory that torch takes; torch is used if the layers are on a GPU.
"""

import functools

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.latents import FLOW_SIZE, IMAGE_SIZE, DecodedLayers
from letstalk_rt.portrait.edge_fill import fill_edges
from letstalk_rt.types import Portrait

_AT_ONCE_PX = 2**16
"""About how many pixels are processed at once: more do not fit into the cache, and OpenCV would
split them among threads of its own, which then wait for each other (see `letstalk_rt.threads`).
"""


class Compositor:
    """Puts generated faces back into the canvas of a portrait; prepared once per portrait.

    The crop is faded in from its border over a rounded square, so that no edge is visible; at the
    border and beyond, the result is the canvas, bit for bit. The flow is faded in likewise, so that
    shoulders and other things that extend beyond the crop bend instead of breaking.
    """

    def __init__(
        self,
        portrait: Portrait,
        device: str | torch.device = "cpu",
        *,
        layered: bool = False,
        opencv: bool = True,
    ) -> None:
        """Prepare the fade.

        Args:
            portrait: the portrait; its box is rounded to whole pixels.
            device: device of the frames to compose.
            layered: whether `compose_layers` will be used. If the box is larger than the generated
                faces, this takes 12 bytes per pixel of the box (48 on a GPU).
            opencv: whether OpenCV warps the pixels on a CPU; otherwise torch does, as on a GPU.
        """
        left, top, side = (round(v) for v in portrait.box)
        height, width = portrait.canvas.shape[:2]
        rows = slice(max(top, 0), min(top + side, height))
        cols = slice(max(left, 0), min(left + side, width))
        assert rows.start < rows.stop and cols.start < cols.stop, (portrait.box, height, width)
        self._canvas = torch.from_numpy(portrait.canvas.copy()).to(device)
        self._side = side
        self._corner = torch.tensor([float(left), float(top)], device=device)
        self._rows, self._cols = rows, cols
        self._box_rows = slice(rows.start - top, rows.stop - top)
        self._box_cols = slice(cols.start - left, cols.stop - left)
        self._fade = _fade(side)[self._box_rows, self._box_cols].to(device)
        self._gain = self._fade[..., None].expand(-1, -1, 3).contiguous()
        # 0.5 for rounding, because the cast to uint8 truncates.
        self._offset = self._canvas[rows, cols] * (1 - self._fade[..., None]) + 0.5
        self._source: np.ndarray | Tensor | None = None
        if layered and side > IMAGE_SIZE:
            upsampled = _upsampled(_crop_box(portrait.canvas, left, top, side))
            by_opencv = opencv and self._canvas.device.type == "cpu"
            self._source = _to_pixels(upsampled) if by_opencv else upsampled.to(device)
            self._flow_fade = _fade(FLOW_SIZE).to(device)

    @torch.inference_mode()
    def compose(self, frames: np.ndarray | Tensor) -> np.ndarray:
        """Return the canvas with each of these faces.

        Args:
            frames: uint8 `(N, 256, 256, 3)` array, or float `(N, 3, 256, 256)` tensor in [-1, 1]
                (values beyond are clipped).

        Returns:
            `(N, H, W, 3)` uint8, new memory.
        """
        assert frames.ndim == 4, frames.shape
        if isinstance(frames, np.ndarray):
            assert frames.dtype == np.uint8, frames.dtype
            pixels = torch.from_numpy(frames).to(self._canvas.device).permute(0, 3, 1, 2)
        else:
            pixels = _to_bytes(frames.detach().to(self._canvas.device))
        return self._compose_faces(pixels).cpu().numpy()

    def _compose_faces(self, pixels: Tensor) -> Tensor:
        """Return the canvas with faces `(N, 3, H, W)` uint8: `(N, H, W, 3)` uint8."""
        if pixels.shape[-1] != self._side:
            pixels = _enlarge(pixels, self._side)
        shown = self._canvas.expand(len(pixels), -1, -1, -1).clone()
        self._blend(shown, pixels[:, :, self._box_rows], self._box_rows)
        return shown

    @torch.inference_mode()
    def compose_layers(self, frames: DecodedLayers, *, full_size: bool = True) -> Tensor:
        """Return the canvas with each of these faces, at the sharpness of the canvas.

        Args:
            frames: the layers of N frames.
            full_size: whether faces are composited at the size of the canvas; if not, at that of
                the layers, and enlarged, which takes less time.

        Returns:
            `(N, H, W, 3)` uint8 on their device, new memory; for `MouthCompositor`, whose landmarks
            are those of the frames, see `to_canvas`.
        """
        return self._compose_layers(frames, self._source if full_size else None)

    def to_canvas(self, points: Tensor) -> Tensor:
        """Convert landmarks `(N, L, 2)` in [-1, 1] of the crop to pixels of the canvas."""
        return (points.float() + 1) * (self._side / 2) + self._corner

    @property
    def canvas(self) -> Tensor:
        """The canvas, `(H, W, 3)` uint8; must not be written to."""
        return self._canvas

    def _compose_layers(self, frames: DecodedLayers, source: np.ndarray | Tensor | None) -> Tensor:
        if source is None:
            return self._compose_faces(_to_bytes(frames.frames.clamp(-1, 1)))
        sampler: _CpuLayerSampler | _LayerSampler
        if isinstance(source, np.ndarray):
            sampler = _CpuLayerSampler(source, frames, self._flow_fade)
        else:
            sampler = _LayerSampler(source, frames, self._flow_fade)
        shown = self._canvas.expand(len(frames.flow), -1, -1, -1).clone()
        height = max(1, _AT_ONCE_PX // self._side)
        for top in range(self._box_rows.start, self._box_rows.stop, height):
            rows = slice(top, min(top + height, self._box_rows.stop))
            if isinstance(sampler, _CpuLayerSampler):
                self._blend_pixels(shown, sampler, rows)
            else:
                self._blend(shown, sampler(rows), rows)
        return shown

    def _blend_pixels(self, shown: Tensor, sampler: "_CpuLayerSampler", rows: slice) -> None:
        """Blend some rows of the sampler's faces into `shown`, in place, in 8-bit integers."""
        here = slice(rows.start - self._box_rows.start, rows.stop - self._box_rows.start)
        fade = self._fade[here].numpy()
        canvas = self._canvas[self._rows, self._cols][here].numpy()
        for item, pixels in enumerate(shown.numpy()):
            face = sampler.face(item, rows)[:, self._box_cols]
            mixed = cv2.blendLinear(np.ascontiguousarray(face), canvas, fade, 1 - fade)
            pixels[self._rows, self._cols][here] = mixed

    def _blend(self, shown: Tensor, faces: Tensor, rows: slice) -> None:
        """Blend some rows of faces, `(N, 3, rows, side)` in [0, 255], into `shown`, in place."""
        faces = faces[..., self._box_cols].permute(0, 2, 3, 1).float()
        here = slice(rows.start - self._box_rows.start, rows.stop - self._box_rows.start)
        mixed = torch.addcmul(self._offset[here], faces, self._gain[here])
        shown[:, self._rows, self._cols][:, here] = mixed.to(torch.uint8)


class _CpuLayerSampler:
    """Samples rows of N faces from their layers, at the size of the box."""

    def __init__(self, source: np.ndarray, frames: DecodedLayers, flow_fade: Tensor) -> None:
        self._source = source
        side = (len(source) + 1) // 2
        residual = _enlarge(_half_residual(frames), side).permute(0, 2, 3, 1)
        self._half_residual = residual.contiguous().numpy()
        # In pixels of the source, which has twice the resolution of the box.
        flow = (frames.flow * flow_fade * side).permute(0, 2, 3, 1).contiguous().numpy()
        self._positions = [
            cv2.add(cv2.resize(one, (side, side), interpolation=cv2.INTER_LINEAR), _identity(side))
            for one in flow
        ]

    def face(self, item: int, rows: slice) -> np.ndarray:
        """Return some rows of one face, `(rows, side, 3)` uint8."""
        face = cv2.remap(
            self._source,
            self._positions[item][rows],
            None,  # positions of x and y come in one array
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        painted: np.ndarray = cv2.addWeighted(face, 1, self._half_residual[item][rows], 2, -256)
        return painted

    def __call__(self, rows: slice) -> Tensor:
        """Return `(N, 3, rows, side)` uint8."""
        faces = [self.face(item, rows) for item in range(len(self._positions))]
        return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def _identity(side: int) -> np.ndarray:
    """Return where each pixel of the box lies in the source, `(side, side, 2)`: x and y."""
    axis = np.arange(side, dtype=np.float32) * 2
    return np.stack(np.meshgrid(axis, axis), -1)


class _LayerSampler:
    """The same as `_CpuLayerSampler`, on any device."""

    def __init__(self, source: Tensor, frames: DecodedLayers, flow_fade: Tensor) -> None:
        side = (source.shape[-1] + 1) // 2
        self._source = source.expand(len(frames.flow), -1, -1, -1)
        self._half_residual = _enlarge(_half_residual(frames), side)
        # Here the centres of the outermost pixels are at -1 and 1; in a flow, the image edges are.
        flow = frames.flow * flow_fade * (side / (side - 1))
        high = flow.shape[-2]
        self._flow = F.interpolate(flow, (high, side), mode="bilinear", align_corners=False)
        self._axis = torch.linspace(-1, 1, side, device=flow.device)
        self._positions = (torch.arange(side, device=flow.device) + 0.5) * high / side - 0.5
        self._positions = self._positions.clamp_(0, high - 1)

    def __call__(self, rows: slice) -> Tensor:
        """Return `(N, 3, rows, side)` in [0, 255]."""
        above = self._positions[rows].long()
        below = (above + 1).clamp(max=self._flow.shape[-2] - 1)
        share = (self._positions[rows] - above)[:, None]
        upper, lower = (self._flow.index_select(2, line) for line in (above, below))
        grid = torch.lerp(upper, lower, share)
        grid[:, 0] += self._axis
        grid[:, 1] += self._axis[rows, None]
        grid = grid.permute(0, 2, 3, 1)
        faces = F.grid_sample(self._source, grid, padding_mode="border", align_corners=True)
        residual = self._half_residual[:, :, rows].float().sub_(128)
        return faces.add_(residual, alpha=2).clamp_(0, 255)


def _crop_box(canvas: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """Return the box as an image; beyond the canvas it is filled from the edge."""
    height, width = canvas.shape[:2]
    rows = np.arange(top, top + side).clip(0, height - 1)
    cols = np.arange(left, left + side).clip(0, width - 1)
    crop = canvas[rows[:, None], cols]
    box = fill_edges(crop, (-left, -top, width - left, height - top))
    inside = np.s_[max(-top, 0) : height - top, max(-left, 0) : width - left]
    box[inside] = crop[inside]  # including edge pixels, which `fill_edges` replaces
    return box


def _upsampled(pixels: np.ndarray) -> Tensor:
    """Upsample `(S, S, 3)` by one pixel between any two: `(1, 3, 2 S - 1, 2 S - 1)` in [0, 255].

    Sampling the result bilinearly costs a third of sampling the original bicubically, and is as
    sharp.
    """
    size = 2 * len(pixels) - 1
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    image = F.interpolate(image, (size, size), mode="bicubic", align_corners=True)
    return image.clamp_(0, 255)


def _half_residual(frames: DecodedLayers) -> Tensor:
    """Return half the residual, as uint8 with an offset of 128: `(N, 3, 256, 256)`."""
    return (frames.residual * (255 / 4) + 128.5).clamp_(0, 255).to(torch.uint8)


def _to_pixels(image: Tensor) -> np.ndarray:
    """Convert `(1, 3, H, W)` in [0, 255] to `(H, W, 3)` uint8."""
    pixels: np.ndarray = (image[0].permute(1, 2, 0) + 0.5).byte().contiguous().numpy()
    return pixels


def _enlarge(pixels: Tensor, side: int) -> Tensor:
    """Resize uint8 images `(N, 3, H, W)`; the values stay in [0, 255]."""
    size = (side, side)
    if pixels.device.type != "cpu":  # only the CPU has a kernel for uint8
        larger = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True)
        return larger.clamp_(0, 255)
    # On the CPU, uint8 in channels_last is ten times as fast as float (torch 2.13).
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return F.interpolate(pixels, size, mode="bicubic", antialias=True)


def _to_bytes(frames: Tensor) -> Tensor:
    assert frames.is_floating_point(), frames.dtype
    return (frames.float() * 127.5 + 128).clamp_(0, 255).to(torch.uint8)


def _fade(side: int) -> Tensor:
    """Return `(side, side)` in [0, 1]: 0 at the border, 1 inside, smooth, with round corners."""
    fade_px, radius_px = 0.12 * side, 0.35 * side
    axis = (torch.arange(side) + 0.5 - side / 2).abs()
    beyond = (axis - (side / 2 - radius_px)).clamp(min=0)
    straight = torch.maximum(axis[:, None], axis[None]) - side / 2
    corner = torch.hypot(beyond[:, None], beyond[None]) - radius_px
    in_corner = (beyond[:, None] > 0) & (beyond[None] > 0)
    depth_px = -torch.where(in_corner, corner, straight)
    rise = ((depth_px - 1) / fade_px).clamp(0, 1)  # the outermost pixel is that of the canvas
    return rise * rise * (3 - 2 * rise)
