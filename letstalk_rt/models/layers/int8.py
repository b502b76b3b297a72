"""Convolutions in 8-bit integers, for CPUs without fast 16-bit arithmetic.

Weights are quantized once, per output channel; inputs at each call, per tensor. Small convolutions
are not quantized: quantizing their input would cost more than it saves.

Without VNNI, oneDNN adds pairs of products in 16 bits, which saturate (`vpmaddubsw`). There weights
have seven bits: then two products of the largest inputs and weights fit.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

MIN_WEIGHTS = 20_000
"""Number of weights from which a convolution is quantized."""

_ZERO = 128
_FULL_RANGE, _REDUCED_RANGE = 127, 63
_PROBE_SIZE = 64  # channels and pixels of the probe: as in the decoder, whose kernels differ


class Int8Conv2d(nn.Module):
    """An 8-bit replacement for a `Conv2d`, for inference on a CPU.

    Args:
        conv: the convolution to replace, with zero padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.out_channels = conv.out_channels
        weight = conv.weight.detach().float()
        largest = _REDUCED_RANGE if products_saturate() else _FULL_RANGE
        self.scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / largest
        levels = (weight / self.scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.shape = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        ops: Any = torch.ops.onednn
        self.weight = ops.qconv_prepack(levels, self.scale, 1.0, _ZERO, *self.shape, None)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, C, H, W)`, float32."""
        scale = max(float(x.abs().amax()), 1e-12) / 127
        # 0.5 is added because the cast truncates.
        levels = torch.mul(x, 1 / scale).add_(_ZERO + 0.5).clamp_(1, 255).to(torch.uint8)
        ops: Any = torch.ops.onednn
        convolved: Tensor = ops.qconv2d_pointwise(
            levels, scale, _ZERO, self.weight, self.scale, self.zeros, self.bias, *self.shape,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return convolved


@functools.cache
def products_saturate() -> bool:
    """Return whether sums of 8-bit products saturate on this CPU.

    It is tried, with the largest inputs and weights, because the kernel that oneDNN takes depends
    on the processor, on the limit in `ONEDNN_MAX_CPU_ISA` and on its version.
    """
    size, largest = _PROBE_SIZE, float(_FULL_RANGE)
    ops: Any = torch.ops.onednn
    shape = ([1, 1], [0, 0], [1, 1], 1)
    weight = torch.full((size, size, 1, 1), _FULL_RANGE, dtype=torch.int8)
    scale, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int32)
    packed = ops.qconv_prepack(weight, scale, 1.0, 0, *shape, None)
    levels = torch.full((1, size, size, size), 255, dtype=torch.uint8)
    levels = levels.contiguous(memory_format=torch.channels_last)
    sums = ops.qconv2d_pointwise(
        levels, 1.0, 0, packed, scale, zeros, None, *shape, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return bool((sums != 255 * largest * size).any())


def is_supported() -> bool:
    """Return whether torch and this CPU support 8-bit convolutions."""
    has_kernel = hasattr(torch.ops.onednn, "qconv2d_pointwise")
    return has_kernel and torch.backends.mkldnn.is_available()


def quantize(module: nn.Module) -> nn.Module:
    """Replace a module's large convolutions by 8-bit ones, in place, and return it."""
    for name, part in module.named_children():
        if isinstance(part, nn.Conv2d) and part.weight.numel() >= MIN_WEIGHTS:
            setattr(module, name, Int8Conv2d(part))
        else:
            quantize(part)
    return module
