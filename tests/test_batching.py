"""The model's one thread: steps that wait together run together, and nobody suffers for another."""

import threading
import time
from functools import partial

import numpy as np
import pytest

from letstalk_rt.batching import Load, ModelWorker, alike, worthwhile_batch

HOP = 8


class State:
    def __init__(self, name, size=(4, 4), is_broken=False):
        self.name, self.size, self.is_broken = name, size, is_broken
        self.heard = []


class Pipeline:
    """Shows what it hears; waits at the gate before each step, so that others queue up."""

    hop, frames_per_window = HOP, 4

    def __init__(self):
        self.gate, self.entered = threading.Semaphore(0), threading.Semaphore(0)
        self.batches = []

    def step(self, pcm, states):
        self.entered.release()
        assert self.gate.acquire(timeout=20)
        self.batches.append([state.name for state in states])
        if any(state.is_broken for state in states):
            raise RuntimeError("broken")
        for hop, state in zip(pcm, states, strict=True):
            state.heard.append(float(hop[0]))
        return np.stack([np.full((4, 2, 2, 3), hop[0], np.uint8) for hop in pcm])

    def interrupt(self, state):
        self.batches.append(["interrupt", state.name])


@pytest.fixture
def pipeline():
    return Pipeline()


def submit(worker, pipeline, state, level):
    pcm = np.full((1, HOP), level, np.float32)
    return worker.submit(partial(pipeline.step, pcm, [state]))


def queued(worker, pipeline, states):
    """Queue a step of each while the first one runs; gives their futures."""
    first = submit(worker, pipeline, states[0], 1)
    assert pipeline.entered.acquire(timeout=20)
    return [first] + [submit(worker, pipeline, s, n) for n, s in enumerate(states[1:], start=2)]


def test_steps_that_queue_up_run_as_one_and_each_gets_its_own(pipeline):
    worker = ModelWorker(pipeline, max_batch=8)
    states = [State(name) for name in "abcd"]
    futures = queued(worker, pipeline, states)
    pipeline.gate.release(2)
    windows = [future.result(20) for future in futures]
    assert [window.shape for window in windows] == [(1, 4, 2, 2, 3)] * 4
    assert [int(window[0, 0, 0, 0, 0]) for window in windows] == [1, 2, 3, 4]
    assert [state.heard for state in states] == [[1], [2], [3], [4]]
    assert pipeline.batches == [["a"], ["b", "c", "d"]]
    assert (worker.load.steps, worker.load.batches) == (4, 2)
    worker.shutdown()


def test_only_what_fits_is_joined_and_only_so_many(pipeline):
    worker = ModelWorker(pipeline, max_batch=2)
    sizes = {"a": (4, 4), "b": (4, 4), "c": (8, 8), "d": (4, 4), "e": (4, 4)}
    futures = queued(worker, pipeline, [State(name, size) for name, size in sizes.items()])
    pipeline.gate.release(9)
    for future in futures:
        future.result(20)
    assert pipeline.batches == [["a"], ["b", "d"], ["c"], ["e"]]
    worker.shutdown()


class PartedPipeline(Pipeline):
    """Hands its windows over in two parts."""

    def step(self, pcm, states, deliver=None):
        window = super().step(pcm, states)
        for part in (window[:, :1], window[:, 1:]) if deliver is not None else ():
            deliver(part)
        return window


def test_a_window_comes_in_parts_only_when_nobody_waits():
    pipeline = PartedPipeline()
    worker = ModelWorker(pipeline, max_batch=8)
    states, taken = [State(name) for name in "abc"], {name: [] for name in "abc"}

    def submit_parted(state, level):
        pcm = np.full((1, HOP), level, np.float32)
        return worker.submit(partial(pipeline.step, pcm, [state], taken[state.name].append))

    first = submit_parted(states[0], 1)
    assert pipeline.entered.acquire(timeout=20)
    waiting = [submit_parted(states[1], 2), submit_parted(states[2], 3)]
    pipeline.gate.release(2)
    assert [future.result(20).shape[1] for future in (first, *waiting)] == [4, 4, 4]
    assert pipeline.batches == [["a"], ["b", "c"]]
    assert [part.shape for part in taken["a"]] == [(1, 1, 2, 2, 3), (1, 3, 2, 2, 3)]
    assert [part.shape for part in taken["b"] + taken["c"]] == [(1, 4, 2, 2, 3)] * 2
    assert [int(taken[name][0].max()) for name in "abc"] == [1, 2, 3]
    worker.shutdown()


def test_other_calls_are_run_one_by_one_in_turn(pipeline):
    worker = ModelWorker(pipeline, max_batch=1)
    state = State("a")
    futures = [submit(worker, pipeline, state, 1), worker.submit(pipeline.interrupt, state)]
    futures.append(submit(worker, pipeline, state, 2))
    pipeline.gate.release(2)
    for future in futures:
        future.result(20)
    assert pipeline.batches == [["a"], ["interrupt", "a"], ["a"]]
    assert worker.submit(lambda: 1 / 2).result(20) == 0.5
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 / 0).result(20)
    worker.shutdown()


def test_one_broken_session_does_not_break_those_it_was_joined_with(pipeline):
    worker = ModelWorker(pipeline, max_batch=8)
    states = [State("a"), State("b"), State("bad", is_broken=True), State("c")]
    futures = queued(worker, pipeline, states)
    pipeline.gate.release(9)
    assert futures[1].result(20)[0, 0, 0, 0, 0] == 2
    assert futures[3].result(20)[0, 0, 0, 0, 0] == 4
    with pytest.raises(RuntimeError, match="broken"):
        futures[2].result(20)
    worker.shutdown()


def test_a_step_that_nobody_waits_for_any_more_is_left_out(pipeline):
    worker = ModelWorker(pipeline, max_batch=8)
    states = [State(name) for name in "abc"]
    futures = queued(worker, pipeline, states)
    assert futures[1].cancel()
    pipeline.gate.release(2)
    assert futures[2].result(20) is not None
    assert pipeline.batches == [["a"], ["c"]]
    worker.shutdown()


def test_shutting_down_drops_what_waits_and_takes_no_more(pipeline):
    worker = ModelWorker(pipeline, max_batch=8)
    futures = queued(worker, pipeline, [State("a"), State("b")])
    worker.shutdown(wait=False, cancel_futures=True)
    assert futures[1].cancelled()
    pipeline.gate.release()
    futures[0].result(20)
    with pytest.raises(RuntimeError, match="shut down"):
        worker.submit(print)
    worker.shutdown()
    assert not any(thread.name == "letstalk-model" for thread in threading.enumerate())


def test_states_that_do_not_tell_their_size_are_never_joined():
    assert alike({}) != alike({})
    assert alike(State("a")) == alike(State("b")) != alike(State("c", (8, 8)))


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.06}, 1),
        ({1: 0.06, 2: 0.12}, 1),
        ({1: 0.06, 2: 0.10}, 2),
        ({1: 0.06, 2: 0.10, 4: 0.23}, 2),
        ({1: 0.06, 2: 0.10, 4: 0.15}, 4),
    ],
)
def test_joining_must_be_worth_it(seconds, best):
    assert worthwhile_batch(seconds) == best


def test_the_load_is_that_of_the_last_seconds():
    load = Load()
    assert load.ratio(100.0) == 0
    load.note(96.0, 97.0)
    load.note(99.0, 100.0)
    assert load.ratio(100.0) == pytest.approx(0.4)
    assert load.ratio(101.5) == pytest.approx(0.3)
    assert load.ratio(200.0) == 0
    assert load.busy_s == pytest.approx(2)


def test_a_window_is_not_kept_alive_by_the_idle_thread(pipeline):
    import gc
    import weakref

    worker = ModelWorker(pipeline)
    state = State("a")
    future = submit(worker, pipeline, state, 1)
    pipeline.gate.release()
    future.result(20)
    gone = weakref.ref(state)
    del state, future
    for _ in range(100):
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.02)
    assert gone() is None
    worker.shutdown()
