"""Fixed numbers from executing other implementations: the diffusion process and the denoiser.

Weights and inputs are those of `support.golden`; every number was printed by the other code, none
by this repository. Versions and the lines that made them stand beside each table.
"""

import pytest
import torch
from support.golden import fill, sample, wave
from support.small_paper_model import make_preset

from letstalk_rt.models.paper.denoiser import PaperModel

# The authors' code at github.com/zhang-haojie/LetsTalk, commit 26660f1, timm 1.0.31, torch 2.13:
#   v1 = model_cat.VDT(input_size=8, patch_size=2, in_channels=4, hidden_size=64, context_dim=16,
#                      depth=2, num_heads=4, num_frames=4, mlp_ratio=2.0)
#   v2 = lite_cat_long's model of the same arguments, with input_size=4, patch_size=1 and
#        initial_frames=2
# with the weights of `fill` under their names, called as
#   v1(x, 1000 * t, cond=portrait[:, None].expand(-1, 4, -1, -1, -1), audio_embed=tokens)
#   v2(..., motion=memory)
# and printed by `sample`.
AUTHORS = {
    "softmax": [-3.013165, -2.330067, 0.872165, -1.681492, -0.197945, -1.011913, 0.332769,
                0.703564, -0.0772, 1.240427],
    "linear": [-3.055094, -0.489938, 0.292386, 1.040213, -0.757705, -0.851034, 0.4169, -0.62558,
               -0.130689, 1.261294],
}  # fmt: skip
SHAPES = {
    "softmax": {"side": 8, "patch": 2, "attention": "softmax", "memory": 0},
    "linear": {},
}


@pytest.mark.parametrize("attention", sorted(AUTHORS))
def test_both_versions_of_the_denoiser_agree_with_the_authors_code(attention):
    config = make_preset(**SHAPES[attention]).denoiser
    denoiser = PaperModel(make_preset(**SHAPES[attention])).denoiser.requires_grad_(False)
    fill(denoiser)
    side, memory = config.side, config.memory
    out = denoiser(
        wave(2, 4, 4, side, side),
        torch.tensor([0.3, 0.8]),
        wave(2, 4, 3, 16, phase=2),
        wave(2, 4, side, side, phase=1),
        wave(2, memory, 4, side, side, phase=3),
    )
    assert sample(out) == pytest.approx(AUTHORS[attention], abs=1e-5)
