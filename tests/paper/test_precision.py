"""What makes large trainings cheaper changes what they learn by no more than chance does."""

import argparse
import json
from statistics import fmean

import pytest
import torch
from support.small_paper_model import make_batch, make_preset

from letstalk_rt.cli import train as command
from letstalk_rt.errors import ConfigError
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.train_command import prepare_denoiser
from letstalk_rt.paper.training import paper_loss, train_paper_model
from letstalk_rt.training.loop import LoopConfig

ITEMS = [make_batch(4, seed=number) for number in range(8)]


def last_loss(folder, seed, precision, steps):
    """Train a toy, and return the mean loss of the last fifth of its steps."""
    torch.manual_seed(seed)
    config = LoopConfig(
        steps=steps,
        learning_rate=1e-3,
        warm_up=20,
        weight_decay=0.0,
        ema=0.98,
        report_every=1,
        precision=precision,
    )

    def draw(generator):
        return ITEMS[int(torch.randint(8, (1,), generator=generator))]

    train_paper_model(PaperModel(make_preset()), draw, folder, config)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "norm" in line]
    assert losses[-1] < losses[0]
    return fmean(losses[-steps // 5 :])


@pytest.mark.parametrize("steps", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_bfloat16_learns_as_well_as_float32(tmp_path, steps):
    full, half = (
        last_loss(tmp_path / precision, 0, precision, steps)
        for precision in ("float32", "bfloat16")
    )
    other = last_loss(tmp_path / "other", 1, "float32", steps)
    assert full != half
    assert abs(half - full) < max(0.01 * full, abs(other - full))


def options(**changes):
    return argparse.Namespace(**{"recompute": True, "compile": False} | changes)


@pytest.mark.filterwarnings("ignore")  # torch's own, as it compiles
@pytest.mark.parametrize("changes", [{"recompute": False}, {"compile": True}])
def test_options_of_speed_change_no_gradient(changes):
    grads = []
    for given in (options(), options(**changes)):
        torch.manual_seed(0)
        model = PaperModel(make_preset())
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.02 * torch.randn_like(value))
        prepare_denoiser(given, model)
        loss, _ = paper_loss(model, Diffusion(), ITEMS[0], torch.Generator().manual_seed(0))
        loss.backward()
        grads.append({name: value.grad for name, value in model.named_parameters()})
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("words", [["--accumulate", "2"], ["--precision", "bfloat16"]])
def test_options_of_large_models_are_refused_elsewhere(words):
    args = command._parser().parse_args(["pose", "--data", "D", *words])
    with pytest.raises(ConfigError, match="for the stages distill, faithful, ablate"):
        command._loop(args)
