"""Expression: what a smile or a brow does to latents and lips is read from filmed people."""

import numpy as np
import torch

from letstalk_rt.models.face.lip_values import GAPS
from letstalk_rt.models.motion.code import NUM_MOTION, channel
from letstalk_rt.models.motion.expression import EXPRESSION_NAMES
from letstalk_rt.training.stages import expression
from letstalk_rt.training.stages.expression import fit_expression


def test_an_expression_is_told_from_head_and_lips_that_go_with_it(monkeypatch):
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.standard_normal((400, NUM_MOTION))).float()
    smile, yaw = channel("smile"), channel("yaw")
    codes[:, smile] += 0.8 * codes[:, yaw]  # who turns smiles, too
    truth = torch.from_numpy(rng.standard_normal((NUM_MOTION, 256))).float()
    codes[:, channel("width")] *= 0.1
    codes[:, channel("width")] += 0.3 * codes[:, smile] + 0.1 * codes[:, channel("gap")]
    seen = codes @ truth
    monkeypatch.setattr(expression, "_of_clip", lambda autoencoder, clip: (codes, seen))
    made = fit_expression(None, [None])
    place = EXPRESSION_NAMES.index("smile")
    assert torch.cosine_similarity(made.face[place], truth[smile], dim=0) > 0.95
    assert abs(float(made.lips[place, channel("width")]) - 0.3) < 0.02
    assert not made.lips[:, GAPS].any(), "a smile does not open the mouth"
