"""Training data of the lip refiner, and its training."""

import numpy as np
import pytest
import torch
from support.mouth_crops import make_crops
from support.mouths import frontal_face, mesh, skin

from letstalk_rt.models.geometry.landmarks import LIPS, SUBSET
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.lip_crops import LipCropSource
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.lip_refiner import lip_errors, train_lip_refiner

MARKED = LIPS[20:40:5]
"""Lips that are drawn as bright dots."""


def marked_clip(name: str, seed: int) -> Clip:
    """Return a clip of a mouth that opens, whose lips have a bright dot at some landmarks."""
    points = torch.cat(
        [frontal_face(gap, scale=0.8, at=(128 + seed, 150)) for gap in np.linspace(1, 14, 6)]
    )
    frames = np.stack([skin() // 4] * len(points))
    for frame, face in zip(frames, points, strict=True):
        for x, y in face[list(MARKED)].round().int().tolist():
            frame[y - 2 : y + 2, x - 2 : x + 2] = 255
    count = len(points)
    return Clip(
        name, "real", frames, mesh(points), np.zeros((count, 52), np.float32),
        np.zeros(640 * count, np.float32), has_audio=False,
    )  # fmt: skip


@pytest.fixture
def clips():
    return [marked_clip(f"person{i}-1", i) for i in range(7)]


def test_lips_stay_where_they_are_seen_however_a_crop_is_changed(clips):
    batch = LipCropSource(clips, None, None).draw(48, np.random.default_rng(1))
    at = [LIPS.index(i) for i in MARKED]
    columns, rows = batch.lips[:, at].unbind(-1)
    light = batch.images.mean(1)
    usual = light.flatten(1).median(1).values
    near = torch.stack(
        [
            light[n, int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].max()
            for n in range(48)
            for x, y in zip(columns[n], rows[n], strict=True)
        ]
    ).view(48, -1)
    assert (near > usual[:, None] + 0.3).float().mean() > 0.95


def test_closed_and_open_mouths_are_drawn(clips):
    batches = list(LipCropSource(clips, None, None, per_clip=3).all())
    lips = torch.cat([batch.lips for batch in batches])
    upper, lower = LIPS.index(SUBSET.index(13)), LIPS.index(SUBSET.index(14))
    gaps = lips[:, lower, 1] - lips[:, upper, 1]
    assert gaps.min() < 2 and gaps.max() > 10


def test_stills_of_open_mouths_are_part_of_the_data(clips):
    source = LipCropSource(clips, None, make_crops())
    drawn = source.draw(64, np.random.default_rng(0)).images
    red = drawn[:, 0] - drawn[:, 1]
    assert (red.flatten(1).max(1).values > 0.8).any(), "those mouths are red inside"


def test_training_learns_to_find_lips(clips, tmp_path):
    config = LoopConfig(steps=40, learning_rate=4e-3, warm_up=5, ema=0.9, evaluate_every=1000)
    validation = LipCropSource(clips, None, None)
    short = LoopConfig(steps=1, learning_rate=1e-9, warm_up=1, ema=0.0, evaluate_every=1000)
    first = train_lip_refiner(clips, None, None, tmp_path / "a", short, batch_size=2)
    trained = train_lip_refiner(clips, None, None, tmp_path / "b", config, batch_size=16)
    before, after = lip_errors(first, validation), lip_errors(trained, validation)
    assert after["gap_px"] < 0.6 * before["gap_px"], (before, after)
