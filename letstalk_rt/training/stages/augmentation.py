"""Augments normalised log-mel, so that what is learned does not depend on voice or microphone."""

import torch
from torch import Tensor

from letstalk_rt.models.audio_encoder.mel import MEL_PER_FRAME

_MASKED_SHARE = 0.156  # largest share of the bands that are masked


def augment_features(features: Tensor, generator: torch.Generator) -> Tensor:
    """Augment features `(B, T, 4 M)`: spectral tilt, noise, a noise floor, masked bands."""
    batch, time = features.shape[:2]
    num_bands = features.shape[2] // MEL_PER_FRAME
    x = features.view(batch, -1, num_bands).clone()

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    x += 0.2 * normal(1, num_bands)
    x += 0.1 * uniform(1, 1) * normal(*x.shape[1:])
    floor = x.mean((1, 2), keepdim=True) + 0.5 * normal(1, 1) - 0.67
    noisy = torch.logaddexp(3 * x, 3 * floor) / 3
    x = torch.where(uniform(1, 1) < 0.3, noisy, x)
    bands, widest = torch.arange(num_bands), num_bands * _MASKED_SHARE
    first = (uniform(1, 1) * (num_bands - widest)).floor()
    masked = (bands >= first) & (bands < first + widest * uniform(1, 1)) & (uniform(1, 1) < 0.5)
    return torch.where(masked, 0.0, x).view(batch, time, -1)
