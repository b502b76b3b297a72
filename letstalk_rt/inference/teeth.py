"""How the inside of a mouth looks: from the frame of the film that shows most of it, sharply."""

import torch
from torch import Tensor

from letstalk_rt.inference.face_reader import FilmedFace
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter
from letstalk_rt.models.geometry.mouth_crop import align_heads, lip_gap_px
from letstalk_rt.portrait.mouth_compositor import PARTED_PX, MouthCompositor

_ENOUGH_PX = 14.0
"""Lip gap from which a wider one shows no more of the teeth."""

_BETTER = 1.15
"""By what factor a picture must be better to replace the present one."""

_CLOSED = 0.02
"""Lip gap, in mouth widths, up to which a change of the teeth is not seen."""

_TURNED = 0.4
_SEED = 0


class Teeth:
    """Finds the best picture of a person's teeth, and changes to it while the mouth is closed.

    Args:
        painter: the mouth painter; None for a model without one.
    """

    def __init__(self, painter: MouthPainter | None) -> None:
        self._painter = painter
        self.painter: MouthCompositor | None = None
        """What inpaints mouths now; None before the first face."""
        self._next: FilmedFace | None = None
        self._score = -1.0

    def offer(self, face: FilmedFace) -> None:
        """Consider a frame."""
        if self._painter is None:
            return
        score = teeth_score(face.points, face.yaw, face.sharpness)
        if self._score < 0 or score > _BETTER * self._score:
            self._score, self._next = score, face

    def change_if_closed(self, values: Tensor) -> None:
        """Take the best picture so far, if these lip values `(Q,)` hide the change."""
        if self._next is None or self._painter is None:
            return
        if self.painter is None or float(values[0]) < _CLOSED:
            face, self._next = self._next, None
            self.painter = painter_with_teeth(self._painter, face)


@torch.inference_mode()
def painter_with_teeth(painter: MouthPainter, face: FilmedFace) -> MouthCompositor:
    """Return what inpaints mouths with the teeth of a face, or with others if it shows none."""
    image = face.crop.permute(1, 2, 0).contiguous().to(face.points.device)
    return MouthCompositor(painter, image, face.points[None], _SEED)


def teeth_score(points: Tensor, yaw: float, sharpness: float) -> float:
    """Return how well a frame shows the teeth; 0 if it does not.

    Args:
        points: landmarks `(L, 2)` in pixels of a crop.
        yaw: rotation of the head.
        sharpness: of the lower face.
    """
    gap = float(lip_gap_px(align_heads(points[None])(points[None].float())))
    if gap < PARTED_PX or abs(yaw) > _TURNED:
        return 0.0
    return min(gap, _ENOUGH_PX) * sharpness
