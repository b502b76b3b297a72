"""Figures of closed eyes: an avatar's lids beside those of the same person who blinks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.eyelid_painter import EyelidPainter
from letstalk_rt.models.face.eyelids import close_eyes
from letstalk_rt.models.geometry.eye_crop import lid_mask
from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.portrait.eyelid_compositor import EyelidCompositor
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.eye_crops import EyeBatch, blink_frames, eye_pair


def evaluate_eyelids(painter: EyelidPainter | None, clips: Sequence[Clip]) -> dict[str, float]:
    """Close the eyes of frames in which they are open, as a session would.

    Args:
        painter: the model's eyelid painter; None if the skin above the eyes is stretched.
        clips: clips of people, some of whom blink.

    Returns:
        See `eyelid_figures`; nothing if nobody blinks.
    """
    rows = [_row(painter, clip, pair) for clip in clips for pair in blink_frames(clip)]
    return eyelid_figures(torch.cat(rows)) if rows else {}


def _row(painter: EyelidPainter | None, clip: Clip, frames: tuple[int, int]) -> Tensor:
    """Return the differences of both eyes of a pair, `(2, 4)`."""
    opened = np.asarray(clip.frames[frames[0]])
    shown = _closed(painter, opened, clip.landmarks[frames[0], SUBSET])
    found = []
    for eye in (0, 1):
        closed, before = (
            eye_pair(image, clip, frames, eye).batch(torch.zeros(1, dtype=torch.long))
            for image in (shown, opened)
        )
        found.append(lid_differences(closed.opened, before))
    return torch.cat(found)


@torch.inference_mode()
def _closed(painter: EyelidPainter | None, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a frame `(S, S, 3)` uint8 with closed eyes."""
    at = torch.from_numpy(points.astype(np.float32))[None]
    image = torch.from_numpy(frame.copy())
    if painter is not None:
        shown = image[None].clone()
        EyelidCompositor(painter, image, at)(shown, at, [1.0])
        return shown[0].numpy()
    planes = image.permute(2, 0, 1)[None].float()
    close_eyes(planes, at * (2 / len(frame)) - 1, [1.0], black=0)
    return planes[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()


def lid_differences(shown: Tensor, batch: EyeBatch) -> Tensor:
    """Return what `eyelid_figures` sums up, of each eye, `(B, 4)`.

    Args:
        shown: closed eyes, `(B, 3, 64, 80)` in [-1, 1].
        batch: the same eyes open, and truly closed.
    """
    mask = lid_mask(batch.lids.upper, batch.closed)
    share = mask / mask.sum((1, 2, 3), keepdim=True)
    (light, contrast), (true_light, true_contrast) = (
        _light_and_contrast(image, share) for image in (shown, batch.shut)
    )
    error, of_open = (
        ((image - batch.shut).abs() * share).sum((1, 2, 3)) / 3 for image in (shown, batch.opened)
    )
    ratio = contrast / true_contrast.clamp(min=1e-3)
    return torch.stack([error, of_open, (light - true_light).abs(), ratio], 1)


def eyelid_figures(rows: Tensor) -> dict[str, float]:
    """Return the figures of the eyes of `lid_differences`.

    Returns:
        `eyelid_l1`: mean difference of colours from -1 to 1 where a lid changes the picture, and
        `eyelid_l1_open`, that of the open eyes; `eyelid_light`: mean error of a lid's brightness;
        `eyelid_contrast`: median ratio of its standard deviation to that of the true one.
    """
    mean, median = rows.mean(0).tolist(), rows.median(0).values.tolist()
    return {
        "eyelid_l1": mean[0],
        "eyelid_l1_open": mean[1],
        "eyelid_light": mean[2],
        "eyelid_contrast": median[3],
    }


def _light_and_contrast(images: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    light = images.mean(1, keepdim=True)
    mean = (light * share).sum((1, 2, 3), keepdim=True)
    return mean.flatten(), ((light - mean).square() * share).sum((1, 2, 3)).sqrt()
