"""The batching benchmark runs, with a painter for a model."""

import asyncio
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from support.server_fakes import Painter

from letstalk_rt.inference.protocol import DEFAULT_OPTIONS
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.inference.worker import measure_batches
from letstalk_rt.types import Portrait

PATH = Path(__file__).parents[2] / "benchmarks" / "bench_batching.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_batching", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def face():
    canvas = np.full((64, 64, 3), 90, np.uint8)
    return Portrait(canvas, np.zeros((256, 256, 3), np.uint8), (8.0, 8.0, 48.0))


@pytest.mark.parametrize("batch", [1, 8])
def test_sessions_run_side_by_side_and_are_measured(bench, face, batch):
    found = asyncio.run(bench.live(Painter(), [face], count=2, batch=batch, seconds=1.0))
    assert set(found) == {"step_ms", "repeated_ratio", "busy_ratio", "sessions_per_call"}
    assert found["step_ms"]["p50"] > 0 and found["sessions_per_call"] >= 1


def test_sessions_take_pictures_of_different_sizes_by_turns(bench, face):
    large = Portrait(np.full((96, 128, 3), 90, np.uint8), face.crop, face.box)
    pipeline, shapes = Painter(), []
    init_state = pipeline.init_state

    def note(portrait, options):
        shapes.append(portrait.canvas.shape)
        return init_state(portrait, options)

    pipeline.init_state = note
    measure_batches(pipeline, [face, large], counts=(1, 3), stop_early=False)
    assert shapes == [(64, 64, 3), (64, 64, 3), (96, 128, 3), (64, 64, 3)]
    found = asyncio.run(bench.live(Painter(), [face, large], count=2, batch=8, seconds=0.5))
    assert found["sessions_per_call"] >= 1


def test_measuring_stops_where_joining_is_not_worth_it(face):
    now_s = iter(range(1000))
    assert set(measure_batches(Painter(), [face], clock=lambda: next(now_s))) == {1}, "it took long"
    whole = measure_batches(Painter(), [face], counts=(1, 2, 4), stop_early=False)
    assert set(whole) == {1, 2, 4} and all(seconds > 0 for seconds in whole.values())


class Slow(Painter):
    """A model whose windows take `costs_s` for each session, by quality, on a clock of its own."""

    def __init__(self, costs_s):
        super().__init__()
        self.costs_s, self.now_s, self.loudness = costs_s, 0.0, []

    def init_state(self, portrait, options=DEFAULT_OPTIONS):
        return super().init_state(portrait, options) | {"quality": FULL_QUALITY}

    def set_quality(self, state, quality):
        state["quality"] = quality

    def step(self, pcm, states, deliver=None):
        self.loudness.append(np.abs(pcm).max())
        self.now_s += sum(self.costs_s[state["quality"]] for state in states)
        return super().step(pcm, states, deliver)


def test_a_process_holds_as_many_sessions_as_fit_into_the_playing_time(bench, face):
    lower = Quality(decode_every=2)
    model = Slow({FULL_QUALITY: 0.05, lower: 0.03})

    def held(quality, most=32):
        return bench.held(model, [face], quality, windows=4, most=most, clock=lambda: model.now_s)

    full = held(FULL_QUALITY)
    assert full["sessions_at_25_fps"] == 3, "three windows take 150 ms, four 200"
    assert full["step_ms"]["4"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert held(lower)["sessions_at_25_fps"] == 5
    assert held(lower, most=2)["sessions_at_25_fps"] == 2
    assert min(model.loudness) > 0.05, "mouths speak"


def test_a_process_that_is_too_slow_holds_no_session(bench, face):
    model = Slow({FULL_QUALITY: 0.2})
    none = bench.held(model, [face], FULL_QUALITY, 4, 32, clock=lambda: model.now_s)
    assert none["sessions_at_25_fps"] == 0 and set(none["step_ms"]) == {"1"}
