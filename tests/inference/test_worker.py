"""The model's one thread: steps that wait together run together, and nobody suffers for another."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from support.fake_pipelines import GATED_HOP, GatedPipeline, NamedState

from letstalk_rt.inference.worker import ModelWorker, WorkerLoad, worthwhile_batch


@pytest.fixture
def pipeline():
    return GatedPipeline()


@pytest.fixture
def worker(pipeline):
    worker = ModelWorker(pipeline, max_batch=8)
    yield worker
    worker.shutdown()


def submit(worker, state, level, deliver=None):
    return worker.step(np.full(GATED_HOP, level, np.float32), state, deliver)


def queued(worker, states):
    """Queue a step of each while the first one runs; gives their futures."""
    first = submit(worker, states[0], 1)
    assert worker.pipeline.entered.acquire(timeout=20)
    return [first] + [submit(worker, s, n) for n, s in enumerate(states[1:], start=2)]


def test_steps_that_queue_up_run_as_one_and_each_gets_its_own(pipeline, worker):
    states = [NamedState(name) for name in "abcd"]
    futures = queued(worker, states)
    pipeline.gate.release(2)
    windows = [future.result(20) for future in futures]
    assert [window.shape for window in windows] == [(4, 2, 2, 3)] * 4
    assert [int(window[0, 0, 0, 0]) for window in windows] == [1, 2, 3, 4]
    assert [state.heard for state in states] == [[1], [2], [3], [4]]
    assert pipeline.batches == [["a"], ["b", "c", "d"]]
    assert (worker.load.steps, worker.load.batches) == (4, 2)


def test_only_what_fits_is_joined_and_only_so_many(pipeline, worker):
    worker.max_batch = 2
    sizes = {"a": (4, 4), "b": (4, 4), "c": (8, 8), "d": (4, 4), "e": (4, 4)}
    futures = queued(worker, [NamedState(name, size) for name, size in sizes.items()])
    pipeline.gate.release(9)
    for future in futures:
        future.result(20)
    assert pipeline.batches == [["a"], ["b", "d"], ["c"], ["e"]]


def test_a_window_comes_in_parts_only_when_nobody_waits(pipeline, worker):
    states, taken = [NamedState(name) for name in "abc"], {name: [] for name in "abc"}
    first = submit(worker, states[0], 1, taken["a"].append)
    assert pipeline.entered.acquire(timeout=20)
    waiting = [submit(worker, s, n, taken[s.name].append) for n, s in enumerate(states[1:], 2)]
    pipeline.gate.release(2)
    assert [len(future.result(20)) for future in (first, *waiting)] == [4, 4, 4]
    assert pipeline.batches == [["a"], ["b", "c"]]
    assert [part.shape for part in taken["a"]] == [(1, 2, 2, 3), (3, 2, 2, 3)]
    assert [part.shape for part in taken["b"] + taken["c"]] == [(4, 2, 2, 3)] * 2
    assert [int(taken[name][0].max()) for name in "abc"] == [1, 2, 3]


def test_other_calls_are_run_one_by_one_in_turn(pipeline, worker):
    state = NamedState("a")
    futures = [submit(worker, state, 1), worker.submit(pipeline.interrupt, state)]
    futures.append(submit(worker, state, 2))
    pipeline.gate.release(2)
    for future in futures:
        future.result(20)
    assert pipeline.batches == [["a"], ["interrupt", "a"], ["a"]]
    assert worker.submit(lambda: 1 / 2).result(20) == 0.5
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 / 0).result(20)


def test_one_broken_session_does_not_break_those_it_was_joined_with(pipeline, worker):
    states = [NamedState("a"), NamedState("b"), NamedState("bad", is_broken=True), NamedState("c")]
    futures = queued(worker, states)
    pipeline.gate.release(9)
    assert futures[1].result(20)[0, 0, 0, 0] == 2
    assert futures[3].result(20)[0, 0, 0, 0] == 4
    with pytest.raises(RuntimeError, match="broken"):
        futures[2].result(20)


def test_a_step_that_nobody_waits_for_any_more_is_left_out(pipeline, worker):
    states = [NamedState(name) for name in "abc"]
    futures = queued(worker, states)
    assert futures[1].cancel()
    pipeline.gate.release(2)
    assert futures[2].result(20) is not None
    assert pipeline.batches == [["a"], ["c"]]


def test_shutting_down_drops_what_waits_and_takes_no_more(pipeline, worker):
    futures = queued(worker, [NamedState("a"), NamedState("b")])
    worker.shutdown(wait=False, cancel_futures=True)
    assert futures[1].cancelled()
    pipeline.gate.release()
    futures[0].result(20)
    with pytest.raises(RuntimeError, match="shut down"):
        worker.submit(print)
    worker.shutdown()
    assert not any(thread.name.startswith("letstalk-model") for thread in threading.enumerate())


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
    load = WorkerLoad()
    assert load.ratio(100.0) == 0
    load.note(96.0, 97.0)
    load.note(99.0, 100.0)
    assert load.ratio(100.0) == pytest.approx(0.4)
    assert load.ratio(101.5) == pytest.approx(0.3)
    assert load.ratio(200.0) == 0
    assert load.busy_s == pytest.approx(2)


def test_a_state_is_not_kept_alive_by_the_idle_thread(pipeline, worker):
    state = NamedState("a")
    future = submit(worker, state, 1)
    pipeline.gate.release()
    future.result(20)
    gone = weakref.ref(state)
    worker.submit(print, end="").result(20)  # the thread is done with the step
    del state, future
    gc.collect()
    assert gone() is None


def test_a_worker_that_nobody_holds_ends_its_thread():
    worker = ModelWorker(GatedPipeline())
    thread = worker.submit(threading.current_thread).result(20)
    del worker
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_a_pause_ends_at_its_time_or_when_another_call_waits(worker):
    began_s = time.monotonic()
    worker.submit(worker.pause, began_s + 0.05).result(20)
    assert time.monotonic() >= began_s + 0.05

    long = worker.submit(worker.pause, time.monotonic() + 600)
    assert worker.submit(lambda: "next").result(20) == "next"
    assert long.done()

    long = worker.submit(worker.pause, time.monotonic() + 600)
    worker.shutdown()
    assert long.done()


def test_a_pause_is_no_work(pipeline):
    took_s = []
    worker = ModelWorker(pipeline, on_step=lambda seconds, count: took_s.append(seconds))
    pipeline.gate.release(1)
    ended_s = time.monotonic() + 2.0
    submit(worker, NamedState("a"), 1, lambda part: worker.pause(ended_s)).result(20)
    worker.shutdown()
    assert time.monotonic() >= ended_s
    assert took_s[0] < 1.5 and worker.load.busy_s < 1.5
