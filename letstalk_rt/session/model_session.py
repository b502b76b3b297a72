"""The model's side of a session: its state, and what happens when a call of the model fails.

After a failure the session goes on with a fresh state: the motion of before is forgotten, and a
step is run again, so that no speech is lost. A session whose steps keep failing ends, and so does
one whose model stays away for too long.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Generic, TypeVar, cast

import numpy as np

from letstalk_rt.errors import ConfigError, ModelLost, is_callers_mistake
from letstalk_rt.inference.protocol import (
    DeliverFrames,
    DrivablePipeline,
    Fault,
    State,
    StateLost,
    StateOptions,
    Steering,
)
from letstalk_rt.inference.quality import FULL_QUALITY, Quality, new_images
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.metrics import Metrics
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.types import MotionOptions, Portrait

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""A session ends after so many failures of its own calls in a row."""

RECOVERY_S = 10.0
"""By default, a session ends when its model was away for so long."""

MAX_RECOVERY_S = 600.0
RETRY_S = 0.1
"""Pause between two attempts while the model is started again."""


class ModelSession(Generic[State]):
    """The state of one session in the model, and calls that survive failures of the model.

    Args:
        worker: runs the model.
        portrait: the portrait to animate.
        options: options of the session state.
        metrics: counts recoveries.
        recovery_s: how long the session waits for a model that was lost.
        on_failure: called when a call has failed and the session goes on.
    """

    def __init__(
        self,
        worker: ModelWorker[State],
        portrait: Portrait,
        options: StateOptions,
        metrics: Metrics,
        recovery_s: float = RECOVERY_S,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._worker, self._pipeline = worker, worker.pipeline
        self._portrait, self._options = portrait, options
        self._metrics, self._on_failure, self._recovery_s = metrics, on_failure, recovery_s
        self._state: State | None = None  # None before the first, and after a loss
        self._quality = FULL_QUALITY
        self._made = 0  # frames since that was set, or the portrait

    async def open(self) -> None:
        """Create the state.

        Raises:
            PortraitError: the portrait is not prepared for this model.
            ConfigError: an option is out of range.
            ModelLost: the model does not run and did not come back.
        """
        await self._run(self._no_call)

    def close(self) -> None:
        """Release the state: its memory is free at once, not when cycles are collected."""
        self._state = None

    async def step(
        self,
        pcm: np.ndarray,
        deliver: Callable[[], DeliverFrames],
        is_wanted: Callable[[], bool],
        steering: Steering | None = None,
        direction: DirectedWindow | None = None,
    ) -> bool:
        """Run a step, and after a failure run it again.

        Args:
            pcm: `(hop,)` float32.
            deliver: returns for each attempt the callback that receives its partial windows.
            is_wanted: whether the step is run again after a failure.
            steering: how a camera moves the face in this window; None leaves it alone.
            direction: how the motion of this window is changed; None leaves it as it is.

        Returns:
            Whether it succeeded at once.
        """
        attempts = 0

        async def call(state: State) -> None:
            nonlocal attempts
            attempts += 1
            if attempts == 1 or is_wanted():
                if steering is not None:
                    drivable = cast("DrivablePipeline", self._pipeline)
                    await self._submit(drivable.steer, state, steering)
                if direction is not None:
                    self._pipeline.direct(state, direction)
                await as_awaitable(self._worker.step(pcm, state, deliver()))
                self._made += self._pipeline.frames_per_window

        await self._run(call)
        return attempts == 1

    def new_images(self) -> list[bool]:
        """Return which frames of the next step have an image of their own; see `new_images`."""
        return new_images(self._made, self._pipeline.frames_per_window, self._quality.fps)

    async def set_quality(self, quality: Quality) -> None:
        """Change what is computed from the next step on; it holds for fresh states, too."""

        async def call(state: State) -> None:
            if self._state is known:  # a fresh state has it already
                await self._submit(self._pipeline.set_quality, state, quality)

        known, self._quality, self._made = self._state, quality, 0
        await self._run(call)

    async def set_motion(self, motion: MotionOptions) -> None:
        """Change how the face moves, from the next step on; it holds for fresh states, too.

        Raises:
            ConfigError: the model cannot do that; the face moves as before.
        """

        async def call(state: State) -> None:
            if self._state is known:
                await self._submit(self._pipeline.set_motion, state, motion)

        known, before = self._state, self._options
        self._options = replace(before, motion=motion)
        try:
            await self._run(call)
        except ConfigError:
            self._options = before
            raise

    async def interrupt(self, unseen: int) -> None:
        """Forget all past speech, as a fresh state has."""

        async def call(state: State) -> None:
            if self._state is known:
                await self._submit(self._pipeline.interrupt, state, unseen=unseen)

        known = self._state
        await self._run(call)

    async def change_portrait(self, portrait: Portrait) -> None:
        """Change the portrait from the next step on.

        Raises:
            PortraitError: the portrait is not prepared; the session keeps the old one.
            ConfigError: the model cannot change portraits.
        """

        async def call(state: State) -> None:
            await self._submit(self._pipeline.change_portrait, state, portrait)
            self._made = 0  # the first image is a new one, as after a change of quality

        await self._run(call)
        self._portrait = portrait

    async def _no_call(self, state: State) -> None:
        """Do nothing: the state was created."""

    async def _submit(self, fn: Callable[..., T], *args: object, **kwargs: object) -> T:
        return await as_awaitable(self._worker.submit(fn, *args, **kwargs))

    async def _run(self, call: Callable[[State], Awaitable[None]]) -> None:
        """Run a call with the state; after a failure, with a fresh one."""
        try:
            await self._attempt(call)
            return
        except Exception as error:
            failures = int(self._judge(error, 0))
            logger.warning("a call of the model failed", extra={"error": type(error).__name__})
        self._metrics.recoveries += 1
        self._on_failure()
        last: Exception | None = None
        now_s = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self._recovery_s) as limit:
                while True:
                    try:  # a model that gives a state is back, however long the call takes
                        return await self._attempt(call, lambda: limit.reschedule(None))
                    except Exception as error:
                        last = error
                        failures += self._judge(error, failures)
                    if limit.when() is None:  # it is away again
                        limit.reschedule(now_s() + self._recovery_s)
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            raise ModelLost(
                f"the model did not come back within {self._recovery_s:g} s", Fault.START
            ) from last

    async def _attempt(
        self,
        call: Callable[[State], Awaitable[None]],
        on_state: Callable[[], None] = lambda: None,
    ) -> None:
        if self._state is None:
            state = await self._submit(self._pipeline.init_state, self._portrait, self._options)
            if self._quality != FULL_QUALITY:
                await self._submit(self._pipeline.set_quality, state, self._quality)
            self._state, self._made = state, 0
        on_state()
        await call(self._state)

    def _judge(self, error: Exception, failures: int) -> bool:
        """Return whether an error counts as a failure of this session's own calls.

        Raises:
            Exception: the error itself, if the session cannot go on after it.
        """
        if is_callers_mistake(error):
            raise error
        self._state = None
        counts = not isinstance(error, StateLost)
        if failures + counts >= MAX_FAILURES:
            raise error
        return counts


async def as_awaitable(future: "Future[T]") -> T:
    """Wait for a call in the model thread."""
    return await asyncio.wrap_future(future)
