"""Drift of a denoiser of latents over minutes of its own output, by the latents alone.

What is measured is motion: latents relative to the portrait, in deviations of the clips that the
model was trained on. Frames need not be decoded, so ten minutes of a large model cost only the
denoiser. How frames change is measured by the long run.
"""

import sys
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.training.evaluation.rollout import Sampling, rolled_out
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME

PART_S = 60
"""Seconds of which means and deviations are compared."""


@torch.no_grad()
def measure_latent_drift(
    model: AvatarModel, image: Tensor, pcm: np.ndarray, sampling: Sampling, *, part_s: int = PART_S
) -> dict[str, float]:
    """Roll a portrait out over an utterance, as in a session, and compare its last part and first.

    Args:
        model: The model in eval mode, whose denoiser moves the latents.
        image: The portrait `(1, 3, S, S)` in [-1, 1].
        pcm: Speech, `(n,)` float32 at 16 kHz, of at least two parts.
        sampling: How to sample.
        part_s: Length of a part in seconds.

    Returns:
        See `drift_of`.
    """
    device, window = model.motion_scale.device, model.denoiser.config.window
    portrait = model.encode_portrait(image.to(device)).latent
    hop = window * SAMPLES_PER_FRAME
    hops = torch.from_numpy(pcm[: len(pcm) // hop * hop].copy()).to(device).split(hop)
    state = model.audio.init_state(1)
    tokens = (model.audio(part[None], state) for part in hops)
    shown = tqdm(tokens, total=len(hops), desc="latents", unit="window", file=sys.stderr)
    return drift_of(rolled_out(model, shown, portrait, sampling), part_s * FPS // window)


def drift_of(windows: Iterable[Tensor], windows_per_part: int) -> dict[str, float]:
    """Return how motion changes from the first part of a roll-out to its last whole one.

    Args:
        windows: Motion, `(1, N, C, h, w)` each.
        windows_per_part: Windows in a part.

    Returns:
        `latent_minutes`: number of parts; `latent_offset`: root mean square difference of the
        parts' mean motion; `latent_size`: root mean square of motion in the first;
        `latent_size_ratio`: that of the last over that of the first; `latent_range_ratio`: the same
        for the deviation over time. Without drift the offset is small against the size, and the
        ratios are 1.
    """
    parts = list(_moments(iter(windows), windows_per_part))
    assert len(parts) > 1, "drift is what changes from one part to another"
    (mean, spread, size), (last_mean, last_spread, last_size) = parts[0], parts[-1]
    return {
        "latent_minutes": float(len(parts)),
        "latent_offset": float((last_mean - mean).square().mean().sqrt()),
        "latent_size": size,
        "latent_size_ratio": last_size / max(size, 1e-6),
        "latent_range_ratio": last_spread / max(spread, 1e-6),
    }


def _moments(
    windows: Iterator[Tensor], windows_per_part: int
) -> Iterator[tuple[Tensor, float, float]]:
    """Yield mean, deviation over time and root mean square of whole parts."""
    while True:
        total, squares, frames = torch.zeros(()), torch.zeros(()), 0
        for motion in islice(windows, windows_per_part):
            moved = motion[0].double().cpu()
            total, squares = total + moved.sum(0), squares + moved.square().sum(0)
            frames += len(moved)
        if not frames or frames < windows_per_part * len(moved):
            return
        mean, power = total / frames, squares / frames
        spread = (power - mean.square()).clamp(min=0).mean().sqrt()
        yield mean, float(spread), float(power.mean().sqrt())
