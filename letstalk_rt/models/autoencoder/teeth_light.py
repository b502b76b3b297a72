"""The light on a face, and teeth under another light.

Teeth that are borrowed from a bank were photographed in another light. How the colour of teeth
depends on that of the skin around them is measured on frames that show both.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LIGHT_VALUES = 3
"""Logarithms of red over green, of blue over green, and of the mean of the three."""

BRIGHT = 0.1
"""How much brighter than the mean of an opening its teeth are."""

_TOOTH_LIGHT, _TEETH_AREA_PX = 0.8, 80
"""Brightness of teeth over that of the skin around the mouth, at least, and the area in pixels of a
crop from which they are said to be visible."""

_MARGIN_PX = 4  # around the opening; nearer pixels may show its inside
_DARKEST = 0.02
_LARGEST_CHANGE = 0.7  # of a value; beyond, the portrait is tinted rather than lit


@dataclass(frozen=True)
class TeethLight:
    """How the light on teeth depends on the light on the skin: a line for each value.

    Attributes:
        skin: the mean light on the skin, `(3,)`.
        teeth: the mean light on teeth, `(3,)`.
        slope: change of the light on teeth per change of that on the skin, `(3,)`.
    """

    skin: Tensor
    teeth: Tensor
    slope: Tensor

    def change(self, skin: Tensor) -> Tensor:
        """Return how much the light on teeth differs from the mean, given that on skin `(B, 3)`."""
        return (self.slope * (skin - self.skin)).clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE)


def skin_light(crops: Tensor, opening: Tensor) -> Tensor:
    """Return the light on what surrounds the openings of crops, `(B, 3)`.

    Args:
        crops: `(B, 3, H, W)` in [-1, 1].
        opening: `(B, 1, H, W)` in [0, 1].
    """
    size = 2 * _MARGIN_PX + 1
    return light_inside(crops, (F.max_pool2d(opening, size, 1, _MARGIN_PX) == 0).float())


def teeth_mask(crops: Tensor, opening: Tensor) -> Tensor:
    """Return which pixels inside openings are bright enough to be teeth, `(B, 1, H, W)`."""
    inside, light = (opening > 0.5).float(), crops.mean(1, keepdim=True)
    mean = (light * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)
    return inside * (light > mean[:, None, None, None] + BRIGHT)


def shows_teeth(crops: Tensor, opening: Tensor) -> Tensor:
    """Return whether teeth are visible in openings, `(B,)` bool; an open mouth may be dark.

    Args:
        crops: `(B, 3, 80, 112)` in [-1, 1].
        opening: `(B, 1, 80, 112)` in [0, 1].
    """
    skin = skin_light(crops, opening)[:, 2].exp()
    light = (crops.mean(1, keepdim=True) + 1) / 2
    bright = (opening > 0.5) & (light > _TOOTH_LIGHT * skin[:, None, None, None])
    return bright.sum((1, 2, 3)) >= _TEETH_AREA_PX


def light_inside(crops: Tensor, mask: Tensor) -> Tensor:
    """Return the light on what a mask `(B, 1, H, W)` selects from crops, `(B, 3)`."""
    weight = mask / mask.sum((2, 3), keepdim=True).clamp(min=1)
    mean = ((crops + 1) / 2 * weight).sum((2, 3)).clamp(min=_DARKEST)
    red, green, blue = mean.unbind(1)
    return torch.stack([(red / green).log(), (blue / green).log(), mean.mean(1).log()], 1)


def relit(teeth: Tensor, change: Tensor) -> Tensor:
    """Return pictures of teeth `(B, 4, H, W)`, see `masked_teeth`, with their light changed.

    Args:
        teeth: the pictures.
        change: by how much, `(B, 3)`.
    """
    red, blue, brightness = change.unbind(1)
    gains = torch.stack([red.exp(), torch.ones_like(red), blue.exp()], 1)
    gains = gains / gains.mean(1, keepdim=True) * brightness.exp()[:, None]
    mask = teeth[:, 3:]
    # Masked colours are c * m, with c in [-1, 1] and m the mask.
    colours = (teeth[:, :3] + mask) * gains[:, :, None, None] - mask
    return torch.cat([torch.maximum(torch.minimum(colours, mask), -mask), mask], 1)
