"""From generated faces back to whole pictures.

A face that comes in layers is put together at the size it is shown at: the canvas's own pixels are
moved along the flow, and only what the network painted is scaled up. So skin, hair and eyes stay as
sharp as the photograph, whatever size the model works at.

On a CPU the pixels are moved by OpenCV, in 8-bit integers: half the time and a quarter of the
memory that torch takes, which does it where the layers are on a GPU.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.latents import FLOW_SIZE, IMAGE_SIZE, DecodedLayers
from letstalk_rt.models.face.eyelids import close_eyes
from letstalk_rt.portrait.edge_fill import fill_edges
from letstalk_rt.types import Portrait

_AT_ONCE_PX = 2**16
"""So many pixels, about, are worked on at once: more do not stay in the cache, and OpenCV would
share them among threads of its own, which wait for each other (see `letstalk_rt.threads`).
"""


class Compositor:
    """Puts generated face crops back into their portrait's canvas; prepared once per portrait.

    The crop fades in from its border over a rounded square, so that no seam shows; at the border
    and beyond, the result is the canvas, bit for bit. Movement fades in likewise: what reaches
    beyond the crop, as shoulders do, bends and does not break.
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
            portrait: its box is rounded to whole pixels.
            device: where the frames to compose will come from.
            layered: the frames will come in layers: `compose_layers`. Takes 12 bytes (on a GPU 48)
                for each pixel of the face's box, where that is larger than the generated faces.
            opencv: let OpenCV move the pixels on a CPU; otherwise torch does, as on a GPU.
        """
        left, top, side = (round(v) for v in portrait.box)
        height, width = portrait.canvas.shape[:2]
        rows = slice(max(top, 0), min(top + side, height))
        cols = slice(max(left, 0), min(left + side, width))
        assert rows.start < rows.stop and cols.start < cols.stop, (portrait.box, height, width)
        self._canvas = torch.from_numpy(portrait.canvas.copy()).to(device)
        self._side = side
        self._rows, self._cols = rows, cols
        self._box_rows = slice(rows.start - top, rows.stop - top)
        self._box_cols = slice(cols.start - left, cols.stop - left)
        fade = _fade(side)[self._box_rows, self._box_cols, None].to(device)
        self._gain = fade.expand(-1, -1, 3).contiguous()
        # The half rounds, as the cast to uint8 cuts off.
        self._offset = self._canvas[rows, cols] * (1 - fade) + 0.5
        self._source: np.ndarray | Tensor | None = None
        if layered and side > IMAGE_SIZE:
            fine = _refined(_cut(portrait.canvas, left, top, side))
            by_opencv = opencv and self._canvas.device.type == "cpu"
            self._source = _pixels(fine) if by_opencv else fine.to(device)
            self._moving = _fade(FLOW_SIZE).to(device)

    @torch.inference_mode()
    def compose(self, frames: np.ndarray | Tensor) -> np.ndarray:
        """Show the canvas with each of these faces.

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
        if pixels.shape[-1] != self._side:
            pixels = _enlarge(pixels, self._side)
        shown = self._canvas.expand(len(pixels), -1, -1, -1).clone()
        self._lay(shown, pixels[:, :, self._box_rows], self._box_rows)
        return shown.cpu().numpy()

    @torch.inference_mode()
    def compose_layers(
        self, frames: DecodedLayers, eye_closures: Sequence[float] = ()
    ) -> np.ndarray:
        """Show the canvas with each of these faces, at the canvas's own sharpness.

        Args:
            frames: N of them.
            eye_closures: how far the eyes of each frame are to be closed; see `close_eyes`.

        Returns:
            `(N, H, W, 3)` uint8, new memory.
        """
        eye_closures = eye_closures or [0.0] * len(frames.flow)
        if self._source is None:
            pictures = frames.frames.clamp(-1, 1)
            close_eyes(pictures, frames.points, eye_closures)
            return self.compose(pictures)
        read: _CpuReader | _Reader
        if isinstance(self._source, np.ndarray):
            read = _CpuReader(self._source, frames, self._moving)
        else:
            read = _Reader(self._source, frames, self._moving)
        shown = self._canvas.expand(len(eye_closures), -1, -1, -1).clone()
        if any(eye_closures):
            faces = read(slice(0, self._side)).float()
            close_eyes(faces, frames.points, eye_closures, black=0)
            self._lay(shown, faces[:, :, self._box_rows], self._box_rows)
        else:
            height = max(1, _AT_ONCE_PX // self._side)
            for top in range(self._box_rows.start, self._box_rows.stop, height):
                rows = slice(top, min(top + height, self._box_rows.stop))
                self._lay(shown, read(rows), rows)
        return shown.cpu().numpy()

    def _lay(self, shown: Tensor, faces: Tensor, rows: slice) -> None:
        """Lay some rows of faces, `(N, 3, rows, side)` in [0, 255], over the canvas."""
        faces = faces[..., self._box_cols].permute(0, 2, 3, 1).float()
        here = slice(rows.start - self._box_rows.start, rows.stop - self._box_rows.start)
        mixed = torch.addcmul(self._offset[here], faces, self._gain[here])
        shown[:, self._rows, self._cols][:, here] = mixed.to(torch.uint8)


class _CpuReader:
    """Puts rows of N faces together from their layers, at the size of the box."""

    def __init__(self, source: np.ndarray, frames: DecodedLayers, moving: Tensor) -> None:
        self._source = source
        side = (len(source) + 1) // 2
        painted = _enlarge(_painted(frames), side).permute(0, 2, 3, 1)
        self._painted = painted.contiguous().numpy()
        # In pixels of the source, where each pixel of the box is two.
        flow = F.interpolate(frames.flow * moving * side, (side, side), mode="bilinear")
        axis = torch.arange(side, dtype=torch.float32) * 2
        self._columns = (flow[:, 0] + axis).numpy()
        self._rows = (flow[:, 1] + axis[:, None]).numpy()

    def __call__(self, rows: slice) -> Tensor:
        """Give `(N, 3, rows, side)` uint8."""
        each = zip(self._columns, self._rows, self._painted, strict=True)
        faces = []
        for columns, lines, painted in each:
            face = cv2.remap(
                self._source,
                columns[rows],
                lines[rows],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            faces.append(cv2.addWeighted(face, 1, painted[rows], 2, -256))
        return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)


class _Reader:
    """As `_CpuReader`, on any device."""

    def __init__(self, source: Tensor, frames: DecodedLayers, moving: Tensor) -> None:
        side = (source.shape[-1] + 1) // 2
        self._source = source.expand(len(frames.flow), -1, -1, -1)
        self._painted = _enlarge(_painted(frames), side)
        # The outermost pixels' centres are at -1 and 1 here; in a flow, the picture's edges are.
        flow = frames.flow * moving * (side / (side - 1))
        high = flow.shape[-2]
        self._flow = F.interpolate(flow, (high, side), mode="bilinear", align_corners=False)
        self._axis = torch.linspace(-1, 1, side, device=flow.device)
        self._place = (torch.arange(side, device=flow.device) + 0.5) * high / side - 0.5
        self._place = self._place.clamp_(0, high - 1)

    def __call__(self, rows: slice) -> Tensor:
        """Give `(N, 3, rows, side)` in [0, 255]."""
        above = self._place[rows].long()
        below = (above + 1).clamp(max=self._flow.shape[-2] - 1)
        share = (self._place[rows] - above)[:, None]
        upper, lower = (self._flow.index_select(2, line) for line in (above, below))
        grid = torch.lerp(upper, lower, share)
        grid[:, 0] += self._axis
        grid[:, 1] += self._axis[rows, None]
        grid = grid.permute(0, 2, 3, 1)
        faces = F.grid_sample(self._source, grid, padding_mode="border", align_corners=True)
        painted = self._painted[:, :, rows].float().sub_(128)
        return faces.add_(painted, alpha=2).clamp_(0, 255)


def _cut(canvas: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """Cut the box out; where it reaches beyond the canvas, the canvas is continued."""
    height, width = canvas.shape[:2]
    rows = np.arange(top, top + side).clip(0, height - 1)
    cols = np.arange(left, left + side).clip(0, width - 1)
    cut = canvas[rows[:, None], cols]
    box = fill_edges(cut, (-left, -top, width - left, height - top))
    real = np.s_[max(-top, 0) : height - top, max(-left, 0) : width - left]
    box[real] = cut[real]  # all of it: nothing has touched the canvas's edges
    return box


def _refined(pixels: np.ndarray) -> Tensor:
    """Give `(1, 3, 2 S - 1, 2 S - 1)` in [0, 255]: a pixel more between any two of `(S, S, 3)`.

    Reading this linearly costs a third of reading the original bicubically, and is as sharp.
    """
    fine = 2 * len(pixels) - 1
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    picture = F.interpolate(picture, (fine, fine), mode="bicubic", align_corners=True)
    return picture.clamp_(0, 255)


def _painted(frames: DecodedLayers) -> Tensor:
    """Give half of what painting changes, as uint8 around 128: `(N, 3, 256, 256)`."""
    return (frames.residual * (255 / 4) + 128.5).clamp_(0, 255).to(torch.uint8)


def _pixels(picture: Tensor) -> np.ndarray:
    """Turn `(1, 3, H, W)` in [0, 255] into `(H, W, 3)` uint8."""
    pixels: np.ndarray = (picture[0].permute(1, 2, 0) + 0.5).byte().contiguous().numpy()
    return pixels


def _enlarge(pixels: Tensor, side: int) -> Tensor:
    """Scale uint8 pictures `(N, 3, H, W)`; the values stay in [0, 255]."""
    size = (side, side)
    if pixels.device.type != "cpu":  # which has no kernel for uint8
        larger = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True)
        return larger.clamp_(0, 255)
    # On the CPU, uint8 in channels_last is ten times as fast as float (torch 2.13).
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return F.interpolate(pixels, size, mode="bicubic", antialias=True)


def _to_bytes(frames: Tensor) -> Tensor:
    assert frames.is_floating_point(), frames.dtype
    return (frames.float() * 127.5 + 128).clamp_(0, 255).to(torch.uint8)


def _fade(side: int) -> Tensor:
    """Give `(side, side)` in [0, 1]: 0 at the border, 1 inside, smooth, with round corners."""
    fade_px, radius_px = 0.12 * side, 0.35 * side
    axis = (torch.arange(side) + 0.5 - side / 2).abs()
    beyond = (axis - (side / 2 - radius_px)).clamp(min=0)
    straight = torch.maximum(axis[:, None], axis[None]) - side / 2
    corner = torch.hypot(beyond[:, None], beyond[None]) - radius_px
    in_corner = (beyond[:, None] > 0) & (beyond[None] > 0)
    depth_px = -torch.where(in_corner, corner, straight)
    rise = ((depth_px - 1) / fade_px).clamp(0, 1)  # the outermost pixel stays the canvas's
    return rise * rise * (3 - 2 * rise)
