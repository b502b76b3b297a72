"""Convolutions with norms that are folded into them once they are trained."""

from copy import deepcopy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, whose norms cost nothing once it is trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels)
        self.conv2 = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        out: Tensor = x + self.conv2(F.silu(self.conv1(x)))
        return out


def conv(in_channels: int, out_channels: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def halved(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 2, 2, bias=False), nn.BatchNorm2d(out_channels)
    )


def without_norms(network: NetworkT) -> NetworkT:
    """Return a trained network for inference whose norms are folded into its convolutions."""
    folded = deepcopy(network).eval().requires_grad_(False)
    for module in folded.modules():
        if isinstance(module, nn.Sequential) and len(module) == 2:
            conv, norm = module
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
