"""Fits the statistics of mouths that talk: the components of a latent, and the mouth at rest."""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.face.neutral_mouth import CLOSED_GAP, PARTED_GAP
from letstalk_rt.models.face.talking_mouth import TalkingMouth
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.stages.motion_clips import REST_GAP, REST_PERCENTILE, rest_points

NEUTRAL_FRAMES = 16
"""Parted mouths of a clip to which its mouth at rest is fitted."""

FRAME_STRIDE = 8
"""Every how many frames one is encoded to fit the components."""

_AT_ONCE = 16  # frames that are encoded together


def fit_talking_mouth(
    mouth: TalkingMouth, autoencoder: LandmarkAutoencoder, clips: Sequence[Clip]
) -> None:
    """Fit all statistics of mouths that talk.

    Args:
        mouth: receives them.
        autoencoder: whose latents are read.
        clips: clips of people who talk; components are fitted to filmed ones.
    """
    fit_neutral(mouth, clips)
    fit_components(mouth, autoencoder, clips)


def fit_neutral(mouth: TalkingMouth, clips: Sequence[Clip]) -> None:
    """Fit how a parted mouth looks at rest, to the frames of clips whose lips also close."""
    frames, rests, weights = [], [], []
    for clip in clips:
        opening = mouth_opening(clip.points)
        parted = np.flatnonzero(opening > PARTED_GAP)
        if np.percentile(opening, REST_PERCENTILE) > CLOSED_GAP + REST_GAP / 2 or not len(parted):
            continue
        chosen = parted[np.linspace(0, len(parted) - 1, NEUTRAL_FRAMES).astype(int)]
        frames.append(torch.from_numpy(clip.points[np.unique(chosen)]))
        rests.append(rest_points(clip))
        weights.append(2.0 if clip.kind == "real" else 1.0)
    if frames:
        mouth.neutral.fit(frames, rests, torch.tensor(weights))


@torch.no_grad()
def fit_components(
    mouth: TalkingMouth, autoencoder: LandmarkAutoencoder, clips: Sequence[Clip]
) -> None:
    """Fit the components of a talking mouth to the latents of filmed clips."""
    latents, points = [], []
    for clip in tqdm([c for c in clips if c.kind == "real"], desc="mouths"):
        frames = torch.from_numpy(np.array(clip.frames[::FRAME_STRIDE])).permute(0, 3, 1, 2)
        parts = [
            autoencoder.encode_with_heatmaps(part[None].float() / 127.5 - 1)[0][0]
            for part in frames.split(_AT_ONCE)
        ]
        latents.append(torch.cat(parts))
        points.append(torch.from_numpy(clip.points.mean(0)))
    matrix = autoencoder.landmark_matrix.detach()
    mouth.fit_components(latents, matrix, torch.stack(points).mean(0))
