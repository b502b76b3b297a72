"""Measures how fast this machine runs a model, from audio to composited frames."""

import time
from dataclasses import dataclass

import numpy as np

from letstalk_rt.metrics import Percentiles, percentiles
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import FPS, SAMPLE_RATE

_WARM_UP = 2
LIVE_FACTOR = 1.2
"""How much faster than real time a model must be, to leave capacity for everything else."""


@dataclass(frozen=True)
class Throughput:
    """The results of a measurement.

    Attributes:
        preset: name of the model.
        device: device that it ran on.
        threads: CPU threads of torch.
        size: width and height of the frames in pixels.
        load_s: time to load the model.
        first_window_s: time from a new session to its first frames.
        window_ms: time to compute a window.
        budget_ms: playing time of a window.
        missed: number of windows that took longer than that.
        windows: number of measured windows.
    """

    preset: str
    device: str
    threads: int
    size: tuple[int, int]
    load_s: float
    first_window_s: float
    window_ms: Percentiles
    budget_ms: float
    missed: int
    windows: int

    @property
    def fps(self) -> float:
        """Frames per second, computed from the median window."""
        return FPS * self.budget_ms / self.window_ms.p50

    @property
    def fits(self) -> bool:
        """Whether this machine can run this model live."""
        return self.fps >= LIVE_FACTOR * FPS


def measure_throughput(
    avatar: Avatar, preset: str, *, load_s: float, seconds: float = 5.0
) -> Throughput:
    """Run a model for some seconds and measure it.

    Args:
        avatar: a loaded avatar.
        preset: name of its model, for the result.
        load_s: time that loading took, for the result.
        seconds: how long to measure.
    """
    import torch

    pipeline = avatar.pipeline
    rng = np.random.default_rng(0)
    speech = (0.1 * rng.standard_normal((1, pipeline.hop))).astype(np.float32)
    started_s = time.perf_counter()
    state = pipeline.init_state(avatar.portrait)
    pipeline.step(speech, [state])
    first_s = time.perf_counter() - started_s
    for _ in range(_WARM_UP):
        pipeline.step(speech, [state])
    taken_ms: list[float] = []
    while sum(taken_ms) < seconds * 1000 or len(taken_ms) < 3:
        before_s = time.perf_counter()
        pipeline.step(speech, [state])
        taken_ms.append((time.perf_counter() - before_s) * 1000)
    budget_ms = pipeline.hop * 1000 / SAMPLE_RATE
    height, width = avatar.portrait.canvas.shape[:2]
    return Throughput(
        preset=preset,
        device=str(pipeline.device),
        threads=torch.get_num_threads(),
        size=(width, height),
        load_s=load_s,
        first_window_s=first_s,
        window_ms=percentiles(taken_ms),
        budget_ms=budget_ms,
        missed=sum(value > budget_ms for value in taken_ms),
        windows=len(taken_ms),
    )
