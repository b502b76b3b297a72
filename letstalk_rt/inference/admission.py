"""How many sessions fit: the measured cost of a step, and the load of the model's thread."""

import math
from dataclasses import dataclass
from typing import Any, Self

from letstalk_rt.inference.worker import ModelWorker, measure_batches, worthwhile_batch
from letstalk_rt.types import FPS, Portrait

HEADROOM = 0.95
"""Share of the model thread's time that sessions may fill."""

UNLIMITED = 1024
"""Places where a step costs nothing that can be measured."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """The measured cost of the model on this machine.

    Attributes:
        step_s: compute time of one session's step, s.
        window_s: duration of the video that a step makes, s.
    """

    step_s: float
    window_s: float

    @classmethod
    def measure(cls, worker: ModelWorker[Any], portrait: Portrait) -> Self:
        """Measure the model, and set the batch size of its worker. Blocks for some seconds."""
        pipeline = worker.pipeline
        seconds = worker.submit(measure_batches, pipeline, [portrait]).result()
        worker.max_batch = worthwhile_batch(seconds)
        return cls(seconds[worker.max_batch] / worker.max_batch, pipeline.frames_per_window / FPS)

    @property
    def share(self) -> float:
        """Share of the model thread's time that one session takes; above 1 it is too slow."""
        return self.step_s / self.window_s

    @property
    def places(self) -> int:
        """Sessions that fit; at least one."""
        return max(1, int(HEADROOM / self.share)) if self.share > 0 else UNLIMITED


@dataclass(frozen=True, slots=True)
class MeasuredLoad:
    """The load of a worker by the cost of its sessions and by what its thread does.

    Attributes:
        worker: runs the model.
        cost: of a step.
    """

    worker: ModelWorker[Any]
    cost: StepCost

    def of(self, sessions: int) -> float:
        """Return how full the worker is with this number of sessions, 0 to 1.

        It is 1 when no other session fits: all places are taken, or the thread is busier than
        expected.
        """
        busy = self.worker.busy_ratio() + self.cost.share
        if sessions and (sessions >= self.cost.places or busy > HEADROOM):
            return 1.0
        return math.floor(100 * sessions / self.cost.places) / 100
