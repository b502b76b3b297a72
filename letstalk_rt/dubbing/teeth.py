"""How the inside of a mouth looks: from the frame of the film that shows most of it, sharply."""

import torch
from torch import Tensor

from letstalk_rt.dubbing.face_reader import FilmedFace
from letstalk_rt.dubbing.reference import sharpness
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter
from letstalk_rt.models.geometry.mouth_crop import align_heads, lip_gap_px
from letstalk_rt.portrait.mouth_compositor import TEETH_PX, MouthCompositor

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
        score = _score(face)
        if self._score < 0 or score > _BETTER * self._score:
            self._score, self._next = score, face

    def change_if_closed(self, values: Tensor) -> None:
        """Take the best picture so far, if these lip values `(Q,)` hide the change."""
        if self._next is None or self._painter is None:
            return
        if self.painter is None or float(values[0]) < _CLOSED:
            face, self._next = self._next, None
            image = face.crop.permute(1, 2, 0).contiguous().to(face.points.device)
            with torch.inference_mode():
                self.painter = MouthCompositor(self._painter, image, face.points[None], _SEED)


def _score(face: FilmedFace) -> float:
    """Return how well a frame shows the teeth; 0 if it does not."""
    gap = float(lip_gap_px(align_heads(face.points[None])(face.points[None].float())))
    if gap < TEETH_PX or abs(face.yaw) > _TURNED:
        return 0.0
    return min(gap, _ENOUGH_PX) * sharpness(face.crop)
