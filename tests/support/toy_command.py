"""`letstalk` with toys in the place of the large presets: the commands of the recipe, in small.

`python -m support.toy_command WORDS...` runs one command as `letstalk WORDS...` would. Numbers that
cost time are made small, `b` and `faithful-s` stand for toys, and what only the extra `eval` has
(MediaPipe, SFace) is replaced by measures of pixels. With TOY_KILLED_AT in the
environment, a stage of training saves in every step, and is killed once it has saved that one.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

from letstalk_rt.cli import evaluate, train
from letstalk_rt.cli.main import main as letstalk
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.presets import PRESETS
from letstalk_rt.paper.presets import PAPER_PRESETS
from letstalk_rt.training.evaluation import long_run, portraits, rollout
from letstalk_rt.training.loop import Run
from support.data_folder import face_points
from support.toys import DC_LAYOUT, TOY_B, TOY_S

_STEPS = {"flow": "4", "distill": "2", "faithful": "4"}
_REPLACED = {
    "--preset": {"b": "toy-b", "faithful-s": "faithful-toy-s"},
    "--device": {"cuda": "cpu"},
    "--size": {"512": "256"},
}
_ADDED = {
    "prepare": ["--landmarks", "own", "--workers", "1", "--min-s", "0.9", "--eval-share", "0.01"],
    "eval": ["--stills", "0", "--long-s", "0", "--clips", "1", "--device", "cpu"],
    "render": ["--device", "cpu"],
}


def in_small(words: list[str]) -> list[str]:
    """Return the words of a command with small numbers and with toys."""
    command = words[0]
    small = [command]
    for option, word in zip(words, words[1:], strict=False):
        if option == "--batch":
            word = "2"
        elif option == "--steps":
            word = _STEPS[words[1]] if command == "train" else "2"
        small.append(_REPLACED.get(option, {}).get(word, word))
    return small + _ADDED.get(command, [])


class BrightnessLandmarker:
    """Stands for MediaPipe's landmarker: a face whose mouth opens where frames are brighter."""

    def __init__(self, model: object = None) -> None:
        del model

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Return `(478, 2)` px of a frame of 256 px."""
        return face_points(float(rgb.mean()) / 16)[0].astype(np.float32)


class PixelIdentity:
    """Stands for SFace: the correlation of pixels."""

    def likeness(self, portrait: np.ndarray, frames: np.ndarray) -> float:
        """Return the mean correlation of frames with a portrait."""
        return float(np.mean([np.corrcoef(portrait.ravel(), f.ravel())[0, 1] for f in frames]))


@contextmanager
def toys() -> Iterator[None]:
    """Let the presets and the parts of other packages be toys."""
    random = DCAutoencoder.random
    with (
        mock.patch.dict(PRESETS, {TOY_B.name: TOY_B}),
        mock.patch.dict(PAPER_PRESETS, {TOY_S.name: TOY_S}),
        mock.patch.object(DCAutoencoder, "random", lambda size=512: random(size, **DC_LAYOUT)),
        mock.patch.object(rollout, "EVALUATION_FRAMES", 8),
        mock.patch.object(long_run, "SPEED_S", 1),
        mock.patch.object(portraits, "SILENT_FRAMES", 4),
        mock.patch.object(portraits, "DIVERSITY_SEEDS", 2),
        mock.patch.object(evaluate, "Landmarker", BrightnessLandmarker),
        mock.patch.object(evaluate, "Identity", PixelIdentity),
    ):
        yield


@contextmanager
def killed_at(step: int, kill: object) -> Iterator[None]:
    """Save in every step of training, and call `kill` once the main process has saved this one."""
    save = Run.save

    def save_and_kill(run: Run, *, wait: bool = True) -> None:
        save(run, wait=wait)
        run.files.wait()
        if run.step == step and int(os.environ.get("RANK", "0")) == 0:
            kill()  # type: ignore[operator]

    loops = {name: replace(loop, save_every_s=-1.0) for name, loop in train.LOOPS.items()}
    with mock.patch.dict(train.LOOPS, loops), mock.patch.object(Run, "save", save_and_kill):
        yield


def main() -> int:
    """Run one command of this process's arguments."""
    torch.set_num_threads(1)
    words = in_small(sys.argv[1:])
    step = int(os.environ.get("TOY_KILLED_AT", "-1"))
    with toys(), killed_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        return letstalk(words)


if __name__ == "__main__":
    raise SystemExit(main())
