"""The region painter: shows a region of a portrait as given landmarks ask for.

It gets the region of the portrait, the surroundings of that region in the frame to be shown, maps
of the landmarks in both, and a flow that follows from these landmarks by a formula. It says for
each pixel where in the portrait it comes from, how much of it comes from there, and which colour
the rest has. So what only moves, such as an iris, is moved at the portrait's own sharpness, and
only what the portrait does not show is painted.

Source: flow with an occlusion map, First Order Motion Model, arXiv:2003.00196.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.blocks import ReluBlock

_CELL = 4
"""Pixels of a region along each side of a pixel of the network."""

_MOST_FLOW_PX = 12.0
_KEPT_AT_FIRST = 2.0  # a logit
_OUTPUTS = 2 + 1 + 3  # flow, share, colours
_SMOOTH_PX = 6  # pixels of a region over which what is painted is smooth
_ALIKE = 0.35  # colours that differ by more do not show the same


@dataclass(frozen=True)
class RegionPainterConfig:
    """Shape of a region painter.

    Attributes:
        maps: channels of the maps of landmarks.
        widths: channels at a quarter and at an eighth of the region's size.
    """

    maps: int = 4
    widths: tuple[int, int] = (40, 80)


@dataclass(frozen=True)
class PaintedRegion:
    """What a region shows.

    Attributes:
        flow: how far from a pixel the portrait shows it, x and y in pixels, `(B, 2, H, W)`.
        kept: how much of it comes from there, `(B, 1, H, W)` in [0, 1].
        colours: what the rest is, `(B, 3, H, W)`, about in [-1, 1].
    """

    flow: Tensor
    kept: Tensor
    colours: Tensor

    def shown(self, portrait: Tensor, openings: Tensor | None = None) -> Tensor:
        """Return the pixels `(B, 3, r H, r W)`, given the portrait's region at r times the size.

        Args:
            portrait: the region, `(B, 3, r H, r W)`.
            openings: where there is an opening, of the eye, in the portrait and as wanted,
                `(B, 2, H, W)` in [0, 1]. What is painted is as smooth as video; with them it gets
                the portrait's pores, lashes and wrinkles where the portrait shows the same.
        """
        flow, kept, colours = self.flow, self.kept, self.colours
        height, width = flow.shape[-2:]
        if portrait.shape[-1] != width:
            both = torch.cat([flow, kept, colours], 1)
            both = F.interpolate(both, portrait.shape[-2:], mode="bilinear", align_corners=False)
            flow, kept, colours = both.split([2, 1, 3], 1)
        half = flow.new_tensor([width / 2, height / 2])
        grid = _positions(flow) + flow.permute(0, 2, 3, 1) / half
        moved = F.grid_sample(portrait, grid, padding_mode="border", align_corners=False)
        shown = torch.lerp(colours, moved, kept)
        if openings is None:
            return shown
        detail, alike = _detail(moved, colours, _SMOOTH_PX * portrait.shape[-1] // width)
        before, after = openings.split(1, 1)
        before = F.grid_sample(before, grid, padding_mode="border", align_corners=False)
        after = F.interpolate(after, portrait.shape[-2:], mode="bilinear", align_corners=False)
        return shown + (1 - kept) * alike * (1 - (after - before).abs()) * detail


def _detail(moved: Tensor, colours: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return what pixels have that smooth ones lack, and where their colours are alike, in [0, 1].

    Args:
        moved: pixels of the portrait, `(B, 3, H, W)`.
        colours: what is painted, likewise.
        side: pixels over which both are averaged.
    """
    low, painted = (F.avg_pool2d(x, side, ceil_mode=True) for x in (moved, colours))
    alike = (1 - (low - painted).abs().mean(1, keepdim=True) / _ALIKE).clamp(0, 1)
    both = torch.cat([low, alike], 1)
    both = F.interpolate(both, moved.shape[-2:], mode="bilinear", align_corners=False)
    return moved - both[:, :3], both[:, 3:]


class RegionPainter(nn.Module):
    """A small U-Net over a region, at a quarter of its size.

    Args:
        config: its shape.
    """

    def __init__(self, config: RegionPainterConfig) -> None:
        super().__init__()
        self.config = config
        fine, coarse = config.widths
        self._reference_inputs = _CELL**2 * (3 + config.maps)
        self.stem = nn.Conv2d(2 * self._reference_inputs, fine, 3, padding=1)
        self.fine_in = ReluBlock(fine)
        self.down = nn.Conv2d(fine, coarse, 4, stride=2, padding=1)
        self.coarse = nn.Sequential(ReluBlock(coarse), ReluBlock(coarse), ReluBlock(coarse))
        self.up = nn.Conv2d(coarse, 4 * fine, 1)
        self.fine_out = nn.Sequential(ReluBlock(fine), ReluBlock(fine))
        self.head = nn.Conv2d(fine, _OUTPUTS * _CELL**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def encode_portrait(self, portrait: Tensor, maps: Tensor) -> Tensor:
        """Encode a portrait's region, once for all frames of a session.

        Args:
            portrait: `(B, 3, H, W)` in [-1, 1].
            maps: of its landmarks, `(B, M, H, W)`.

        Returns:
            Features, `(B, C, H / 4, W / 4)`.
        """
        weight = self.stem.weight[:, : self._reference_inputs]
        parts = _cells(torch.cat([portrait, maps], 1), weight)
        return F.conv2d(parts, weight, self.stem.bias, padding=1)

    def forward(
        self, encoded: Tensor, around: Tensor, maps: Tensor, known_flow: Tensor
    ) -> PaintedRegion:
        """Paint regions.

        Args:
            encoded: from `encode_portrait`, `(B, C, H / 4, W / 4)`.
            around: the frames' regions, `(B, 3, H, W)`, 0 where they shall be painted.
            maps: of the landmarks wanted, `(B, M, H, W)`.
            known_flow: the flow by landmarks, which the network corrects, px, `(B, 2, H, W)`.
        """
        weight = self.stem.weight[:, self._reference_inputs :]
        parts = _cells(torch.cat([around, maps], 1), weight)
        fine = self.fine_in(encoded + F.conv2d(parts, weight, padding=1))
        coarse = self.coarse(self.down(fine))
        fine = self.fine_out(fine + F.pixel_shuffle(self.up(coarse), 2))
        made = F.pixel_shuffle(self.head(F.relu(fine)), _CELL).float()
        flow, kept, colours = made.split([2, 1, 3], 1)
        flow = known_flow + _MOST_FLOW_PX * torch.tanh(flow)
        return PaintedRegion(flow, torch.sigmoid(kept + _KEPT_AT_FIRST), colours)


def _cells(x: Tensor, like: Tensor) -> Tensor:
    """Return images as cells of 4 px, in the format of a weight."""
    parts = F.pixel_unshuffle(x, _CELL).to(like.dtype)
    return parts.contiguous(memory_format=torch.channels_last)


def _positions(flow: Tensor) -> Tensor:
    """Return the positions of the pixels for `grid_sample`, `(H, W, 2)`."""
    height, width = flow.shape[-2:]
    x = (torch.arange(width, device=flow.device) + 0.5) * (2 / width) - 1
    y = (torch.arange(height, device=flow.device) + 0.5) * (2 / height) - 1
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)
