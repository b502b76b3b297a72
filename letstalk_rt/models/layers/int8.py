"""Convolutions in 8-bit integers, for processors that are fast in nothing shorter than float32.

Weights are rounded once, per output channel; inputs at each call, per tensor. Small convolutions
stay as they are: rounding their input would cost more than it saves.
"""

from typing import Any

import torch
from torch import Tensor, nn

WORTH_ROUNDING = 20_000
"""Weights a convolution needs to be worth it."""

_ZERO = 128


class Int8Conv2d(nn.Module):
    """Takes the place of a `Conv2d`, for inference on a CPU.

    Args:
        conv: with zero padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach().float()
        self.scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        levels = (weight / self.scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.shape = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        ops: Any = torch.ops.onednn
        self.weight = ops.qconv_prepack(levels, self.scale, 1.0, _ZERO, *self.shape, None)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, C, H, W)` float32."""
        scale = max(float(x.abs().amax()), 1e-12) / 127
        # The half rounds, as the cast cuts off.
        levels = torch.mul(x, 1 / scale).add_(_ZERO + 0.5).clamp_(1, 255).to(torch.uint8)
        ops: Any = torch.ops.onednn
        convolved: Tensor = ops.qconv2d_pointwise(
            levels, scale, _ZERO, self.weight, self.scale, self.zeros, self.bias, *self.shape,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return convolved


def is_supported() -> bool:
    """Say whether this torch and this processor have what it takes."""
    known = hasattr(torch.ops.onednn, "qconv2d_pointwise")
    return known and torch.backends.mkldnn.is_available()


def quantize(module: nn.Module) -> nn.Module:
    """Put 8-bit convolutions in the place of a module's large ones; changes and gives it."""
    for name, part in module.named_children():
        if isinstance(part, nn.Conv2d) and part.weight.numel() >= WORTH_ROUNDING:
            setattr(module, name, Int8Conv2d(part))
        else:
            quantize(part)
    return module
