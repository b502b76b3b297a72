"""The eye painter: a region painter of both eyes, and what landmarks say of their motion.

Landmarks that latents encode hold lids and irises weakly, but together they tell more: a linear map
from how all landmarks have moved reads the motion of lids and irises.
"""

import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.region_painter import RegionPainter, RegionPainterConfig
from letstalk_rt.models.geometry.eye_region import EYE_MOTION
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS


class EyePainter(RegionPainter):
    """Paints eyes; one network for both, of which the left one is mirrored.

    Args:
        config: shape of the network.

    Attributes:
        from_landmarks: the map from landmarks to the motion of the eyes, `(4, 2 L)`; zeros until it
            is fitted.
    """

    from_landmarks: Tensor

    def __init__(self, config: RegionPainterConfig) -> None:
        super().__init__(config)
        self.register_buffer("from_landmarks", torch.zeros(EYE_MOTION, 2 * NUM_LANDMARKS))

    def motion(self, points: Tensor, portrait: Tensor) -> Tensor:
        """Return how the eyes have moved, `(N, 4)`, see `eye_region.moved_eyes`.

        Args:
            points: landmarks that latents encode, `(N, L, 2)` in [-1, 1].
            portrait: the portrait's, `(1, L, 2)`.
        """
        return (points.float() - portrait.float()).flatten(1) @ self.from_landmarks.float().mT
