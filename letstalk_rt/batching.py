"""The one thread that runs the model, for many sessions: steps that wait together run together.

    worker = ModelWorker(pipeline, max_batch=4)
    avatar = Avatar.from_pipeline(pipeline, portrait, executor=worker)

Nobody waits to be batched: only steps that have queued up behind another call are joined, so with
one session nothing changes, and under load several windows cost less than one after another. All
other calls run in the order in which they came. This room knows no torch and no asyncio.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from letstalk_rt.contract import Deliver
from letstalk_rt.types import Portrait

T = TypeVar("T")

LOAD_WINDOW_S = 5.0
"""The load is that of the last so many seconds."""

BATCHES = (1, 2, 4, 8)
MEASURE_S = 2.0
"""Measuring begins no further batch size after so long."""

WORTHWHILE = 0.9
"""A batch must cost less than this share of the same steps one by one, or it only adds latency."""


@dataclass(slots=True)
class _Call:
    """Something to run, and where its result goes."""

    run: Callable[[], Any]
    future: "Future[Any]"
    step: tuple[np.ndarray, Any] | None = None  # hop and state of one session's step
    deliver: Deliver | None = None
    key: Any = None


@dataclass(slots=True)
class Load:
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


class ModelWorker(Executor):
    """An executor with one thread, which joins the steps of sessions that wait for it.

    Only calls of the form `partial(pipeline.step, pcm, [state])`, or with `deliver` behind, are
    joined, and only with one session each and when `key` gives the same for their states. A window
    is handed over in parts only when nobody waits, for it costs more so.

    Args:
        pipeline: whose steps are joined.
        max_batch: most sessions in one call; 1 joins nothing.
        key: tells which states fit together; see `alike`.
        on_step: called, in the thread, with the duration of each call of `step` in seconds and the
            number of sessions in it.
        clock: monotonic time, s.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        max_batch: int = 1,
        key: Callable[[Any], Any] | None = None,
        on_step: Callable[[float, int], None] = lambda seconds, count: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert max_batch >= 1, max_batch
        self.load = Load()
        self.max_batch = max_batch
        self._pipeline = pipeline
        self._key = key or alike
        self._on_step = on_step
        self._clock = clock
        self._calls: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="letstalk-model", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Queue a call.

        Raises:
            RuntimeError: the worker was shut down.
        """
        future: Future[T] = Future()
        run = partial(fn, *args, **kwargs)
        call = _Call(run, future, self._step_of(run))
        if call.step is not None:
            call.key = self._key(call.step[1])
            call.deliver = run.args[2] if len(run.args) == 3 else None
        with self._changed:
            if self._stopping:
                raise RuntimeError("the model worker was shut down")
            self._calls.append(call)
            self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the thread end when all queued calls are done, or dropped."""
        with self._changed:
            self._stopping = True
            if cancel_futures:
                for call in self._calls:
                    call.future.cancel()
                self._calls.clear()
            self._changed.notify()
        if wait:
            self._thread.join()

    def busy_ratio(self) -> float:
        """Give the share of the last seconds in which the thread worked, 0 to 1."""
        return self.load.ratio(self._clock())

    def _step_of(self, run: Any) -> tuple[np.ndarray, Any] | None:
        """Give hop and state when a call is one session's step.

        `submit` makes a partial of a partial, which Python flattens.
        """
        if run.func != self._pipeline.step or run.keywords or len(run.args) not in (2, 3):
            return None
        pcm, states = run.args[:2]
        if not isinstance(states, list | tuple) or len(states) != 1 or len(pcm) != 1:
            return None
        return pcm, states[0]

    def _work(self) -> None:
        while (calls := self._take()) is not None:
            began_s = self._clock()
            if calls[0].step is None:
                _run(calls[0])
            else:
                self._run_steps(calls)
            self.load.note(began_s, self._clock())
            del calls  # a batch holds pictures; the next may be long in coming

    def _take(self) -> list[_Call] | None:
        """Wait for the next call, and take the steps along that fit it."""
        with self._changed:
            while not self._calls:
                if self._stopping:
                    return None
                self._changed.wait()
            first = self._calls.popleft()
            if first.step is None or self.max_batch == 1:
                return [first]
            taken, kept = [first], deque[_Call]()
            for call in self._calls:
                fits = call.step is not None and call.key == first.key
                (taken if fits and len(taken) < self.max_batch else kept).append(call)
            self._calls = kept
            return taken

    def _run_steps(self, calls: list[_Call]) -> None:
        calls = [call for call in calls if call.future.set_running_or_notify_cancel()]
        if not calls:
            return
        began_s = self._clock()
        try:
            windows = self._step(calls)
        except Exception as error:
            if len(calls) == 1:
                calls[0].future.set_exception(error)
            else:  # one of them is to blame: the others must not suffer
                for call in calls:
                    _finish(call)
            return
        self.load.steps += len(calls)
        self.load.batches += 1
        self._on_step(self._clock() - began_s, len(calls))
        for call, window in zip(calls, windows, strict=True):
            call.future.set_result(window[None])

    def _step(self, calls: list[_Call]) -> np.ndarray:
        steps = [call.step for call in calls if call.step is not None]
        pcm = np.concatenate([hop for hop, _ in steps])
        states = [state for _, state in steps]
        if len(calls) == 1 and calls[0].deliver is not None and not self._calls:
            frames: np.ndarray = self._pipeline.step(pcm, states, calls[0].deliver)
            return frames
        frames = self._pipeline.step(pcm, states)
        for call, window in zip(calls, frames, strict=True):
            if call.deliver is not None:
                call.deliver(window[None])
        return frames


def alike(state: Any) -> Any:
    """Give what sessions of one batch must agree in: picture size, steps and look-ahead.

    States that do not tell their picture size are like no other.
    """
    if not hasattr(state, "size"):
        return id(state)
    return state.size, len(getattr(state, "times", ())), getattr(state, "lookahead_frames", None)


def measure_batches(
    pipeline: Any,
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
        states = [pipeline.init_state(portrait, seed=seed) for seed in range(count)]
        pcm = np.zeros((count, pipeline.hop), np.float32)
        pipeline.step(pcm, states)  # the first one prepares
        found[count] = min(_timed(pipeline, pcm, states, clock) for _ in range(3))
        if stop_early and (worthwhile_batch(found) < count or clock() - began_s > MEASURE_S):
            break
    return found


def _timed(pipeline: Any, pcm: np.ndarray, states: list[Any], clock: Callable[[], float]) -> float:
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


def _run(call: _Call) -> None:
    if call.future.set_running_or_notify_cancel():
        _finish(call)


def _finish(call: _Call) -> None:
    try:
        call.future.set_result(call.run())
    except BaseException as error:
        call.future.set_exception(error)
