"""Fits how latents and lips change with the expression of filmed people."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.face.lip_values import GAPS
from letstalk_rt.models.motion.code import LIPS, channel
from letstalk_rt.models.motion.expression import EXPRESSION, Expression
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.stages.motion_clips import motion_codes

_EVERY = 4  # frames of a clip
_AT_ONCE = 32
_RIDGE = 1e-2  # of the power of each number
_SHOWN_LIPS = [channel("smile"), channel("frown")]
"""What changes the lips besides speech. Brows do not, whatever they happen to do with them."""


@torch.inference_mode()
def fit_expression(autoencoder: LandmarkAutoencoder, clips: Sequence[Clip]) -> Expression:
    """Return the maps that fit filmed clips best.

    All numbers of the code take part in the regression, so that what head, lips and lids move is
    not taken for an expression.

    Args:
        autoencoder: whose latents are read.
        clips: clips with blendshapes and head poses.
    """
    codes, latents = zip(*(_of_clip(autoencoder, clip) for clip in clips), strict=True)
    every, faces = torch.cat(codes), torch.cat(latents)
    made = Expression()
    made.face.copy_(_regression(every, faces)[EXPRESSION])
    gaps = [channel("gap"), channel("side_gap")]
    values = every[:, LIPS][:, : made.lips.shape[1]]
    by_smile = _regression(every[:, gaps + _SHOWN_LIPS], values)[len(gaps) :]
    by_smile[:, GAPS] = 0  # a smile alone does not open the mouth
    for number, row in zip(_SHOWN_LIPS, by_smile, strict=True):
        made.lips[EXPRESSION.index(number)] = row
    return made


def _regression(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the ridge regression `(I, T)` from `(N, I)` to `(N, T)`."""
    x, y = inputs.double(), targets.double()
    square = x.T @ x
    slack = _RIDGE * torch.diag(square.diagonal() + 1e-9)
    solved: Tensor = torch.linalg.solve(square + slack, x.T @ y)
    return solved.float()


def _of_clip(autoencoder: LandmarkAutoencoder, clip: Clip) -> tuple[Tensor, Tensor]:
    """Return codes and faces of latents in some frames, both from their means."""
    numbers = np.arange(0, clip.num_frames, _EVERY)
    latents = []
    for part in np.array_split(numbers, -(-len(numbers) // _AT_ONCE)):
        pixels = torch.from_numpy(np.array(clip.frames[part])).permute(0, 3, 1, 2)
        encoded = autoencoder.encode_with_heatmaps(pixels[None].float() / 127.5 - 1)[0][0]
        latents.append(encoded.flatten(1)[:, :FACE_SIZE])
    codes = torch.from_numpy(motion_codes(clip)[numbers])
    faces = torch.cat(latents).float()
    return codes - codes.mean(0), faces - faces.mean(0)
