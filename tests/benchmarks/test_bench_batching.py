"""The batching benchmark runs, with a painter for a model."""

import asyncio
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from support.server_fakes import Painter

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
