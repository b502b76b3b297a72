"""Distillation: guidance and steps go into the denoiser, and processes train as one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small_model import AUDIO, DENOISER, PRESET, make_portrait, stir
from torch import nn

from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.denoiser import Denoiser
from letstalk_rt.models.sampler import sample_mean, timesteps
from letstalk_rt.training.data.sound_inputs import AUDIO_CONTEXT_FRAMES
from letstalk_rt.training.data.tracks import Track, moments
from letstalk_rt.training.data.windows import Batch
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.distill import (
    DistillLossConfig,
    DistillTrainer,
    distill,
    draw_times,
    mean_flow_loss,
)

WINDOW, MEMORY = DENOISER.window, DENOISER.memory
MEAN = replace(DENOISER, dropout=0.0, cached=True, memory=8, second_time=True, guidance_input=True)


def make(denoiser=DENOISER):
    torch.manual_seed(0)
    model = AvatarModel(
        replace(PRESET, denoiser=replace(denoiser, dropout=0.0), steps=1, guidance=2.0)
    )
    stir(model)
    return model


def make_teacher(model):
    teacher = Denoiser(model.preset.denoiser)
    teacher.load_state_dict(model.denoiser.state_dict())
    return teacher


def make_trainer(model, **weights):
    return DistillTrainer(model, make_teacher(model), DistillLossConfig(**weights))


def make_batch(memory=MEMORY, windows=0, count=3):
    torch.manual_seed(1)
    frames = WINDOW * (windows + 1)
    filled = torch.zeros(count, memory, dtype=torch.bool)
    filled[:2, memory // 2 :] = True
    return Batch(
        portrait=torch.randn(count, 24, 4, 4),
        window=torch.randn(count, frames, 24, 4, 4),
        memory=torch.randn(count, memory, 24, 4, 4),
        filled=filled,
        features=torch.rand(count, 64, 4 * (AUDIO_CONTEXT_FRAMES + frames + 2)),
        targets=torch.zeros(count, AUDIO_CONTEXT_FRAMES + frames, 11),
        weight=torch.ones(count),
    )


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


class TestGuidance:
    def test_a_student_of_weight_one_has_nothing_to_learn(self):
        """Without a roll-out and without noise on memory, student and teacher are then the same."""
        model = make()
        trainer = make_trainer(model, guidance=1.0, no_audio=0.0)
        batch = replace(make_batch(), filled=torch.zeros(3, MEMORY, dtype=torch.bool))
        _, parts = trainer.loss(model, batch, 0, chance())
        assert parts["taught"] == pytest.approx(0, abs=1e-8)

    def test_a_heavier_weight_has(self):
        model = make()
        _, parts = make_trainer(model, guidance=3.0).loss(model, make_batch(), 0, chance())
        assert parts["taught"] > 1e-6

    def test_the_student_comes_to_say_in_one_call_what_took_two(self):
        model = make()
        nn.init.normal_(model.denoiser.no_audio)
        trainer = make_trainer(model, guidance=3.0, truth=0.0, no_audio=0.0)
        batch = replace(make_batch(), filled=torch.zeros(3, MEMORY, dtype=torch.bool))
        optimizer = torch.optim.Adam(trainer.parameters(), 3e-3)
        seen = []
        for step in range(15):
            loss, parts = trainer.loss(model, batch, 0, chance(step % 3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(parts["taught"])
        assert sum(seen[-3:]) < 0.5 * sum(seen[:3])

    def test_the_teacher_is_neither_trained_nor_stored(self):
        model = make()
        teacher = make_teacher(model)
        trainer = DistillTrainer(model, teacher, DistillLossConfig())
        assert {name.partition(".")[0] for name in trainer.state_dict()} == {"denoiser"}
        loss, _ = trainer.loss(model, make_batch(), 0, chance())
        loss.backward()
        assert not any(p.grad is not None for p in teacher.parameters())
        assert not any(p.grad is not None for p in model.audio.parameters())


class TestRollout:
    @pytest.mark.parametrize("windows", [0, 1, 3])
    def test_memory_holds_own_output_for_the_student_and_the_recording_for_the_teacher(
        self, windows
    ):
        model = make()
        trainer, batch = make_trainer(model), make_batch(windows=windows)
        tokens = model.audio.encode_mel(batch.features)[:, 2:][:, -WINDOW * (windows + 1) :]
        data = model.to_motion(batch.window, batch.portrait)
        (true, known), (own, filled) = trainer.memories(
            model, batch, data, tokens, windows, chance()
        )
        count = min(MEMORY, WINDOW * windows)
        recorded = data[:, WINDOW * windows - count : WINDOW * windows]
        assert torch.equal(true[:, 1 + MEMORY - count :], recorded)
        assert torch.equal(known, filled) and not true[:, 0].any()
        if windows:
            assert not torch.allclose(own[:, -WINDOW:], true[:, -WINDOW:], atol=0.1)

    def test_no_gradient_runs_through_the_roll_out(self):
        model = make()
        trainer = make_trainer(model)
        loss, _ = trainer.loss(model, make_batch(windows=2), 2, chance())
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in trainer.parameters())


class TestMeanFlow:
    def test_the_loss_is_finite_and_reaches_the_second_time_and_the_guidance(self):
        model = make(MEAN)
        trainer = make_trainer(model, distinct_times=1.0, from_noise=0.0, guidance=3.0)
        loss, parts = trainer.loss(model, make_batch(memory=8, windows=1), 1, chance())
        loss.backward()
        denoiser = trainer.denoiser
        for part in (denoiser.embed_span, denoiser.embed_guidance):
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
        assert all(value == value for value in parts.values())

    def test_in_bfloat16_it_points_the_same_way(self):
        """Roll-out, teacher, derivative along the flow and student, all by autocast."""
        grads = []
        for half in (False, True):
            model = make(MEAN)
            trainer = make_trainer(model)
            batch = make_batch(memory=MEAN.history, windows=1)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss, _ = trainer.loss(model, batch, 1, chance())
            loss.backward()
            found = [p.grad.flatten() for p in model.denoiser.parameters() if p.grad is not None]
            grads.append(torch.cat(found))
        assert not torch.equal(*grads)
        assert torch.cosine_similarity(*grads, dim=0) > 0.999

    def test_a_velocity_that_never_changes_is_its_own_mean(self):
        """A straight flow: u = v at all times, so nothing is left to learn."""
        velocity = torch.randn(2, WINDOW, 24, 4, 4)

        def student(x, t, end):
            return velocity + 0 * x * t[..., None, None, None]

        times = torch.rand(2, WINDOW), torch.zeros(2, WINDOW)
        error = mean_flow_loss(student, torch.randn_like(velocity), times, velocity)
        assert error.abs().max() < 1e-8

    def test_the_derivative_is_that_along_the_flow(self):
        """u(x, t, r) = t + r solves the path dx/dt = 2 t: the loss sees no error in it."""

        def student(x, t, end):
            return (t + end)[..., None, None, None] + 0 * x

        x, t = torch.randn(2, WINDOW, 24, 4, 4), torch.rand(2, WINDOW)
        velocity = 2 * t[..., None, None, None] + 0 * x
        error = mean_flow_loss(student, x, (t, t * torch.rand(2, 1)), velocity)
        assert error.abs().max() < 1e-6
        out = sample_mean(lambda x, t, r: torch.full_like(x, t + r), x, timesteps(2))
        torch.testing.assert_close(out, x - 1)

    def test_times_are_in_order_and_some_go_the_whole_way(self):
        t, end = draw_times(
            DistillLossConfig(distinct_times=0.5, from_noise=0.5), 400, WINDOW, chance()
        )
        assert (end <= t).all() and t.min() >= 0 and t.max() == 1
        assert (end == 0).any() and (end == t).float().mean() > 0.3
        assert torch.equal(t, t[:, :1].expand_as(t))


def tracks(count=2, frames=80):
    torch.manual_seed(3)
    clip_type = pytest.importorskip("letstalk_rt.training.data.spoken_clips").AudioClip
    made = []
    for index in range(count):
        clip = clip_type.__new__(clip_type)
        values = {
            "name": f"clip{index}",
            "features": torch.rand(64, 4 * (frames + 2)),
            "targets": torch.zeros(frames, 11),
            "weight": 1.0,
            "is_real": True,
        }
        for name, value in values.items():
            object.__setattr__(clip, name, value)
        latents = torch.randn(2, frames, 24, 4, 4).cumsum(1) * 0.1
        quiet = torch.ones(frames, dtype=torch.bool)
        made.append(Track(clip, latents, quiet, moments(latents)))
    return made


def test_a_run_folds_the_guidance_in_and_the_pipeline_then_calls_once(tmp_path):
    model = make()
    config = LoopConfig(steps=2, warm_up=1, evaluate_every=10)
    best = distill(
        model, tracks(), tracks(), tmp_path, config, batch_size=2, loss=DistillLossConfig(rollout=1)
    )
    assert float(best.folded_guidance) == 2.0
    pipeline = AvatarPipeline(best.requires_grad_(False))
    state, items = pipeline.init_state(make_portrait()), []
    best.denoiser.blocks[0].register_forward_hook(lambda module, args, out: items.append(len(out)))
    pipeline.step(torch.zeros(1, pipeline.hop).numpy(), [state])
    assert items == [1]
    assert (tmp_path / "log.jsonl").exists() and (tmp_path / "best.pt").exists()


WORKER = """
import sys, torch
from pathlib import Path
from torch import nn
from letstalk_rt.training import distributed
from letstalk_rt.training.loop import LoopConfig, Run

torch.set_num_threads(1)
distributed.init_process_group()
torch.manual_seed(distributed.rank())  # weights differ at first: the first process's count
folder = Path(sys.argv[1])
model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
run = Run(folder / "run", model, LoopConfig(steps=6, warm_up=1, report_every=2, evaluate_every=3))

def loss(step):
    x = torch.randn(5, 3, generator=run.generator)
    out = model[0](x).sum(1) if step % 2 else model(x).sum(1)  # a part is left out at times
    return (out - x.sum(1)).pow(2).mean(), {"first": float(x[0, 0])}

def judge(averaged, step):
    return {"judged": 1.0}

run.train(loss, judge)
prepared = distributed.main_process_first(lambda: (folder / "made").write_text("x") if
    not (folder / "made").exists() else (folder / f"found{distributed.rank()}").write_text("x"))
prepared()
torch.save({"model": model.state_dict(), "averaged": run.averaged.state_dict()},
    folder / f"rank{distributed.rank()}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path):
    """Gradients are averaged, chance differs, and the first process alone writes."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--standalone", str(script), str(tmp_path)]
    root = str(Path(__file__).parents[3])
    # torchrun leaves its logs in the folder for temporary files.
    folders = {"PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    environment = {**os.environ, **folders, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2))
    for part in ("model", "averaged"):
        assert all(torch.equal(v, other[part][name]) for name, v in one[part].items())
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 5  # three reports and two judgements, once each
    assert (tmp_path / "found1").exists() and not (tmp_path / "found0").exists()


def test_tensorboard_shows_what_the_log_holds(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = nn.Linear(2, 1)
    run = Run(tmp_path, model, LoopConfig(steps=2, warm_up=1, report_every=1))
    run.train(lambda step: (model(torch.ones(1, 2)).sum(), {"part": 0.5}))
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [event.value for event in events.Scalars("part")] == [0.5, 0.5]


def test_the_audio_encoder_of_the_tests_fits():
    assert AUDIO.token_width == DENOISER.audio_width
