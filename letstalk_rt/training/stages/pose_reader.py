"""Trains the pose reader, and measures how well it follows heads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.face.pose_reader import HIDDEN, PoseReader
from letstalk_rt.training.data.dataset import Clip, Stills
from letstalk_rt.training.data.pose_crops import PoseCrops, PoseCropSource
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.audio_encoder import split_by_source

FRAMES = 8
"""Frames of each clip in a batch."""

_ANGLE, _SHAPE = 20.0, 30.0  # scale of radians and of face sizes; an error of 1 is a large one
_KNEE = 0.7
_ABSOLUTE = 0.3  # weight of what differs from person to person
_LEAST_MOTION = np.radians(1.5)  # standard deviation of an angle that counts as motion


class _Trainee(nn.Module):
    """A pose reader that also says the shape of the face, which teaches it where to look."""

    def __init__(self, mean_shape: Tensor) -> None:
        super().__init__()
        self.reader = PoseReader()
        self.shape = nn.Linear(HIDDEN, mean_shape.numel())
        nn.init.zeros_(self.reader.angles.weight)
        with torch.no_grad():
            self.shape.bias.copy_(mean_shape.flatten())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return yaw and pitch `(B, 2)`, and landmarks, `(B, 2L)`."""
        seen = self.reader.features(images)
        return self.reader.angles(seen), self.shape(seen)


def pose_loss(trainee: nn.Module, batch: PoseCrops) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and its parts.

    What counts most are differences between frames of one clip, because people differ at rest;
    what a person looks like at rest counts a little, and is all that there is of stills.
    """
    turns, shapes = trainee(batch.images)
    count = batch.turns.shape[0] * batch.turns.shape[1]
    turns, wanted = turns[:count].view(batch.turns.shape), batch.turns
    true = batch.shapes.flatten(1)
    turned = _robust(_ANGLE * (_moved(turns) - _moved(wanted)))
    of_clip = (*batch.turns.shape[:2], -1)
    moved = _moved(shapes[:count].view(of_clip)) - _moved(true[:count].view(of_clip))
    absolute = _robust(_ANGLE * (turns - wanted)) + _robust(_ANGLE * (shapes - true))
    loss = turned + _robust(_SHAPE * moved) + _ABSOLUTE * absolute
    return loss, {"turned": float(turned.detach()), "absolute": float(absolute.detach())}


def _moved(values: Tensor) -> Tensor:
    """Return values `(C, Q, D)` relative to the mean of each clip."""
    return values - values.mean(1, keepdim=True)


def _robust(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), beta=_KNEE)


@torch.no_grad()
def turn_correlations(reader: PoseReader, source: PoseCropSource) -> dict[str, float]:
    """Return the mean r with measured head poses of the filmed clips whose heads move.

    Returns:
        `yaw_r` and `pitch_r`; NaN where no head moves.
    """
    found: dict[str, list[float]] = {"yaw_r": [], "pitch_r": []}
    device = next(reader.parameters()).device
    for clip in source.all():
        turns, true = reader(clip.images.to(device)).cpu().numpy(), clip.turns[0].numpy()
        for axis, values in enumerate(found.values()):
            if true[:, axis].std() > _LEAST_MOTION and turns[:, axis].std() > 0:
                values.append(float(np.corrcoef(turns[:, axis], true[:, axis])[0, 1]))
    return {name: float(np.mean(r)) if r else float("nan") for name, r in found.items()}


def train_pose_reader(
    clips: Sequence[Clip],
    stills: Stills | None,
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
) -> PoseReader:
    """Train the pose reader and return the averaged one; sources held out validate it.

    Args:
        clips: clips of the train split.
        stills: still portraits, which show many more people; or None.
        folder: folder of the run.
        config: schedule.
        batch_size: clips in a batch, of each of which there are `FRAMES` frames; and three times
            as many stills.
    """
    torch.manual_seed(5)
    kept, held_out = split_by_source(list(clips))
    source, validation = PoseCropSource(kept, stills), PoseCropSource(held_out, None)
    trainee = _Trainee(source.mean_shape)
    trainee.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(folder, trainee, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        seed = int(torch.randint(1 << 30, (), generator=run.generator))
        rng = np.random.default_rng(seed)
        batch = source.draw(batch_size, FRAMES, 3 * batch_size, rng).to(run.device)
        return pose_loss(trainee, batch)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, _Trainee)
        return turn_correlations(averaged.reader, validation)

    trained = run.train(loss, evaluate)
    assert isinstance(trained, _Trainee)
    return trained.reader
