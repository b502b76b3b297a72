"""Losses and training of the mouth painter."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.mouth_crops import make_crops

from letstalk_rt.models.autoencoder.mouth_painter import (
    MouthAppearance,
    MouthPainter,
    MouthPainterConfig,
)
from letstalk_rt.models.geometry.mouth_crop import CROP_HEIGHT, CROP_WIDTH
from letstalk_rt.training.data.mouth_batches import MouthSource
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.mouth_painter import contrast, split_mouths, train_mouth_painter
from letstalk_rt.training.stages.mouth_painter_loss import (
    MouthCritic,
    differences,
    draw_appearances,
    inpaint,
)

SMALL = MouthPainterConfig(widths=(8, 8, 8), appearance_width=8)


@pytest.fixture
def source():
    crops = make_crops()
    return MouthSource(crops, np.arange(len(crops.crops)))


class TestSplit:
    def test_no_recording_is_in_both_parts(self):
        mouths = replace(make_crops(30), source=np.arange(len(make_crops(30).crops)) // 5)
        kept, aside = split_mouths(mouths)
        assert len(aside) and not set(mouths.source[kept]) & set(mouths.source[aside])
        drawn = MouthSource(mouths, kept).weight
        assert float(drawn[torch.from_numpy(aside)].sum()) == 0


class TestLosses:
    def test_stills_do_not_show_their_own_teeth(self, source):
        batch = source.gather(torch.arange(4), 0, torch.Generator().manual_seed(0))
        assert batch.has_teeth.tolist() == [0, 0, 1, 1]
        appearances, _ = draw_appearances(
            MouthPainter(SMALL), batch, torch.Generator().manual_seed(0)
        )
        assert not appearances.teeth[:2].any()

    def test_only_errors_inside_the_opening_count(self, source):
        batch = source.draw(8, torch.Generator().manual_seed(0))
        assert all(float(v) == 0 for v in differences(batch.crops, batch).values())
        outside = batch.crops + (batch.opening == 0)
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
        appearances, far = draw_appearances(model, batch, torch.Generator().manual_seed(0))
        painted = inpaint(model, batch, appearances)
        outside = (batch.opening == 0).expand_as(painted)
        assert torch.equal(painted[outside], batch.crops[outside]) and far.isfinite()

    def test_both_frames_of_a_pair_share_their_appearance(self, source):
        batch = source.draw(8, torch.Generator().manual_seed(0))
        appearances, _ = draw_appearances(
            MouthPainter(SMALL), batch, torch.Generator().manual_seed(4)
        )
        assert isinstance(appearances, MouthAppearance)
        torch.testing.assert_close(
            appearances.code[:2], appearances.code[-2:], atol=0.05, rtol=0.05
        )
        assert torch.equal(appearances.teeth[:2], appearances.teeth[-2:])

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
        config = LoopConfig(steps=40, learning_rate=4e-3, warm_up=5, report_every=5, ema=0.5)
        options = {"batch_size": 8, "painter": SMALL, "critic_start": 20, "sheet_size": (2, 1)}
        train_mouth_painter(make_crops(24), tmp_path, replace(config, evaluate_every=40), **options)
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        l1 = [line["l1"] for line in lines if "l1" in line]
        assert l1[-1] < 0.6 * l1[0]
        assert any("features" in line for line in lines)
        assert "aside_contrast_shown" in lines[-1] and (tmp_path / "mouths-000040.png").exists()
        longer = replace(config, steps=42, report_every=1)
        train_mouth_painter(make_crops(24), tmp_path, longer, **options)
        last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 42
