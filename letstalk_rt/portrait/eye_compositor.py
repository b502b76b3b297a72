"""The eye compositor: shows the eyes of composited frames as their landmarks want them.

A warp on a coarse grid neither closes lids nor turns an iris. So after the face is composited, the
eye painter is asked for both eyes: what it takes from the portrait is sampled at the sharpness of
the canvas, what it paints has the size of its crops. Brows and skin stay as they were composited.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.geometry.eye_region import (
    EYE_SIZE,
    OPENING,
    align_eyes,
    closed_by,
    eye_maps,
    eye_points,
    iris_flow,
    moved_eyes,
    painted_part,
)
from letstalk_rt.models.geometry.mouth_crop import CropTransform
from letstalk_rt.portrait.crop_blending import blend_crop, cut_crop

_FINE_SHARE, _MOST_FINE = 1.5, 4
"""Pixels of a portrait's crop per pixel of the canvas, and the most per pixel of a network's."""

_STILL_PX, _MOVED_PX = 0.25, 0.6
"""Eyes whose landmarks differ from the portrait's by less than the first are left to the warp, and
from the second on are shown as painted; an eye is 40 px wide."""

_EYES = (0, 1)


class EyeCompositor:
    """The eyes of one portrait; prepared once, never changed by a frame.

    Args:
        painter: the network.
        portrait: `(H, W, 3)` uint8, on the painter's device.
        points: its landmarks, `(1, L, 2)` in its pixels.
        unit_points: the same as its latent encodes them, in [-1, 1].
    """

    def __init__(
        self, painter: EyePainter, portrait: Tensor, points: Tensor, unit_points: Tensor
    ) -> None:
        self._painter, self._unit_points = painter, unit_points
        places = [align_eyes(points, eye) for eye in _EYES]
        size = min(float(place.scale) for place in places)
        self._fine = min(_MOST_FINE, math.ceil(_FINE_SHARE / max(size, 1e-3)))
        fine_size = (self._fine * EYE_SIZE[0], self._fine * EYE_SIZE[1])
        self._portrait = torch.cat(
            [_cut(portrait, places[eye].scaled(self._fine), eye, fine_size) for eye in _EYES]
        )
        self._eyes = torch.stack([eye_points(points, eye, places[eye])[0] for eye in _EYES])
        coarse = torch.cat([_cut(portrait, places[eye], eye, EYE_SIZE) for eye in _EYES])
        maps = eye_maps(self._eyes)
        self._encoded, self._opening = painter.encode_portrait(coarse, maps), maps[:, OPENING]
        self._part = painted_part(coarse)
        self._opacity = painted_part(coarse, self._fine)

    def motion(self, unit_points: Tensor) -> Tensor:
        """Return how the eyes have moved in frames, `(N, 4)`.

        Args:
            unit_points: landmarks that their latents encode, `(N, L, 2)` in [-1, 1].
        """
        return self._painter.motion(unit_points, self._unit_points)

    @torch.inference_mode()
    def __call__(
        self,
        frames: Tensor,
        points: Tensor,
        motion: Tensor,
        eye_closures: Sequence[tuple[float, float]],
    ) -> None:
        """Show the eyes of frames as wanted, in place.

        Args:
            frames: `(N, H, W, 3)` uint8.
            points: their landmarks, `(N, L, 2)` in their pixels.
            motion: how far lids and irises are from the portrait's, `(N, 4)`: see `moved_eyes`.
            eye_closures: how far each frame closes its eyes beyond that: 0 not at all, 1 fully;
                the eye on the left of the image first.
        """
        assert len(eye_closures) == len(frames) == len(points), (len(eye_closures), len(frames))
        places = [align_eyes(points, eye) for eye in _EYES]
        closures = self._eyes.new_tensor(list(eye_closures))
        wanted = torch.stack(
            [
                closed_by(moved_eyes(self._eyes[eye], motion, eye), closures[:, eye])
                for eye in _EYES
            ],
            1,
        )
        moved = (wanted - self._eyes).norm(dim=-1).amax(-1).amax(-1)
        opacity = ((moved - _STILL_PX) / (_MOVED_PX - _STILL_PX)).clamp(0, 1)
        shown = opacity.nonzero()[:, 0].tolist()
        if not shown:
            return
        around = torch.cat(
            [_cut(frames[n], places[eye][[n]], eye, EYE_SIZE) for n in shown for eye in _EYES]
        )
        encoded, portrait = (x.repeat(len(shown), 1, 1, 1) for x in (self._encoded, self._portrait))
        eyes = wanted[shown].flatten(0, 1)
        known = iris_flow(self._eyes.repeat(len(shown), 1, 1), eyes)
        maps = eye_maps(eyes)
        painted = self._painter(encoded, around * (self._part == 0), maps, known)
        before = self._opening.repeat(len(shown), 1, 1, 1)
        regions = painted.shown(portrait, torch.cat([before, maps[:, OPENING]], 1))
        for index, n in enumerate(shown):
            alpha = self._opacity * opacity[n]
            for eye in _EYES:
                colours = regions[2 * index + eye][None]
                colours = colours.flip(-1) if eye else colours
                to_fine = places[eye][[n]].scaled(self._fine)
                blend_crop(frames[n], colours, alpha, to_fine, self._fine)


def _cut(frame: Tensor, place: CropTransform, eye: int, size: tuple[int, int]) -> Tensor:
    """Cut an eye from a frame, mirrored for a left eye: `(1, 3, *size)` in [-1, 1]."""
    crop = cut_crop(frame, place, size)
    return crop.flip(-1) if eye else crop
