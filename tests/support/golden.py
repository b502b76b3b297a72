"""Weights and inputs that any implementation can be given: fixed, without a random generator."""

import math

import torch
from torch import Tensor, nn


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    """Return fixed values in [-1, 1] that look random, float32; `sin(0.7 i^2 + phase)`."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.7 * count**2 + phase).view(shape).float()


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Set all parameters to waves of a usual size, in the order of their names."""
    for phase, (name, value) in enumerate(sorted(module.named_parameters())):
        if value.ndim > 1:
            size = (2 / value[0].numel()) ** 0.5
            value.copy_(size * wave(*value.shape, phase=phase))
        else:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(centre + 0.3 * wave(*value.shape, phase=phase))


def sample(values: Tensor, count: int = 8) -> list[float]:
    """Return some values, evenly spaced over a tensor, with their mean and deviation at the end."""
    flat = values.detach().double().flatten()
    chosen = flat[torch.linspace(0, len(flat) - 1, count).round().long()]
    return [*chosen.tolist(), float(flat.mean()), float(flat.std())]
