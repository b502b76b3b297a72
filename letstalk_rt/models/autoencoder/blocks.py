"""Convolutional blocks of the autoencoder's networks.

Source: residual shortcuts of the down-sampling: DC-AE, arXiv:2410.10733, section 3.2.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ResBlock(nn.Module):
    """A residual block of two 3x3 convolutions; a style vector scales and shifts between them."""

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)
        self.style = nn.Linear(style, 2 * channels) if style else None

    def forward(self, x: Tensor, styled: Tensor | None = None) -> Tensor:
        """Map `(B, C, H, W)` to the same shape; `styled` is the output of `style`, `(B, 2 C)`."""
        h = self.conv1(F.silu(x))
        if styled is not None:
            scale, shift = styled[..., None, None].chunk(2, 1)
            h = torch.addcmul(shift, h, 1 + scale)
        out: Tensor = x + self.conv2(F.silu(h))
        return out


class ReluBlock(nn.Module):
    """A residual block of two 3x3 convolutions, as the painters of mouth and eyes use it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        residual: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return x + residual


class Down(nn.Module):
    """Halve height and width; the shortcut unshuffles pixels and averages groups of channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        assert 4 * in_channels % out_channels == 0, (in_channels, out_channels)
        self.conv = nn.Conv2d(4 * in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C', H/2, W/2)`."""
        x = F.pixel_unshuffle(x, 2)
        out = self.conv.out_channels
        halved: Tensor = self.conv(x) + rearrange(x, "b (o g) h w -> b o g h w", o=out).mean(2)
        return halved

    def as_convolution(self) -> nn.Conv2d:
        """Return the same map as one convolution, which takes a fifth of the time on a CPU."""
        out, shares = self.conv.weight.shape[:2]
        group = shares // out
        weight = self.conv.weight.detach()[:, :, 0, 0].clone()
        weight += torch.eye(out).to(weight).repeat_interleave(group, 1) / group
        conv = nn.Conv2d(shares // 4, out, 2, stride=2).to(weight)
        conv.weight = nn.Parameter(weight.view(out, shares // 4, 2, 2))
        conv.bias = self.conv.bias
        return conv


class Up(nn.Module):
    """Double height and width by a pixel shuffle."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C', 2H, 2W)`."""
        return F.pixel_shuffle(self.conv(x), 2)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)`."""
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed


class NormBlock(nn.Module):
    """A residual block of two normalised 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        out: Tensor = x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return out


def for_inference(network: nn.Module) -> nn.Module:
    """Make a network faster on a CPU, in place, and return it; it cannot be trained any more."""
    for name, part in network.named_children():
        if isinstance(part, Down):
            setattr(network, name, part.as_convolution())
        else:
            for_inference(part)
    for part in network.children():
        if isinstance(part, nn.Conv2d):
            weight = part.weight.detach().contiguous(memory_format=torch.channels_last)
            part.weight = nn.Parameter(weight)
    return network
