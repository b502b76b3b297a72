"""Fake pipelines, workers and portraits, so that tests need neither a model nor real time."""

import asyncio
import threading
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np

from letstalk_rt.errors import PortraitError
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Pipeline, StateOptions
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.types import SAMPLES_PER_FRAME, Portrait

FRAME = SAMPLES_PER_FRAME
HOP = 4 * FRAME
LOOKAHEAD = 2


def portrait(level=0):
    """Return a portrait of 2x2 pixels."""
    image = np.full((2, 2, 3), level, np.uint8)
    return Portrait(canvas=image, crop=image, box=(0.0, 0.0, 2.0))


def paint(pcm, face=0):
    """Return the frame that `FakePipeline` generates for one frame of audio: face, level, level."""
    level = round(float(pcm.mean()) * 100) + 100
    return np.broadcast_to(np.array([face, level, level], np.uint8), (2, 2, 3))


@dataclass
class FakeState:
    face: int
    options: StateOptions
    heard: np.ndarray = field(default_factory=lambda: np.zeros(LOOKAHEAD * FRAME, np.float32))
    interrupts: int = 0
    unseen: int = 0


def deliver_parts(window, parts, deliver):
    """Deliver a window `(B, N, H, W, 3)` in partial windows, if there is a callback."""
    if deliver is not None:
        for part in np.split(window, np.cumsum(parts)[:-1], axis=1):
            deliver(part)


class FakePipeline(Pipeline[FakeState]):
    """A pipeline with the look-ahead of the real one, whose frames encode their audio.

    Args:
        fail_at: number of the step that fails; -1 fails in `init_state`.
    """

    fps = 25
    frames_per_window = 4
    hop = HOP
    lookahead_frames = LOOKAHEAD
    partial_sizes = (4,)
    device = "cpu"

    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.steps = 0
        self.threads = set()
        self.states = []

    def init_state(self, portrait, options=DEFAULT_OPTIONS):
        self._note_call(-1)
        self.states.append(FakeState(int(portrait.canvas[0, 0, 0]), options))
        return self.states[-1]

    def interrupt(self, state, *, unseen=0):
        self.threads.add(threading.current_thread())
        state.interrupts += 1
        state.unseen += unseen
        state.heard = np.zeros(LOOKAHEAD * FRAME, np.float32)

    def change_portrait(self, state, portrait):
        self.threads.add(threading.current_thread())
        if portrait.canvas.shape[2:] != (3,):
            raise PortraitError("not prepared")
        state.face = int(portrait.canvas[0, 0, 0])

    def batch_key(self, state):
        return ()

    def step(self, pcm, states, deliver=None):
        self._note_call(self.steps)
        assert pcm.shape == (len(states), HOP) and pcm.dtype == np.float32, (pcm.shape, pcm.dtype)
        self.steps += 1
        window = np.stack([self._window(*one) for one in zip(pcm, states, strict=True)])
        deliver_parts(window, self.partial_sizes, deliver)
        return window

    def _window(self, pcm, state):
        sound = np.concatenate([state.heard, pcm])
        state.heard = sound[HOP:]
        return np.stack([paint(piece, state.face) for piece in sound[:HOP].reshape(4, FRAME)])

    def _note_call(self, number):
        self.threads.add(threading.current_thread())
        if number == self.fail_at:
            raise RuntimeError("CUDA is on fire")


class PartedPipeline(FakePipeline):
    """A fake pipeline that delivers partial windows."""

    partial_sizes = (1, 1, 2)


class InlineExecutor(Executor):
    """Runs each call at once, in the caller."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class InlineWorker(ModelWorker):
    """Runs each call at once, in the caller."""

    def __init__(self, pipeline):
        super().__init__(pipeline, executor=InlineExecutor())


class TimedExecutor(InlineExecutor):
    """Runs one call after the other; each takes `call_s` of the running loop's time."""

    def __init__(self, call_s):
        self.call_s = call_s
        self.free_s = 0.0

    def submit(self, fn, /, *args, **kwargs):
        loop, future = asyncio.get_running_loop(), Future()
        self.free_s = max(loop.time(), self.free_s) + self.call_s
        loop.call_at(self.free_s, self._finish, future, fn, args, kwargs)
        return future

    def _finish(self, future, fn, args, kwargs):
        if future.set_running_or_notify_cancel():
            done = super().submit(fn, *args, **kwargs)
            if error := done.exception():
                future.set_exception(error)
            else:
                future.set_result(done.result())


class TimedWorker(ModelWorker):
    """Runs one call after the other; each takes `call_s` of the running loop's time.

    Workers of one `executor` wait for each other.
    """

    def __init__(self, pipeline, call_s, executor=None):
        self.timed = executor or TimedExecutor(call_s)
        super().__init__(pipeline, executor=self.timed)


class PartedWorker(TimedWorker):
    """Delivers each part of a step so long after it began; all other calls take 2 ms."""

    def __init__(self, pipeline, parts_s):
        super().__init__(pipeline, parts_s[-1])
        self.parts_s = parts_s

    def submit(self, fn, /, *args, **kwargs):
        self.timed.call_s = 0.002
        return super().submit(fn, *args, **kwargs)

    def step(self, pcm, state, deliver=None):
        self.timed.call_s = self.parts_s[-1]
        loop = asyncio.get_running_loop()
        began_s = max(loop.time(), self.timed.free_s)
        parts = []

        def begin():
            self.pipeline.step(pcm[None], [state], lambda part: parts.append(part[0]))
            for part, after_s in zip(parts, self.parts_s, strict=True):
                loop.call_at(began_s + after_s, deliver, part)

        loop.call_at(began_s, begin)
        return self.timed.submit(lambda: np.concatenate(parts))


class FakeClock:
    """A clock that moves only when someone sleeps."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    async def sleep(self, delay_s):
        self.now_s += delay_s
