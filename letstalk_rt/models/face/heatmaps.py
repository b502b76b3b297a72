"""Landmarks from heat maps, and how certain they are: those of a face lie in few cells each."""

import functools

import torch
from torch import Tensor

LEAST_CERTAINTY = 0.6
"""Least certainty of a face. Faces have 0.7 to 0.9; upside down, in noise or covered, 0.45."""

_SPREAD = 0.25  # per squared cell


def read_heatmaps(heat: Tensor) -> tuple[Tensor, Tensor]:
    """Return landmarks and how certain they are from heat maps `(B, L, h, w)` of logits.

    Returns:
        The landmarks, `(B, L, 2)` in [-1, 1]; and the certainty, `(B,)`: 1 if each map is a point,
        less the wider it is.
    """
    height, width = heat.shape[-2:]
    share = torch.softmax(heat.flatten(2), -1)
    moments = share @ _cell_moments(height, width, heat.device).to(share)
    place, square = moments[..., :2], moments[..., 2:]
    spread = (square - place**2).sum(-1)
    sides = place.new_tensor([width, height])
    return place * (2 / sides), (1 / (1 + _SPREAD * spread)).mean(-1)


@functools.cache
def _cell_moments(height: int, width: int, device: torch.device) -> Tensor:
    """Return x, y and their squares of the cells of a map, from its middle: `(h * w, 4)`."""
    with torch.inference_mode(False):
        x, y = (torch.arange(n, device=device) + 0.5 - n / 2 for n in (width, height))
        places = torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)
        return torch.cat([places, places**2], -1)


def certainty(heat: Tensor) -> Tensor:
    """Return how certain heat maps `(B, L, h, w)` of logits are; see `read_heatmaps`."""
    return read_heatmaps(heat)[1]
