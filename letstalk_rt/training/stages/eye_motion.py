"""Fits how latents tell the motion of lids and irises, for the eye painter.

Landmarks of lids and irises in a latent are too weak and partly wrong. A ridge regression from the
face of a latent to where they truly are, both relative to the median of the clip, reads more of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.autoencoder.latents import FACE_SHAPE
from letstalk_rt.models.geometry.eye_region import align_eyes, eye_motion, eye_points
from letstalk_rt.models.geometry.landmarks import LIPS, SUBSET
from letstalk_rt.training.data.dataset import Clip

_EVERY, _MOST_FRAMES = 4, 150  # of a filmed clip; of others a third
_AT_ONCE = 32
_RIDGE = 3e-4
_LIP_ERROR = 0.01
"""Error of lips that eyes must not follow, in [-1, 1]: sound moves lips, and a portrait's are
refined. Without it, lips that are 1 px elsewhere move the eyes by 5 px of their crop."""

_GAIN = 1.25
"""A ridge regression keeps 0.64 to 0.83 of the range of people it has not seen."""


@torch.inference_mode()
def fit_eye_motion(autoencoder: LandmarkAutoencoder, clips: Sequence[Clip]) -> Tensor:
    """Return the map from moved landmarks to the motion of the eyes, `(4, 2 L)`.

    Args:
        autoencoder: whose latents are read.
        clips: clips to learn from.
    """
    latents, motions = zip(*(_of_clip(autoencoder, clip) for clip in clips), strict=True)
    face = latents[0].shape[1]
    to_latent = torch.linalg.pinv(autoencoder.landmark_matrix[:, :face])
    lips = to_latent.unflatten(-1, (-1, 2))[:, LIPS].flatten(1)
    penalty = _RIDGE * torch.eye(face) + _LIP_ERROR**2 * lips @ lips.mT
    weights = ridge(torch.cat(latents), torch.cat(motions), penalty)
    matrix: Tensor = _GAIN * weights @ to_latent
    return matrix


def ridge(inputs: Tensor, targets: Tensor, penalty: Tensor) -> Tensor:
    """Return the matrix `(T, I)` of a ridge regression from `(N, I)` to `(N, T)`.

    Args:
        inputs: `(N, I)`.
        targets: `(N, T)`.
        penalty: of the weights, `(I, I)`.
    """
    x, y = inputs.double(), targets.double()
    fitted: Tensor = torch.linalg.solve(x.mT @ x / len(x) + penalty.double(), x.mT @ y / len(x))
    return fitted.mT.float()


def _of_clip(autoencoder: LandmarkAutoencoder, clip: Clip) -> tuple[Tensor, Tensor]:
    """Return latents and the motion of the eyes, both from their medians."""
    filmed = clip.kind == "real" and not clip.is_grid
    numbers = np.arange(0, clip.num_frames, _EVERY if filmed else 3 * _EVERY)[:_MOST_FRAMES]
    latents = []
    for part in np.array_split(numbers, -(-len(numbers) // _AT_ONCE)):
        pixels = torch.from_numpy(np.array(clip.frames[part])).permute(0, 3, 1, 2)
        encoded = autoencoder.encode_with_heatmaps(pixels[None].float() / 127.5 - 1)[0][0]
        latents.append(encoded[:, : FACE_SHAPE[0]].flatten(1))
    points = torch.from_numpy(clip.landmarks[numbers][:, SUBSET].astype(np.float32))
    eyes = [eye_motion(eye_points(points, e, align_eyes(points, e)), e) for e in (0, 1)]
    return _from_median(torch.cat(latents)), _from_median(torch.stack(eyes).mean(0))


def _from_median(values: Tensor) -> Tensor:
    return values - values.median(0).values
