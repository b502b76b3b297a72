"""A smaller mouth painter learns from a trained one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.mouth_crops import make_crops
from support.small_model import stir

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.training.data.mouth_batches import MouthBatch, MouthSource
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.mouth_painter_distill import (
    distill_mouth_painter,
    inpaint_fitted,
    pruned,
    with_mouths,
)
from letstalk_rt.training.stages.mouth_painter_loss import differences, inpaint

TEACHER = MouthPainterConfig(widths=(16, 16, 16), bank=2)
STUDENT = MouthPainterConfig(widths=(8, 8, 8), bank=2, blocks=(1, 1, 1))


@pytest.fixture
def batch() -> MouthBatch:
    crops = make_crops()
    return MouthSource(crops, np.arange(len(crops))).draw(8, torch.Generator().manual_seed(0))


@pytest.fixture
def teacher() -> MouthPainter:
    torch.manual_seed(0)
    painter = MouthPainter(TEACHER).eval().requires_grad_(False)
    stir(painter)
    painter.bank.fill_(7)
    painter.light.fill_(0.5)
    return painter


class TestPruning:
    def test_nothing_is_lost_at_the_same_shape(self, teacher):
        same = pruned(teacher, TEACHER)
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, same.state_dict()[name]), name

    def test_channels_that_nothing_reads_are_left_out_first(self, teacher, batch):
        config = replace(TEACHER, widths=(8, 8, 8))
        with torch.no_grad():
            for part in (teacher.stem, teacher.down1, teacher.down2):
                part.weight[8:] = 0
                part.bias[8:] = 0
            for part in (teacher.up1, teacher.up2):  # of a shuffled channel, there are four
                part.weight[32:] = 0
                part.bias[32:] = 0
            teacher.style[2].weight[8:16] = 0
            teacher.style[2].weight[24:] = 0
            teacher.style[2].bias[8:16] = 0
            teacher.style[2].bias[24:] = 0
            for block in (teacher.fine_in, teacher.fine_out, teacher.middle_in,
                          teacher.middle_out, *teacher.coarse):  # fmt: skip
                for conv in (block.conv1, block.conv2):
                    conv.weight[8:] = 0
                    conv.bias[8:] = 0
            for part in (teacher.head, teacher.up1, teacher.up2):
                part.weight[:, 8:] = 0
        student = pruned(teacher, config)
        whole, small = (inpaint_fitted(model, batch, batch.teeth) for model in (teacher, student))
        torch.testing.assert_close(small, whole, atol=0.02, rtol=0)

    def test_the_bank_is_kept(self, teacher):
        student = pruned(teacher, STUDENT)
        assert torch.equal(student.bank, teacher.bank)
        assert torch.equal(student.light, teacher.light)


class TestTargets:
    def test_a_painter_is_at_no_distance_from_itself(self, teacher, batch):
        painted = inpaint_fitted(teacher, batch, batch.teeth)
        taught = with_mouths(batch, painted)
        assert all(float(v) == 0 for v in differences(painted, taught).values())
        assert float(differences(batch.crops, taught)["l1"]) > 0

    def test_mouths_that_fit_are_painted_in_the_middle_alone(self, teacher, batch):
        fitted = inpaint_fitted(teacher, batch, batch.teeth)
        whole = inpaint(teacher, batch, batch.teeth)
        assert float((fitted - whole).abs().max()) < 0.2
        outside = (batch.opening == 0).expand_as(fitted)
        assert torch.equal(fitted[outside], batch.crops[outside])


class TestTraining:
    def test_it_learns_resumes_and_validates(self, teacher, tmp_path):
        config = LoopConfig(steps=40, learning_rate=4e-3, warm_up=5, report_every=2, ema=0.5)
        options = {"batch_size": 8, "teacher": teacher, "student": STUDENT, "sheet_size": (2, 1)}
        crops = make_crops(24)
        distill_mouth_painter(crops, tmp_path, replace(config, evaluate_every=40), **options)
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        l1 = [line["l1"] for line in lines if "l1" in line]
        assert l1[-1] < 0.7 * l1[0]
        assert "aside_contrast_own" in lines[-1] and (tmp_path / "mouths-000040.png").exists()
        longer = replace(config, steps=42, report_every=1)
        student = distill_mouth_painter(crops, tmp_path, longer, **options)
        last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 42
        again = MouthPainter(STUDENT)
        again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        assert torch.equal(again.head.weight, student.head.weight)
        assert torch.equal(again.bank, teacher.bank)
