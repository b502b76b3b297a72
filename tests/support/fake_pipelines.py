"""Fake pipelines that several tests share."""

import threading
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, StateOptions
from letstalk_rt.metrics import NoClock, StageTimer
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.types import Portrait
from support.faces import SkinFinder
from support.fakes import deliver_parts

GATED_HOP = 8


class NamedState:
    def __init__(self, name, size=(4, 4), is_broken=False):
        self.name, self.size, self.is_broken = name, size, is_broken
        self.heard = []


class GatedPipeline(Pipeline[NamedState]):
    """A pipeline whose frames encode the audio; it waits at a gate before each step."""

    hop, frames_per_window, lookahead_frames = GATED_HOP, 4, 0
    partial_sizes, device = (1, 3), "cpu"

    def __init__(self):
        self.gate, self.entered = threading.Semaphore(0), threading.Semaphore(0)
        self.batches = []

    def init_state(self, portrait, options=DEFAULT_OPTIONS):
        return NamedState("new", portrait.canvas.shape[:2])

    def step(self, pcm, states, deliver=None):
        self.entered.release()
        assert self.gate.acquire(timeout=20)
        self.batches.append([state.name for state in states])
        if any(state.is_broken for state in states):
            raise RuntimeError("broken")
        for hop, state in zip(pcm, states, strict=True):
            state.heard.append(float(hop[0]))
        window = np.stack([np.full((4, 2, 2, 3), hop[0], np.uint8) for hop in pcm])
        deliver_parts(window, self.partial_sizes, deliver)
        return window

    def interrupt(self, state, *, unseen=0):
        self.batches.append(["interrupt", state.name])

    def change_portrait(self, state, portrait):
        state.size = portrait.canvas.shape[:2]

    def batch_key(self, state):
        return state.size


class StillPipeline(Pipeline[Compositor]):
    """A pipeline that returns grey frames and records its calls."""

    fps, frames_per_window, hop, lookahead_frames = 25, 4, 2560, 2
    partial_sizes, device, variant, steps = (4,), "cpu", "float32", 1
    batches: list[tuple[int, ...]] = []

    def __init__(self) -> None:
        self.finder = SkinFinder()

    @classmethod
    def load(cls, **options: Any) -> "StillPipeline":
        cls.batches = []
        return cls()

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> Compositor:
        return Compositor(portrait)

    def interrupt(self, state: Compositor, *, unseen: int = 0) -> None:
        pass

    def change_portrait(self, state: Compositor, portrait: Portrait) -> None:
        raise ConfigError("this model cannot change faces")

    def batch_key(self, state: Compositor) -> Hashable:
        return ()

    def step(
        self,
        pcm: np.ndarray,
        states: Sequence[Compositor],
        deliver: Deliver | None = None,
        *,
        clock: StageTimer = NoClock(),  # noqa: B008 (it has no state)
    ) -> np.ndarray:
        assert pcm.dtype == np.float32
        self.batches.append(pcm.shape)
        with clock.stage("decode"):
            faces = np.full((4, 256, 256, 3), 90, np.uint8)
        with clock.stage("composite"):
            window = np.stack([state.compose(faces) for state in states])
        if deliver is not None:
            deliver(window)
        return window
