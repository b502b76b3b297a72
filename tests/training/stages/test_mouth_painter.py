"""Losses and training of the mouth painter."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.mouth_crops import make_crops

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.geometry.mouth_crop import CROP_HEIGHT, CROP_WIDTH
from letstalk_rt.training.data.mouth_batches import MouthSource
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.mouth_painter import contrast, split_mouths, train_mouth_painter
from letstalk_rt.training.stages.mouth_painter_loss import (
    MouthCritic,
    differences,
    inpaint,
    shown_teeth,
)

SMALL = MouthPainterConfig(widths=(8, 8, 8), bank=2)


@pytest.fixture
def source():
    crops = make_crops()
    return MouthSource(crops, np.arange(len(crops)))


class TestSplit:
    def test_no_recording_is_in_both_parts(self):
        mouths = replace(make_crops(30), source=np.arange(len(make_crops(30))) // 5)
        kept, aside = split_mouths(mouths)
        assert len(aside) and not set(mouths.source[kept]) & set(mouths.source[aside])
        drawn = MouthSource(mouths, kept).weight
        assert float(drawn[torch.from_numpy(aside)].sum()) == 0


class TestLosses:
    def test_a_still_shows_only_a_part_of_its_own_teeth(self, source):
        rows = torch.arange(2).repeat(20)
        batch = source.gather(rows, 0, torch.Generator().manual_seed(0), augment=False)
        shown, whole = (x.sum((1, 2, 3)) for x in (batch.teeth[:, 3:], batch.opening))
        assert (shown <= whole + 1e-3).all() and float((shown / whole).mean()) < 0.8

    def test_teeth_are_relit_apart_from_the_mouth(self, source):
        batch = source.gather(torch.zeros(40).long(), 0, torch.Generator().manual_seed(0))
        mask = batch.teeth[:, 3:].clamp(min=1e-3)
        lit = (batch.teeth[:, 0] / mask[:, 0]).sum((1, 2)) / mask.sum((1, 2, 3))
        assert float(lit.std()) > 0.05

    def test_only_errors_inside_the_opening_count(self, source):
        batch = source.draw(8, torch.Generator().manual_seed(0))
        assert all(float(v) == 0 for v in differences(batch.crops, batch).values())
        near = F.max_pool2d(batch.opening, 5, stride=1, padding=2)  # enlarging blurs the edge
        outside = batch.crops + (near == 0)
        far = differences(outside, batch)
        assert float(far["l1"]) == 0 and float(far["time"]) == 0

    def test_flicker_is_an_error_in_time_and_a_constant_shift_is_not(self, source):
        batch = source.draw(8, torch.Generator().manual_seed(0))
        shifted = differences(batch.crops + 0.1, batch)
        assert float(shifted["time"]) < 1e-5 < float(shifted["l1"])
        flicker = batch.crops.clone()
        flicker[-2:] += 0.1
        assert float(differences(flicker, batch)["time"]) > 0.01

    def test_only_the_inside_is_inpainted(self, source):
        batch = source.draw(8, torch.Generator().manual_seed(0))
        model = MouthPainter(SMALL)
        painted = inpaint(model, batch, batch.teeth)
        outside = (batch.opening == 0).expand_as(painted)
        assert torch.equal(painted[outside], batch.crops[outside])

    def test_both_frames_of_a_pair_share_their_teeth(self, source):
        generator = torch.Generator().manual_seed(0)
        counts = []
        for _ in range(20):
            batch = source.draw(8, generator)
            teeth = shown_teeth(batch, generator)
            assert torch.equal(teeth[:2], teeth[-2:])
            counts.append(int(teeth.flatten(1).any(1).sum()))
        assert 8 > sum(counts) / 20 > 5

    def test_the_critic_learns(self, source):
        torch.manual_seed(0)
        batch = source.draw(8, torch.Generator().manual_seed(0))
        grey = torch.lerp(batch.crops, torch.zeros_like(batch.crops), batch.opening)
        critic = MouthCritic(torch.device("cpu"), 2e-3)
        losses = [critic.learn(grey, batch) for _ in range(30)]
        assert losses[-1] < 0.5 * losses[0]
        real, _ = critic.losses(batch.crops, batch)
        fake, distance = critic.losses(grey, batch)
        assert float(fake) > float(real) and float(distance) > 0

    def test_contrast_is_the_deviation_inside(self):
        crops = torch.zeros(1, 3, CROP_HEIGHT, CROP_WIDTH)
        crops[..., ::2] = 1
        opening = torch.zeros(1, 1, CROP_HEIGHT, CROP_WIDTH)
        opening[..., 20:40, 20:60] = 1
        assert float(contrast(crops, opening)) == pytest.approx(0.5)


class TestTraining:
    def test_it_learns_resumes_and_validates(self, tmp_path):
        torch.manual_seed(0)
        config = LoopConfig(steps=60, learning_rate=4e-3, warm_up=5, report_every=5, ema=0.5)
        options = {"batch_size": 8, "painter": SMALL, "critic_start": 20, "sheet_size": (2, 1)}
        train_mouth_painter(make_crops(24), tmp_path, replace(config, evaluate_every=40), **options)
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        l1 = [line["l1"] for line in lines if "l1" in line]
        assert l1[-1] < 0.6 * l1[0]
        assert any("features" in line for line in lines)
        assert "aside_contrast_own" in lines[-1] and (tmp_path / "mouths-000040.png").exists()
        longer = replace(config, steps=62, report_every=1)
        train_mouth_painter(make_crops(24), tmp_path, longer, **options)
        last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 62
