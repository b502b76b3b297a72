"""The one thread that runs the model, for many sessions: steps that wait are batched.

    worker = ModelWorker(pipeline, max_batch=4)
    avatar = Avatar.from_pipeline(pipeline, portrait, worker=worker)

No step waits in order to be batched: only steps that are queued behind another call are batched, so
one session alone is not affected, and under load several windows cost less than one after another.
All other calls run in the order of submission. Nothing here imports torch or asyncio.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from letstalk_rt.inference.protocol import (
    DeliverFrames,
    Pipeline,
    State,
    StateOptions,
    Windows,
)
from letstalk_rt.inference.step_times import StepTimes
from letstalk_rt.types import Portrait

P = ParamSpec("P")
T = TypeVar("T")

LOAD_WINDOW_S = 5.0
"""The period over which the load is measured."""

BATCHES = (1, 2, 4, 8)
MEASURE_S = 2.0
"""After this time no further batch size is measured."""

WORTHWHILE = 0.9
"""A batch must cost less than this share of the same steps one by one, or it only adds latency."""


@dataclass(slots=True, eq=False)
class _Call:
    """A queued call and the future of its result."""

    run: Callable[[], Any]
    future: "Future[Any]"


@dataclass(slots=True, eq=False)
class _Step(Generic[State]):
    """A queued step of one session and the future of its window."""

    pcm: np.ndarray
    state: State
    deliver: DeliverFrames | None
    key: Hashable
    future: "Future[np.ndarray]"


@dataclass(slots=True)
class WorkerLoad:
    """The load of the model thread.

    Attributes:
        steps: steps of sessions run so far.
        batches: calls of `pipeline.step` for these steps.
        busy_s: time spent in all calls.
    """

    steps: int = 0
    batches: int = 0
    busy_s: float = 0.0
    _spans: deque[tuple[float, float]] = field(default_factory=deque)

    def note(self, began_s: float, ended_s: float) -> None:
        """Record one call."""
        self.busy_s += ended_s - began_s
        self._spans.append((began_s, ended_s))
        while self._spans and self._spans[0][1] < ended_s - LOAD_WINDOW_S:
            self._spans.popleft()

    def ratio(self, now_s: float) -> float:
        """Return the share of the last `LOAD_WINDOW_S` that was spent in calls, from 0 to 1."""
        since_s = now_s - LOAD_WINDOW_S
        spans = list(self._spans)
        busy_s = sum(end - max(begin, since_s) for begin, end in spans if end > since_s)
        return min(1.0, busy_s / LOAD_WINDOW_S)


class ModelWorker(Generic[State]):
    """Runs all calls of a model in one thread, and batches steps of sessions that wait for it.

    Steps are batched if their states have the same `batch_key`; the sizes of their frames may
    differ. Partial windows are delivered only while no other call waits, because they cost more
    than a whole window.

    Args:
        pipeline: the model.
        max_batch: the most sessions in one step; 1 disables batching.
        on_step: called in the model thread with the duration of each call of `step` in seconds and
            the number of its sessions.
        clock: returns monotonic seconds.
        executor: runs one call at a time, in order, and is shut down with the worker; None creates
            a thread.

    Attributes:
        load: the load of its thread.
        max_batch: the most sessions in one step.
        step_times: how long steps take on this machine; None until `measure_steps`.
    """

    def __init__(
        self,
        pipeline: Pipeline[State],
        *,
        max_batch: int = 1,
        on_step: Callable[[float, int], None] = lambda seconds, count: None,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        assert max_batch >= 1, max_batch
        self.load = WorkerLoad()
        self.step_times: StepTimes | None = None
        self.max_batch = max_batch
        self.pipeline = pipeline
        self._on_step = on_step
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="letstalk-model")
        self._waiting: deque[_Call | _Step[State]] = deque()
        self._lock = threading.Lock()  # of `_waiting`
        self._queued = threading.Condition(self._lock)
        self._paused_s = 0.0  # in the present call
        self._stopping = False

    def step(
        self, pcm: np.ndarray, state: State, deliver: DeliverFrames | None = None
    ) -> "Future[np.ndarray]":
        """Queue the step of one session.

        Args:
            pcm: `(hop,)` float32 in [-1, 1].
            state: state of the session; updated in place.
            deliver: called in the model thread with each partial window in order, `(n, H, W, 3)`,
                as soon as it is ready.

        Returns:
            A future of the window, `(N, H, W, 3)` uint8.

        Raises:
            RuntimeError: the worker was shut down.
        """
        key = self.pipeline.batch_key(state)
        step = _Step(pcm, state, deliver, key, Future())
        self._queue(step)
        return step.future

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Queue any other call and return its future.

        Raises:
            RuntimeError: the worker was shut down.
        """
        future: Future[T] = Future()
        self._queue(_Call(partial(fn, *args, **kwargs), future))
        return future

    def measure_steps(self, portrait: Portrait, **options: Any) -> StepTimes | None:
        """Measure how long steps take, for sessions from now on; see `StepTimes.of`."""
        self.step_times = StepTimes.of(self.pipeline, portrait, self._result_of, **options)
        return self.step_times

    def pause(self, until_s: float) -> None:
        """Wait in the model thread until a time, or until another call is queued.

        For calls that would do better with what is known later. The thread counts as idle.

        Args:
            until_s: by the clock of the worker.
        """
        began_s = self._clock()
        with self._queued:
            while not (self._waiting or self._stopping) and (now_s := self._clock()) < until_s:
                self._queued.wait(until_s - now_s)
        self._paused_s += self._clock() - began_s

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the thread after all queued calls, or cancel those. May be called twice."""
        with self._lock:
            self._stopping = True
            self._queued.notify()
            if cancel_futures:
                for call in self._waiting:
                    call.future.cancel()
                self._waiting.clear()
        self._executor.shutdown(wait=wait)

    def busy_ratio(self) -> float:
        """Return the share of the last seconds in which the thread was busy, from 0 to 1."""
        return self.load.ratio(self._clock())

    def _result_of(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.submit(fn, *args, **kwargs).result()

    def _queue(self, call: _Call | _Step[State]) -> None:
        with self._lock:
            if self._stopping:
                raise RuntimeError("the model worker was shut down")
            self._waiting.append(call)
            self._queued.notify()
        self._executor.submit(self._run_next)

    def _run_next(self) -> None:
        """Run the oldest call, unless it was batched with an earlier step and nothing is left."""
        with self._lock:
            work = self._take()
        began_s, self._paused_s = self._clock(), 0.0
        match work:
            case None:
                return
            case _Call(run, future):
                if future.set_running_or_notify_cancel():
                    _resolve(future, run)
            case steps:
                self._run_steps(steps)
        self.load.note(began_s + self._paused_s, self._clock())

    def _take(self) -> _Call | list[_Step[State]] | None:
        """Remove and return the oldest call, or the oldest step and those to batch with it."""
        if not self._waiting:
            return None
        first = self._waiting.popleft()
        if isinstance(first, _Call):
            return first
        taken, kept = [first], deque[_Call | _Step[State]]()
        for call in self._waiting:
            has_space = len(taken) < self.max_batch
            if has_space and isinstance(call, _Step) and call.key == first.key:
                taken.append(call)
            else:
                kept.append(call)
        self._waiting = kept
        return taken

    def _run_steps(self, steps: list[_Step[State]]) -> None:
        steps = [step for step in steps if step.future.set_running_or_notify_cancel()]
        if not steps:
            return
        began_s = self._clock()
        try:
            windows = self._make_windows(steps)
        except Exception as error:
            if len(steps) == 1:
                steps[0].future.set_exception(error)
            else:  # run them one by one, so that only the one at fault fails
                for step in steps:
                    _resolve(step.future, partial(self._make_alone, step))
            return
        self.load.steps += len(steps)
        self.load.batches += 1
        self._on_step(self._clock() - began_s - self._paused_s, len(steps))
        for step, window in zip(steps, windows, strict=True):
            step.future.set_result(window)

    def _make_windows(self, steps: list[_Step[State]]) -> Sequence[np.ndarray]:
        if len(steps) == 1 and not self._waiting:
            return [self._make_alone(steps[0])]
        pcm = np.stack([step.pcm for step in steps])
        windows = self.pipeline.step(pcm, [step.state for step in steps])
        for step, window in zip(steps, windows, strict=True):
            if step.deliver is not None:
                step.deliver(window)
        return list(windows)

    def _make_alone(self, step: _Step[State]) -> np.ndarray:
        """Generate the window of one session, delivering partial windows."""
        deliver = None if step.deliver is None else partial(_deliver_first, step.deliver)
        window: np.ndarray = self.pipeline.step(step.pcm[None], [step.state], deliver)[0]
        return window


def measure_batches(
    pipeline: Pipeline[State],
    portraits: Sequence[Portrait],
    counts: Sequence[int] = BATCHES,
    *,
    stop_early: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, float]:
    """Measure how long a step takes by batch size. Blocks for some seconds.

    Args:
        pipeline: the model.
        portraits: any portraits, which the sessions take by turns.
        counts: batch sizes, increasing from 1.
        stop_early: stop at the first batch size that is not worthwhile, or after `MEASURE_S`.
        clock: returns monotonic seconds.

    Returns:
        Seconds per step, by batch size.
    """
    began_s = clock()
    seconds: dict[int, float] = {}
    for count in counts:
        taken = islice(cycle(portraits), count)
        states = [pipeline.init_state(each, StateOptions(n)) for n, each in enumerate(taken)]
        pcm = np.zeros((count, pipeline.hop), np.float32)
        pipeline.step(pcm, states)  # warm-up
        seconds[count] = min(_timed(pipeline, pcm, states, clock) for _ in range(3))
        if stop_early and (worthwhile_batch(seconds) < count or clock() - began_s > MEASURE_S):
            break
    return seconds


def _timed(
    pipeline: Pipeline[State],
    pcm: np.ndarray,
    states: Sequence[State],
    clock: Callable[[], float],
) -> float:
    began_s = clock()
    pipeline.step(pcm, states)
    return clock() - began_s


def worthwhile_batch(seconds: dict[int, float]) -> int:
    """Return the largest batch size that is worthwhile; see `WORTHWHILE`.

    Args:
        seconds: seconds per step, by batch size; must contain 1.
    """
    alone_s = seconds[1]
    good = [count for count, took_s in seconds.items() if took_s <= WORTHWHILE * count * alone_s]
    return max([1, *good])


def _deliver_first(deliver: DeliverFrames, parts: Windows) -> None:
    """Deliver a partial window of a batch of one session."""
    deliver(parts[0])


def _resolve(future: "Future[T]", call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
