"""Chooses the bank of teeth: what the mouth painter shows of portraits with closed lips.

Taken are stills of the train split with a sharp front view of white, close teeth, as the trained
painter inpaints them, so that the bank consists of its own output.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, masked_teeth
from letstalk_rt.models.autoencoder.teeth_light import (
    TeethLight,
    light_inside,
    relit,
    skin_light,
    teeth_mask,
)
from letstalk_rt.models.geometry.landmarks import INNER_CORNERS
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_CENTRE,
    FINE,
    FINE_SIZE,
    lip_gap_px,
    opening_mask,
)
from letstalk_rt.training.data.mouth_crops import KINDS, MARGIN_PX, MouthCrops

GAP_PX = (9.0, 22.0)
"""Lip gaps of a smile that shows its teeth: below there is little to see, above the jaw is open."""

MAX_SATURATION = 0.3
BRIGHTNESS = (-0.1, 0.45)
"""Colours of teeth in daylight: the mean distance of the highest from the lowest channel, and the
mean of all, in [-1, 1]."""

MIN_SHARPNESS = 0.05
DARK = 0.45
"""Mean step between neighbouring pixels below which teeth are blurred; how much darker than the
mean of the opening a gap between teeth is."""

USUAL_WIDTH_PX = 64.0
"""Width of a mouth that shows its teeth; narrower ones show fewer, and score less."""

SOFTENED = 4
"""How often pictures of teeth are softened."""

MAX_TILT = 0.12
MAX_OFFSET_PX = 6.0
"""How far the corners of the mouth may differ in height, over its width, and how far the middle of
the mouth may lie beside that of the face: beyond, the head is turned."""


@torch.no_grad()
def fit_bank(model: MouthPainter, mouths: MouthCrops) -> int:
    """Set the bank of a trained painter; return how many pictures of teeth were found for it.

    If fewer fit than the bank has places, they are repeated; if none does, it stays empty, and the
    painter inpaints as without teeth.

    Args:
        model: the trained painter.
        mouths: the crops of the train split.
    """
    rows = np.flatnonzero(mouths.kind == KINDS.index("portrait"))
    if not len(rows):
        return 0
    middle = tuple(slice(FINE * MARGIN_PX, FINE * MARGIN_PX + side) for side in FINE_SIZE)
    fine = torch.from_numpy(mouths.stills[rows][:, middle[0], middle[1]])
    fine = fine.permute(0, 3, 1, 2).float() / 127.5 - 1
    portraits = F.avg_pool2d(fine, FINE)
    landmarks = torch.from_numpy(mouths.points[rows]) - MARGIN_PX
    score = rate_teeth(portraits, landmarks)
    chosen = score.argsort(descending=True)[: model.config.bank]
    chosen = chosen[score[chosen] > 0]
    if len(chosen):
        crops, fine, points = portraits[chosen], fine[chosen], landmarks[chosen]
        opening = opening_mask(points, resolution=FINE)
        teeth = model.encode_teeth(masked_teeth(fine, opening))
        painted = model(crops, opening_mask(points), points, teeth)
        places = torch.arange(model.config.bank) % len(chosen)
        # The painter deepens the gaps between teeth, and it will be applied to the bank again.
        teeth = masked_teeth(soften(painted, times=SOFTENED), opening)
        light = fit_light(portraits[score > 0], landmarks[score > 0])
        model.set_bank(_in_mean_light(teeth, light)[places], light)
    return len(chosen)


def _in_mean_light(teeth: Tensor, light: TeethLight) -> Tensor:
    """Return pictures of teeth in the colour of the mean light; their brightness stays."""
    colours = teeth[:, :3] / teeth[:, 3:].clamp(min=1e-3)
    change = light.teeth - light_inside(colours, teeth_mask(colours, teeth[:, 3:]))
    return relit(teeth, change * change.new_tensor([1.0, 1.0, 0.0]))


def fit_light(crops: Tensor, points: Tensor) -> TeethLight:
    """Fit how the light on teeth depends on that on the skin, by least squares.

    Args:
        crops: portraits with white teeth, `(B, 3, 80, 112)` in [-1, 1].
        points: landmarks `(B, L, 2)` in pixels of the crops.
    """
    opening = opening_mask(points)
    teeth = teeth_mask(crops, opening)
    skin, found = skin_light(crops, opening), light_inside(crops, teeth)
    apart, moved = skin - skin.mean(0), found - found.mean(0)
    slope = (apart * moved).sum(0) / apart.square().sum(0).clamp(min=1e-6)
    return TeethLight(skin.mean(0), found.mean(0), slope)


def soften(crops: Tensor, *, times: int = 1) -> Tensor:
    """Return crops averaged over three columns with the weights 1, 2, 1, several times."""
    for _ in range(times):
        padded = F.pad(crops, (1, 1, 0, 0), mode="replicate")
        crops = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    return crops


def rate_teeth(crops: Tensor, points: Tensor) -> Tensor:
    """Return how well teeth are shown, `(B,)`; 0 of what does not fit.

    It is the share of the opening that is not dark, less for narrow mouths.

    Args:
        crops: `(B, 3, 80, 112)` in [-1, 1].
        points: landmarks `(B, L, 2)` in pixels of the crops.
    """
    opening = (opening_mask(points) > 0.5).float()

    def mean(values: Tensor) -> Tensor:
        return (values * opening).sum((1, 2, 3)) / opening.sum((1, 2, 3)).clamp(min=1)

    light = crops.mean(1, keepdim=True)
    saturation = mean(crops.amax(1, keepdim=True) - crops.amin(1, keepdim=True))
    brightness, sharpness = mean(light), mean(F.pad(light.diff(dim=3).abs(), (0, 1)))
    dark = mean((light < brightness[:, None, None, None] - DARK).float())
    left, right = (points[:, i] for i in INNER_CORNERS)
    tilt = (right - left)[:, 1].abs() / (right - left)[:, 0].clamp(min=1)
    offset = ((left + right)[:, 0] / 2 - CROP_CENTRE[0]).abs()
    gap = lip_gap_px(points)
    fits = (gap > GAP_PX[0]) & (gap < GAP_PX[1]) & (tilt < MAX_TILT) & (offset < MAX_OFFSET_PX)
    fits &= (saturation < MAX_SATURATION) & (sharpness > MIN_SHARPNESS)
    fits &= (brightness > BRIGHTNESS[0]) & (brightness < BRIGHTNESS[1])
    width = (right - left).norm(dim=-1) / USUAL_WIDTH_PX
    score: Tensor = (1 - dark) * width.clamp(max=1) * fits
    return score
