"""The mouth compositor: inpaints the open mouths of frames, on the canvas.

After the faces are composited, the mouth of each frame is cropped along its landmarks, the region
between the lips is inpainted by the mouth painter, and the result is blended back with soft edges.
Crops have one size whatever the size of the frames, so the painter takes the mouths of several
sessions at once; only cropping and blending are done for each by itself.
Frames with closed lips are left as they are and take no time, unless the portrait's own lips are
parted: a warp leaves a line of its teeth where the lips should meet, and the painter covers it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, is_inner, masked_teeth
from letstalk_rt.models.autoencoder.teeth_light import shows_teeth, skin_light
from letstalk_rt.models.geometry.landmarks import LOWER_LIP, UPPER_LIP
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_SIZE,
    FINE,
    FINE_SIZE,
    CropTransform,
    align_mouths,
    aligned_centre,
    lip_gap_px,
    opening_mask,
)
from letstalk_rt.portrait.crop_blending import blend_crop, cut_crop

CLOSED_PX, OPEN_PX = 0.7, 1.7
"""Lip gaps in pixels of a crop: up to the first nothing is inpainted, and from the second on the
inpainted mouth is fully visible. A mouth is 68 px wide."""

PARTED_PX = 4.0
"""Lip gap from which a portrait's mouth shows its inside; its teeth, if they are in the light."""

_DILATION_PX = 1.0
"""How far inpainting extends onto the lips, which is the accuracy of landmarks."""

_SEAM_PX, _SEAM_GAP_PX = 1.5, 6.0
"""How much further it extends onto the closed lips of a parted portrait, and the lip gap from which
on it does not."""


@dataclass(frozen=True)
class OpenMouths:
    """The open mouths in frames of one session, cropped for the painter.

    Attributes:
        frames: M frames with open mouths, each `(H, W, 3)` uint8: views of what is shown.
        to_crop: from these frames to the crops.
        crops: `(M, 3, 80, 112)` in [-1, 1].
        opening: what is inpainted, `(M, 1, 160, 224)` in [0, 1].
        visibility: how visible that is, `(M,)` in [0, 1].
        points: landmarks `(M, L, 2)` in pixels of the crops.
        teeth: from `MouthPainter.encode_teeth`, `(1, C, 40, 56)`.
        sound: the sound around each frame, `(M, S)`; None if unknown.
    """

    frames: list[Tensor]
    to_crop: CropTransform
    crops: Tensor
    opening: Tensor
    visibility: Tensor
    points: Tensor
    teeth: Tensor
    sound: Tensor | None

    def blend(self, inside: Tensor) -> None:
        """Blend the inside of these mouths, `(M, 3, 160, 224)` in [-1, 1], into the frames."""
        alpha = self.opening * self.visibility[:, None, None, None]
        for n, frame in enumerate(self.frames):
            here = slice(n, n + 1)
            to_fine = self.to_crop[[n]].scaled(FINE)
            blend_crop(frame, inside[here], alpha[here], to_fine, FINE)


class MouthCompositor:
    """The mouth of one session; prepared once per portrait, never changed by a frame.

    Args:
        painter: the network.
        portrait: `(H, W, 3)` uint8, on the painter's device.
        points: its landmarks, `(1, L, 2)` in its pixels.
        seed: determines the teeth of a portrait that shows none.
    """

    def __init__(self, painter: MouthPainter, portrait: Tensor, points: Tensor, seed: int) -> None:
        self._painter = painter
        self._centre = aligned_centre(points)
        transform = align_mouths(points, self._centre)
        crop_points = transform(points)
        crop = cut_crop(portrait, transform.scaled(FINE), FINE_SIZE)
        opening = opening_mask(crop_points, resolution=FINE)
        coarse, coarse_opening = F.avg_pool2d(crop, FINE), F.avg_pool2d(opening, FINE)
        self._parted = float(lip_gap_px(crop_points)) >= PARTED_PX
        if self._parted and bool(shows_teeth(coarse, coarse_opening)):
            teeth = masked_teeth(crop, opening)
        else:
            teeth = painter.banked_teeth(seed, skin_light(coarse, coarse_opening))
        self._teeth = painter.encode_teeth(teeth)

    def __call__(self, frames: Tensor, points: Tensor) -> None:
        """Inpaint the open mouths of frames; see `crop_open`."""
        mouths = self.crop_open(frames, points)
        if mouths is not None:
            inpaint(self._painter, [mouths])

    def crop_open(
        self, frames: Tensor, points: Tensor, sound: Tensor | None = None
    ) -> OpenMouths | None:
        """Return the open mouths of frames, for `inpaint`; None if there are none.

        Args:
            frames: `(N, H, W, 3)` uint8; `inpaint` changes them in place.
            points: landmarks `(N, L, 2)` in their pixels.
            sound: the sound around each frame, `(N, S)`; None if unknown.
        """
        transform = align_mouths(points, self._centre)
        crop_points = transform(points)
        visibility, dilation = self._extent_of(crop_points)
        is_open = [i for i, share in enumerate(visibility.tolist()) if share > 0]
        if not is_open:
            return None
        here = crop_points[is_open]
        return OpenMouths(
            frames=[frames[i] for i in is_open],
            to_crop=transform[is_open],
            crops=torch.cat([cut_crop(frames[i], transform[[i]], CROP_SIZE) for i in is_open]),
            opening=opening_mask(here, dilation_px=dilation[is_open], resolution=FINE),
            visibility=visibility[is_open],
            points=here,
            teeth=self._teeth,
            sound=None if sound is None else sound[is_open],
        )

    def _extent_of(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return how visible inpainting is, and how far it extends onto the lips in px, `(B,)`.

        Args:
            points: landmarks `(B, L, 2)` in pixels of the crops.
        """
        gap = points[:, LOWER_LIP, 1] - points[:, UPPER_LIP, 1]  # below 0 where lips are pressed
        if not self._parted:
            visibility = ((gap - CLOSED_PX) / (OPEN_PX - CLOSED_PX)).clamp(0, 1)
            return visibility, torch.full_like(gap, _DILATION_PX)
        return torch.ones_like(gap), _DILATION_PX + _SEAM_PX * (1 - gap / _SEAM_GAP_PX).clamp(0, 1)


def inpaint(painter: MouthPainter, sessions: Sequence[OpenMouths]) -> None:
    """Inpaint open mouths of several sessions in place.

    The network runs once for all, or once for those in the middle of their crops and once for the
    others, because for the first it is faster: see `is_inner`.

    Args:
        painter: the network, which encoded their teeth.
        sessions: mouths of at least one session; the sound of all is known, or of none.
    """
    opening = F.avg_pool2d(torch.cat([one.opening for one in sessions]), FINE)
    inputs = [
        torch.cat([one.crops for one in sessions]),
        opening,
        torch.cat([one.points for one in sessions]),
        torch.cat([one.teeth.expand(len(one.crops), -1, -1, -1) for one in sessions]),
    ]
    heard = [one.sound for one in sessions if one.sound is not None]
    assert len(heard) in (0, len(sessions)), "all of one model"
    if heard:
        inputs.append(torch.cat(heard))
    inside = _inside(painter, inputs, is_inner(opening).tolist())
    for one, part in zip(sessions, inside.split([len(one.crops) for one in sessions]), strict=True):
        one.blend(part)


def _inside(painter: MouthPainter, inputs: Sequence[Tensor], fits: Sequence[bool]) -> Tensor:
    """Return the inside of mouths, `(B, 3, 160, 224)`.

    Args:
        painter: the network.
        inputs: its inputs for B mouths.
        fits: which openings lie in the middle of their crops.
    """
    if len(set(fits)) == 1:
        whole: Tensor = painter(*inputs, inner=fits[0])
        return whole
    inside = inputs[0].new_empty(len(fits), 3, *FINE_SIZE)
    for inner in (True, False):
        here = [i for i, fit in enumerate(fits) if fit == inner]
        inside[here] = painter(*[x[here] for x in inputs], inner=inner)
    return inside
