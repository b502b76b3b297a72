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
    names = ("brow_inner", "brow_outer", "brow_down", "squint", "smile")
    motion = torch.zeros(NUM_MOTION, 4)
    motion[[channel(name) for name in names]] = torch.randn(5, 4)
    motion[[channel("squint"), smile], :3] = 0  # brows are not theirs
    motion[[channel(name) for name in names[:3]], 3] = 0  # nor the lids those of brows
    moved = codes @ motion
    monkeypatch.setattr(expression, "_of_clip", lambda autoencoder, clip: (codes, seen, moved))
    made = fit_expression(None, [None])
    place = EXPRESSION_NAMES.index("smile")
    assert torch.cosine_similarity(made.face[place], truth[smile], dim=0) > 0.95
    assert abs(float(made.lips[place, channel("width")]) - 0.3) < 0.02
    assert not made.lips[:, GAPS].any(), "a smile does not open the mouth"
    squint = EXPRESSION_NAMES.index("squint")
    assert not made.brows[[squint, place]].any()
    for name in names[:3]:
        row = made.brows[EXPRESSION_NAMES.index(name)] / torch.tensor(expression._BROWS_SEEN)
        assert torch.cosine_similarity(row, motion[channel(name), :3], dim=0) > 0.95
    assert abs(float(made.lower_lid[squint] - motion[channel("squint"), 3])) < 0.1
