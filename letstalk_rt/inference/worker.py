"""The one thread that runs the model, for many sessions: steps that wait together run together.

    worker = ModelWorker(pipeline, max_batch=4)
    avatar = Avatar.from_pipeline(pipeline, portrait, worker=worker)

Nobody waits to be batched: only steps that have queued up behind another call are joined, so with
one session nothing changes, and under load several windows cost less than one after another. All
other calls run in the order in which they came. This room knows no torch and no asyncio.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from letstalk_rt.inference.protocol import Deliver, Pipeline, State, StateOptions
from letstalk_rt.types import Portrait

P = ParamSpec("P")
T = TypeVar("T")

LOAD_WINDOW_S = 5.0
"""The load is that of the last so many seconds."""

BATCHES = (1, 2, 4, 8)
MEASURE_S = 2.0
"""Measuring begins no further batch size after so long."""

WORTHWHILE = 0.9
"""A batch must cost less than this share of the same steps one by one, or it only adds latency."""


@dataclass(slots=True, eq=False)
class _Call:
    """Something to run, and where its result goes."""

    run: Callable[[], Any]
    future: "Future[Any]"


@dataclass(slots=True, eq=False)
class _Step(Generic[State]):
    """The step of one session, and where its window goes."""

    pcm: np.ndarray
    state: State
    deliver: Deliver | None
    key: Hashable
    future: "Future[np.ndarray]"


@dataclass(slots=True)
class WorkerLoad:
    """How busy the thread is.

    Attributes:
        steps: sessions' steps run so far.
        batches: calls of `pipeline.step` they took.
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
        """Give the share of the last seconds that was spent in calls, 0 to 1."""
        since_s = now_s - LOAD_WINDOW_S
        spans = list(self._spans)
        busy_s = sum(end - max(begin, since_s) for begin, end in spans if end > since_s)
        return min(1.0, busy_s / LOAD_WINDOW_S)


class ModelWorker(Generic[State]):
    """Runs all calls of a model in one thread, and joins the steps of sessions that wait for it.

    Steps are joined when the pipeline gives one `batch_key` for their states. A window is handed
    over in parts only when nobody waits, for it costs more so.

    Args:
        pipeline: whose steps are joined.
        max_batch: most sessions in one step; 1 joins nothing.
        on_step: called, in the thread, with the duration of each call of `step` in seconds and the
            number of sessions in it.
        clock: monotonic time, s.
        executor: runs one call at a time, in order, and is shut down with the worker; a thread
            when None.
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
        self.max_batch = max_batch
        self.pipeline = pipeline
        self._on_step = on_step
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="letstalk-model")
        self._waiting: deque[_Call | _Step[State]] = deque()
        self._lock = threading.Lock()  # of what waits
        self._stopping = False

    def step(
        self, pcm: np.ndarray, state: State, deliver: Deliver | None = None
    ) -> "Future[np.ndarray]":
        """Queue the step of one session.

        Args:
            pcm: `(hop,)` float32 in [-1, 1].
            state: of the session; updated in place.
            deliver: is called, in the model's thread, with each part of the window in order,
                `(n, H, W, 3)`, as soon as it is made.

        Returns:
            The window, `(N, H, W, 3)` uint8.

        Raises:
            RuntimeError: the worker was shut down.
        """
        key = self.pipeline.batch_key(state)
        step = _Step(pcm, state, deliver, key, Future())
        self._queue(step)
        return step.future

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Queue any other call.

        Raises:
            RuntimeError: the worker was shut down.
        """
        future: Future[T] = Future()
        self._queue(_Call(partial(fn, *args, **kwargs), future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the thread end when all queued calls are done, or dropped. Safe to call twice."""
        with self._lock:
            self._stopping = True
            if cancel_futures:
                for call in self._waiting:
                    call.future.cancel()
                self._waiting.clear()
        self._executor.shutdown(wait=wait)

    def busy_ratio(self) -> float:
        """Give the share of the last seconds in which the thread worked, 0 to 1."""
        return self.load.ratio(self._clock())

    def _queue(self, call: _Call | _Step[State]) -> None:
        with self._lock:
            if self._stopping:
                raise RuntimeError("the model worker was shut down")
            self._waiting.append(call)
        self._executor.submit(self._run_next)

    def _run_next(self) -> None:
        """Run what has waited longest; nothing, where that ran along with an earlier step."""
        with self._lock:
            work = self._take()
        began_s = self._clock()
        match work:
            case None:
                return
            case _Call(run, future):
                if future.set_running_or_notify_cancel():
                    _resolve(future, run)
            case steps:
                self._run_steps(steps)
        self.load.note(began_s, self._clock())

    def _take(self) -> _Call | list[_Step[State]] | None:
        """Take the next call, or the next step and those that fit it."""
        if not self._waiting:
            return None
        first = self._waiting.popleft()
        if isinstance(first, _Call):
            return first
        taken, kept = [first], deque[_Call | _Step[State]]()
        for call in self._waiting:
            has_room = len(taken) < self.max_batch
            if has_room and isinstance(call, _Step) and call.key == first.key:
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
            else:  # one of them is to blame: the others must not suffer
                for step in steps:
                    _resolve(step.future, partial(self._make_alone, step))
            return
        self.load.steps += len(steps)
        self.load.batches += 1
        self._on_step(self._clock() - began_s, len(steps))
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
        """Make the window of one session, in parts."""
        deliver = None if step.deliver is None else partial(_unbatched, step.deliver)
        window: np.ndarray = self.pipeline.step(step.pcm[None], [step.state], deliver)[0]
        return window


def measure_batches(
    pipeline: Pipeline[State],
    portrait: Portrait,
    counts: Sequence[int] = BATCHES,
    *,
    stop_early: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, float]:
    """Measure how long a step of so many sessions takes; blocking, some seconds.

    Args:
        pipeline: the model.
        portrait: a face.
        counts: numbers of sessions, rising from 1.
        stop_early: stop at the first number for which joining is not worth it, or when the
            measuring has taken long.
        clock: monotonic time, s.

    Returns:
        Seconds, by the number of sessions.
    """
    began_s = clock()
    found: dict[int, float] = {}
    for count in counts:
        states = [pipeline.init_state(portrait, StateOptions(seed)) for seed in range(count)]
        pcm = np.zeros((count, pipeline.hop), np.float32)
        pipeline.step(pcm, states)  # the first one prepares
        found[count] = min(_timed(pipeline, pcm, states, clock) for _ in range(3))
        if stop_early and (worthwhile_batch(found) < count or clock() - began_s > MEASURE_S):
            break
    return found


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
    """Choose the largest batch that is worth it.

    Args:
        seconds: how long a step of so many sessions takes, by their number; 1 must be there.
    """
    alone_s = seconds[1]
    good = [count for count, took_s in seconds.items() if took_s <= WORTHWHILE * count * alone_s]
    return max([1, *good])


def _unbatched(deliver: Deliver, part: np.ndarray) -> None:
    """Hand over a part of a batch of one session."""
    deliver(part[0])


def _resolve(future: "Future[T]", call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
