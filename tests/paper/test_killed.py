"""A training that is killed with SIGKILL, wherever it is, ends as one that is not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from support.small_paper_model import make_batch, make_preset

from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.training import PaperBatch, train_paper_model
from letstalk_rt.training.loop import LoopConfig

STEPS, EVERY = 24, 5


def train(folder: Path) -> None:
    """Train a toy of the published model that saves whenever the last checkpoint is written."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = PaperModel(make_preset())

    def draw(generator: torch.Generator) -> PaperBatch:
        item = make_batch(seed=int(torch.randint(1 << 30, (1,), generator=generator)))
        return replace(item, clip=item.clip * 0.3)

    config = LoopConfig(
        steps=STEPS,
        learning_rate=1e-3,
        warm_up=2,
        report_every=1,
        evaluate_every=EVERY,
        save_every_s=0.0,
        keep=3,
    )
    held_out = [make_batch(seed=3)]
    train_paper_model(model, draw, folder, config, drop_speech=0.2, held_out=held_out)


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """Train in a process of its own."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths},
    )


def steps_of(folder: Path) -> list[int]:
    """Return the steps in the log of a run, in the order in which they were logged."""
    try:
        lines = (folder / "log.jsonl").read_text().splitlines()
    except OSError:
        return []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row["step"] for row in rows if "norm" in row]


def kill_at(folder: Path, step: int) -> None:
    """Begin the training in a folder, and kill it once it has logged this step."""
    before, process = len(steps_of(folder)), start(folder)
    while process.poll() is None and step not in steps_of(folder)[before:]:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def tensors(state: object, path: str = "") -> dict[str, object]:
    """Return the leaves of a checkpoint by where they are."""
    if isinstance(state, dict | list | tuple):
        parts = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, part in parts for k, v in tensors(part, f"{path}/{key}").items()}
    return {path: state}


def test_a_run_that_is_killed_anywhere_ends_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    steps = sorted(random.SystemRandom().sample(range(1, STEPS - 4), 2))
    for step in steps:
        kill_at(killed, step)
    assert start(killed).wait() == 0
    assert len(steps_of(killed)) >= STEPS  # steps after the last checkpoint were done again
    for name in ("last.pt", "best.pt"):
        one, other = (
            tensors(torch.load(folder / name, weights_only=True)) for folder in (whole, killed)
        )
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]
            assert same, f"{name}{key} differs after kills at {steps}"


if __name__ == "__main__":
    train(Path(sys.argv[1]))
