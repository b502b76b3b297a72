"""Training of LetsTalk as published: all parts learn, memory is corrupted, a clip can be learnt."""

import json
from dataclasses import replace

import pytest
import torch
from support.small_paper_model import make_batch, make_paper_model, make_preset

from letstalk_rt.errors import InputError
from letstalk_rt.paper.denoiser import PaperModel, first_memory
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.training import (
    PUBLISHED_LOOP,
    MemoryRegularization,
    PaperBatch,
    held_out_loss,
    noisy_images,
    paper_loss,
    train_paper_model,
)
from letstalk_rt.training.loop import LoopConfig


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_parameter_is_trained_and_averaged(tmp_path):
    torch.manual_seed(0)
    model = PaperModel(make_preset())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = LoopConfig(steps=4, warm_up=1, weight_decay=0.0, ema=0.5)
    averaged = train_paper_model(model, lambda _: make_batch(), tmp_path, config)
    for name, value in averaged.state_dict().items():
        assert not torch.equal(value, before[name]), name
    assert any(name.startswith("projector.") for name in before)


def test_memory_is_noised_and_dropped_anew_for_each_item():
    model, batch, seen = make_paper_model(), make_batch(64), []
    model.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[4]))
    paper_loss(model, Diffusion(), batch, chance())
    memory = seen[0]
    dropped = (memory == 0).all(2).all(1)  # (B, h, w): shared by frames and channels
    assert 0.15 < dropped.float().mean() < 0.35
    assert not torch.equal(dropped[0], dropped[1])
    error = (memory - batch.memory)[~dropped[:, None, None].expand_as(memory)]
    assert 0.02 < error.std() < 0.17


def test_speech_is_dropped_only_when_asked():
    model, batch, seen = make_paper_model(), make_batch(64), []
    model.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    for share in (0.0, 0.5):
        paper_loss(model, Diffusion(), batch, chance(), drop_speech=share)
    silent = [(tokens == 0).flatten(1).all(1).float().mean() for tokens in seen]
    assert silent[0] == 0 and 0.3 < silent[1] < 0.7


def test_pictures_are_noised_by_a_deviation_of_their_own():
    pictures = torch.zeros(200, 2, 3, 8, 8)
    deviations = noisy_images(pictures, chance()).flatten(1).std(1)
    assert deviations.log().mean() == pytest.approx(-3, abs=0.1)
    assert deviations.log().std() == pytest.approx(0.5, abs=0.1)


def test_the_published_schedule_is_this():
    loop = PUBLISHED_LOOP
    assert (loop.learning_rate, loop.weight_decay, loop.ema) == (1e-4, 0.0, 0.9999)
    assert (loop.final_rate, loop.max_grad_norm, loop.steps) == (1.0, 0.1, 300_000)


def test_the_held_out_loss_is_measured_at_fixed_noise_and_times():
    model, items = make_paper_model(), [make_batch(seed=number) for number in (1, 2)]
    first = held_out_loss(model, Diffusion(), items)
    torch.manual_seed(5)
    assert held_out_loss(model, Diffusion(), items) == first
    assert set(first) == {"held_out_loss", "held_out_noise", "held_out_variance"}
    assert first["held_out_loss"] == pytest.approx(
        first["held_out_noise"] + first["held_out_variance"], rel=1e-5
    )


def test_the_average_with_the_lowest_held_out_loss_is_kept(tmp_path):
    """A model that learns one clip by heart gets worse at others, and the best is not the last."""
    torch.manual_seed(0)
    model, seen = PaperModel(make_preset()), {}

    def evaluate(averaged, step):
        seen[step] = {name: value.clone() for name, value in averaged.state_dict().items()}
        return {}

    config = LoopConfig(
        steps=120, learning_rate=3e-3, warm_up=1, weight_decay=0.0, ema=0.5, evaluate_every=20
    )
    train_paper_model(
        model,
        lambda _: make_batch(),
        tmp_path,
        config,
        held_out=[make_batch(seed=9)],
        evaluate=evaluate,
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}
    best, last = min(losses, key=losses.__getitem__), max(losses)
    assert best < last and losses[best] < losses[last]
    kept = torch.load(tmp_path / "best.pt", weights_only=True)
    assert all(torch.equal(value, seen[best][name]) for name, value in kept.items())


@pytest.mark.parametrize("name", ["clip", "portrait", "memory"])
def test_nan_is_refused(name):
    batch = make_batch()
    getattr(batch, name).view(-1)[3] = float("nan")
    with pytest.raises(InputError, match="holds NaN"):
        paper_loss(make_paper_model(), Diffusion(), batch, chance())


def test_a_share_out_of_range_is_refused(tmp_path):
    with pytest.raises(InputError, match="drop_speech"):
        train_paper_model(make_paper_model(), lambda _: make_batch(), tmp_path, drop_speech=1.0)


def test_a_clip_that_is_learnt_comes_back_through_the_published_sampler(tmp_path):
    """Training and sampling fit together: one clip, noise and variance, 250 steps of DDPM."""
    torch.manual_seed(0)
    model = PaperModel(make_preset(side=2))
    one = make_batch(1)
    portrait, clip = one.portrait[..., :2, :2], one.clip[..., :2, :2]
    one = replace(one, portrait=portrait, clip=clip, memory=first_memory(portrait, 2))

    def same_clip(_: torch.Generator) -> PaperBatch:
        parts = (one.features, one.portrait, one.clip, one.memory)
        return PaperBatch(*(part.expand(16, *part.shape[1:]) for part in parts))

    config = LoopConfig(
        steps=250, learning_rate=3e-3, warm_up=20, final_rate=0.0, weight_decay=0.0, ema=0.95
    )
    learnt = train_paper_model(model, same_clip, tmp_path, config)
    video = next(
        learnt.generate(one.features, portrait, diffusion=Diffusion(250), generator=chance())
    )
    assert (video - clip).square().mean() < 0.05 * clip.square().mean()
    assert (video - portrait[:, None]).square().mean() > 0.5


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("patch_drop", [False, True])
def test_noise_and_patch_drop_of_the_memory_are_switched_off_one_by_one(noise, patch_drop):
    model, batch, seen = make_paper_model(), make_batch(64), []
    model.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args))
    switched = MemoryRegularization(noise, patch_drop)
    paper_loss(model, Diffusion(), batch, chance(), regularization=switched)
    paper_loss(model, Diffusion(), batch, chance())
    memory, published = seen[0][4], seen[1][4]
    dropped = (memory == 0).all(2).all(1)
    assert bool(dropped.any()) == patch_drop
    kept = (~dropped)[:, None, None].expand_as(memory)
    assert torch.equal(memory[kept], batch.memory[kept]) == (not noise)
    assert torch.equal(seen[0][0], seen[1][0])  # the same noise elsewhere
    assert torch.equal(memory, published) == (noise and patch_drop)
