"""Training runs resume exactly, skip bad steps and log."""

import json
import math
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator
from torch import nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.training import loop
from letstalk_rt.training.loop import LoopConfig, Run


class Wobble(nn.Module):
    """A small network with dropout's opposite: all its chance comes from the run's generator."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def make_run(folder, seed=0, **options):
    config = LoopConfig(**{"steps": 6, "learning_rate": 0.05, "warm_up": 2, "report_every": 2,
                           **options})  # fmt: skip
    run = Run(folder, Wobble(seed), config)

    def loss(step):
        x = torch.randn(5, 4, generator=run.generator)
        run.model.count += 1
        value = (run.model.layer(x) - x[:, :3]).pow(2).mean()
        return value, {"size": float(x.abs().mean())}

    return run, loss


def stop_at(loss, last):
    def stopping(step):
        if step == last:
            raise KeyboardInterrupt
        return loss(step)

    return stopping


def shown_by_tensorboard(folder, name):
    """Return steps and values of a curve, as TensorBoard reads the folder of a run."""
    accumulator = event_accumulator.EventAccumulator(str(folder / "board"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


class TestRun:
    def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(self, tmp_path):
        whole, loss = make_run(tmp_path / "whole")
        whole.train(loss)
        first, loss = make_run(tmp_path / "parts", save_every_s=-1.0)
        with pytest.raises(KeyboardInterrupt):
            first.train(stop_at(loss, 3))
        second, loss = make_run(tmp_path / "parts", seed=5)
        assert 0 < second.step <= 3
        second.train(loss)
        for a, b in ((whole.model, second.model), (whole.averaged, second.averaged)):
            for name, value in a.state_dict().items():
                assert torch.equal(value, b.state_dict()[name]), name
        assert torch.equal(whole.generator.get_state(), second.generator.get_state())

    def test_a_finished_run_does_nothing_more(self, tmp_path):
        run, loss = make_run(tmp_path)
        run.train(loss)
        again, _ = make_run(tmp_path, seed=9)
        averaged = again.train(stop_at(loss, 6))
        assert torch.equal(averaged.layer.weight, run.averaged.layer.weight)

    def test_the_checkpoint_is_written_whole(self, tmp_path):
        run, loss = make_run(tmp_path)
        run.train(loss)
        assert {path.name for path in tmp_path.iterdir()} == {"board", "last.pt", "log.jsonl"}

    def test_the_newest_checkpoints_are_kept_by_step(self, tmp_path):
        run, loss = make_run(tmp_path, keep=2)
        for step in (1, 2, 3):
            run.config = replace(run.config, steps=step)
            run.train(loss)
        kept = sorted(tmp_path.glob("step-*.pt"))
        assert [path.name for path in kept] == ["step-00000002.pt", "step-00000003.pt"]
        assert [torch.load(path, weights_only=True)["step"] for path in kept] == [2, 3]
        assert kept[1].samefile(run.checkpoint)  # not on disk twice
        again, _ = make_run(tmp_path, keep=1)
        again.save()
        assert list(tmp_path.glob("step-*.pt")) == [] and again.checkpoint.exists()

    def test_a_checkpoint_holds_the_step_at_which_it_was_begun(self, tmp_path, monkeypatch):
        run, loss = make_run(tmp_path, save_every_s=math.inf)
        go, save = threading.Event(), torch.save
        monkeypatch.setattr(torch, "save", lambda *words: go.wait(60) and save(*words))
        before = {name: value.clone() for name, value in run.model.state_dict().items()}
        run.save(wait=False)
        assert run.files.busy and not run.checkpoint.exists()
        for group in run.optimizer.param_groups:  # training goes on while the disk is slow
            group["params"][0].data.add_(1)
        go.set()
        run.files.wait()
        written = torch.load(run.checkpoint, weights_only=True)
        assert all(torch.equal(written["model"][name], before[name]) for name in before)

    def test_a_checkpoint_that_cannot_be_written_ends_the_run(self, tmp_path, monkeypatch):
        def full(*words):
            raise OSError("No space left on device")

        run, loss = make_run(tmp_path, save_every_s=-1.0)
        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            run.train(loss)

    def test_the_best_average_is_written_and_no_worse_one_after_it(self, tmp_path):
        run, loss = make_run(tmp_path, evaluate_every=2)
        seen = {}

        def evaluate(averaged, step):
            seen[step] = averaged.layer.weight.clone()
            run.keep_if_best({2: 1.0, 4: 3.0, 6: 2.0}[step])
            return {}

        run.train(loss, evaluate)
        best = torch.load(run.best, weights_only=True)
        assert torch.equal(best["layer.weight"], seen[4])

    def test_the_average_follows_and_counts_do_not_average(self, tmp_path):
        run, loss = make_run(tmp_path, ema=0.5)
        wanted, history = run.model.layer.weight.detach().clone(), []

        def seen(step):
            history.append(run.model.layer.weight.detach().clone())
            return loss(step)

        averaged = run.train(seen)
        for step, weight in enumerate([*history[1:], run.model.layer.weight.detach()]):
            decay = min(0.5, (1 + step) / (10 + step))
            wanted = decay * wanted + (1 - decay) * weight
        torch.testing.assert_close(averaged.layer.weight, wanted)
        assert averaged.count == 6 and not averaged.training

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_step_that_is_not_finite_is_skipped(self, tmp_path, bad):
        run, loss = make_run(tmp_path)
        kept = []

        def breaking(step):
            kept.append(run.model.layer.weight.detach().clone())
            value, seen = loss(step)
            return (value * bad if step == 2 else value), seen

        run.train(breaking)
        assert torch.equal(kept[3], kept[2]) and not torch.equal(kept[4], kept[3])
        assert run.step == 6 and run.averaged.layer.weight.isfinite().all()

    def test_the_rate_warms_up_and_falls_to_its_share(self, tmp_path):
        run, _ = make_run(tmp_path, steps=100, warm_up=10, learning_rate=1.0, final_rate=0.1)
        rates = []
        for run.step in range(101):
            rates.append(run.rate())
        assert rates[0] == pytest.approx(0.1, rel=0.01)
        assert np.argmax(rates) in (9, 10) and max(rates) > 0.97
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(0.55 * math.pi)))
        assert rates[100] == pytest.approx(0.1)

    def test_accumulated_batches_make_the_step_of_one_large_batch(self, tmp_path):
        items = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(1))

        def loss_of(run, batches):
            return lambda number: (
                (run.model.layer(x := batches[number]) - x[..., :3]).pow(2).mean(),
                {"size": float(x.mean())},
            )

        one, _ = make_run(tmp_path / "one")
        one.train(loss_of(one, items.flatten(1, 2)))
        two, _ = make_run(tmp_path / "two", accumulate=2)
        assert two.config.batches == 12
        two.train(loss_of(two, items.flatten(0, 1)))
        torch.testing.assert_close(two.model.layer.weight, one.model.layer.weight)
        logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("one", "two")]
        for rows in zip(*(log.splitlines() for log in logs), strict=True):
            a, b = (json.loads(row) for row in rows)
            assert a["size"] == pytest.approx(b["size"]) and a["loss"] == pytest.approx(b["loss"])

    def test_bfloat16_is_of_the_loss_only(self, tmp_path):
        run, loss = make_run(tmp_path, precision="bfloat16")
        seen = []
        run.model.layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
        run.train(loss)
        assert set(seen) == {torch.bfloat16}
        state = run.optimizer.state[run.model.layer.weight]
        kept = (run.model.layer.weight, run.averaged.layer.weight, state["exp_avg"])
        assert {value.dtype for value in kept} == {torch.float32}

    def test_figures_and_judgements_are_logged(self, tmp_path):
        run, loss = make_run(tmp_path, evaluate_every=3)
        judged = []

        def evaluate(averaged, step):
            assert averaged is run.averaged
            judged.append(step)
            return {"score": step / 2}

        run.train(loss, evaluate)
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert judged == [3, 6]
        assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
        assert [line["score"] for line in lines if "score" in line] == [1.5, 3.0]
        assert {"loss", "norm", "size", "time_s"} < set(lines[0])

    def test_the_share_of_time_that_steps_wait_for_batches_is_logged(self, tmp_path, monkeypatch):
        """Of ten seconds a step, three are waited; evaluation counts as neither."""
        clock = [0.0]
        monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
        run, loss = make_run(tmp_path, evaluate_every=3)
        batches = SimpleNamespace(waited_s=0.0)

        def slow_loss(step):
            clock[0] += 10
            batches.waited_s += 3
            return loss(step)

        def evaluate(averaged, step):
            clock[0] += 1000
            return {"score": 0.0}

        run.train(slow_loss, evaluate, batches)
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        shares = [line["waiting"] for line in lines if "waiting" in line]
        assert shares == pytest.approx([0.3, 0.3, 0.3])

    def test_tensorboard_has_one_file_for_a_run_that_holds_all_figures(self, tmp_path):
        run, loss = make_run(tmp_path, evaluate_every=3)
        run.train(loss, lambda averaged, step: {"score": step / 2})
        assert len(list((tmp_path / "board").iterdir())) == 1
        assert shown_by_tensorboard(tmp_path, "score") == [(3, 1.5), (6, 3.0)]
        assert [step for step, _ in shown_by_tensorboard(tmp_path, "loss")] == [2, 4, 6]

    def test_tensorboard_shows_no_step_of_a_killed_run_twice(self, tmp_path):
        run, loss = make_run(tmp_path, report_every=1)
        with pytest.raises(KeyboardInterrupt):
            run.train(stop_at(loss, 4))  # nothing was saved: the next one begins anew
        again, loss = make_run(tmp_path, report_every=1)
        again.train(loss)
        shown = shown_by_tensorboard(tmp_path, "loss")
        assert [step for step, _ in shown] == [1, 2, 3, 4, 5, 6]

    def test_numbers_without_sense_are_named(self, tmp_path):
        with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
            make_run(tmp_path, steps=0)
        with pytest.raises(ConfigError, match="keep must be at least 1 checkpoint, got 0"):
            make_run(tmp_path, keep=0)
        with pytest.raises(ConfigError, match="accumulate must be at least 1 batch, got 0"):
            make_run(tmp_path, accumulate=0)
