"""Keeps the process of a model running: starts it again after a loss, with a pause that grows.

A spare process makes a restart faster: it has imported everything and, where memory allows, loaded
the model as well. Nothing here imports torch.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letstalk_rt.errors import LetsTalkError, ModelLost
from letstalk_rt.inference.child_process import ChildProcess
from letstalk_rt.inference.model_messages import Failed, Load, Loaded
from letstalk_rt.inference.protocol import Fault, StateLost

logger = logging.getLogger(__name__)

HEALTHY_STEPS = 10
"""A process that is lost after fewer steps has failed early.

After one early failure the model is started again at once; after several in a row, the pause
doubles.
"""

BACK_OFF_S, MAX_BACK_OFF_S = 0.5, 30.0
SPARE_AFTER_S = 5.0
"""A spare process is started so long after the model: that takes a core for a second or two."""

STANDBY_FREE_BYTES = 2 * 2**30
"""The spare process loads the model only if so much memory is available."""


@dataclass(frozen=True, slots=True)
class IsolationLimits:
    """What the process of a model may take.

    Attributes:
        step_s: duration of a step, after which the model counts as hung.
        call_s: duration of any other call.
        portrait_s: duration of the search for faces in an image.
        start_s: duration of loading.
        memory_mb: resident memory; None: twice as much as after loading, or 2 GB more if that is
            more. Not enforced on Windows.
        standby: whether the spare process loads the model, on a CPU and where 2 GB are available.
            Otherwise it only imports modules.
    """

    step_s: float = 2.5
    call_s: float = 5.0
    portrait_s: float = 30.0
    start_s: float = 120.0
    memory_mb: int | None = None
    standby: bool = True


DEFAULT_LIMITS = IsolationLimits()


@dataclass(slots=True)
class ModelHealth:
    """What happened to an isolated model.

    Attributes:
        faults: how often each fault has occurred.
        restarts: how often the model was loaded again.
        outage_s: duration of the latest outage, from the call that failed until the model was
            loaded again.
    """

    faults: dict[Fault, int] = field(default_factory=lambda: dict.fromkeys(Fault, 0))
    restarts: int = 0
    outage_s: float = 0.0


class ModelSupervisor:
    """Keeps one process with a model.

    Calls come from one thread at a time, but for `close`, `is_running`, `is_process_due` and
    `health`. Blocks until the model is loaded.

    Args:
        load: the function that loads the pipeline in the process, as `module:name`.
        options: its keyword arguments.
        limits: what the process may take.
        clock: returns monotonic seconds.

    Attributes:
        health: what happened to the model.
        exchange: held while a message of a process is awaited.
        generation: how many processes were lost.
        loaded: what the model is.

    Raises:
        LetsTalkError: the model cannot be loaded.
    """

    def __init__(
        self,
        load: str,
        options: Mapping[str, Any],
        limits: IsolationLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.health = ModelHealth()
        self.exchange = threading.RLock()
        self.generation = 0
        self._load, self._options, self._limits, self._clock = load, dict(options), limits, clock
        self._process: ChildProcess | None = None
        self._starting: ChildProcess | None = None  # while it loads
        self._spare: ChildProcess | None = None
        self._is_standby = False  # whether that loads the model
        self._steps = 0  # of the process
        self._early_failures = 0  # in a row
        self._loaded_s = self._lost_s = self._retry_s = clock()
        self._is_closed = False
        with self.exchange:
            self.loaded = self._start()
        self._options |= self.loaded.load_again

    @property
    def pid(self) -> int | None:
        """The id of the model's process; None while there is none."""
        process = self._process
        return process.pid if process is not None else None

    @property
    def is_running(self) -> bool:
        """Whether the model runs."""
        process = self._process
        return process is not None and process.is_alive

    @property
    def is_process_due(self) -> bool:
        """Whether `start_due` would start a process."""
        if self._is_closed:
            return False
        return self._spare_is_due if self.is_running else self._clock() >= self._retry_s

    def start_due(self) -> None:
        """Start the model if it does not run, or else a spare process if one is due.

        Raises:
            ModelLost: the model could not be started, or the spare process has ended at once.
        """
        self.running()
        with self.exchange:
            if self._spare_is_due and not self._is_closed:
                self._close_spare()
                self._start_spare()

    def current(self) -> ChildProcess | None:
        """Return the process of this generation, or None if it is lost."""
        process = self._process
        if process is not None and not process.is_alive and not self._is_closed:
            self.lose(ModelLost("the model's process ended by itself", Fault.DIED), self._clock())
        return self._process

    def running(self) -> ChildProcess:
        """Return the process of the model; start one if there is none and the pause is over.

        Raises:
            StateLost: the model could not be started.
        """
        process = self.current()
        if process is not None:
            return process
        wait_s = self._retry_s - self._clock()
        if wait_s > 0:
            raise StateLost(f"the model is started again in {wait_s:.1f} s", Fault.START)
        with self.exchange:
            try:
                self._start()
            except (LetsTalkError, OSError) as error:  # OSError: the system starts no process
                self.lose(ModelLost(str(error), Fault.START), self._lost_s)
                raise StateLost(str(error), Fault.START) from error
        self.health.restarts += 1
        self.health.outage_s = self._clock() - self._lost_s
        logger.warning("the model runs again after %.1f s", self.health.outage_s)
        assert self._process is not None
        return self._process

    def note_step(self) -> None:
        """Count a step that succeeded."""
        self._steps += 1

    def lose(self, error: ModelLost, began_s: float) -> None:
        """End the process, and note when another may be started.

        Args:
            error: what happened.
            began_s: when the call that failed began.
        """
        if self._process is not None:
            self._process.close()
        self._process = None
        self.generation += 1
        self._early_failures = self._early_failures + 1 if self._steps < HEALTHY_STEPS else 0
        self._steps = 0
        if error.fault != Fault.START:
            self._lost_s = began_s
        self._retry_s = self._clock() + back_off_s(self._early_failures)
        if not self._is_closed:
            self.health.faults[Fault(error.fault)] += 1
            logger.error("the model was lost: %s", error.fault)

    def close(self) -> None:
        """End the processes; a running call raises `ModelLost`. May be called twice."""
        self._is_closed = True
        for process in (self._process, self._starting):
            if process is not None:
                process.kill()
        with self.exchange:
            self._close_spare()
            if self._process is not None:
                self._process.close()
                self._process = None

    @property
    def _spare_is_due(self) -> bool:
        return not self._has_spare and self._clock() - self._loaded_s > SPARE_AFTER_S

    @property
    def _has_spare(self) -> bool:
        return self._spare is not None and self._spare.is_alive

    def _start(self) -> Loaded:
        """Start the model, in the spare process if there is one."""
        if self._is_closed:
            raise ModelLost("the model was closed", Fault.START)
        process, is_standby = self._next_process()
        self._starting = process
        try:
            with process.limit(self._limits.start_s):
                if not is_standby:
                    process.send(Load(self._options))
                reply = process.receive()
        finally:
            self._starting = None
        if isinstance(reply, Failed):
            process.close()
            raise reply.error
        assert isinstance(reply, Loaded), type(reply)
        self._process, self._loaded_s = process, self._clock()
        return reply

    def _next_process(self) -> tuple[ChildProcess, bool]:
        """Return the spare process, or else a new one, and whether it was told to load."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.is_alive:
            return spare, self._is_standby
        if spare is not None:
            spare.close()
        return ChildProcess(self._load, self._limits.memory_mb), False

    def _start_spare(self) -> None:
        """Start a spare process, and let it load the model if that may cost so much memory."""
        spare = self._spare = ChildProcess(self._load, self._limits.memory_mb)
        on_cpu = self.loaded.device.startswith("cpu")  # a GPU may have no room for two
        free = available_bytes()
        has_room = free is not None and free >= STANDBY_FREE_BYTES
        self._is_standby = self._limits.standby and on_cpu and has_room
        if self._is_standby:
            spare.send(Load(self._options))

    def _close_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None


def available_bytes() -> int | None:
    """Return how much memory this process and its children may still take; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known = dict(line.split(":", 1) for line in lines)
        free = int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with suppress(OSError, ValueError):  # the limit of a container, which may be "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def back_off_s(early_failures: int) -> float:
    """Return the pause before the model is started again after so many early failures in a row."""
    if early_failures < 2:
        return 0.0
    return min(BACK_OFF_S * 2.0 ** min(early_failures - 2, 10), MAX_BACK_OFF_S)
