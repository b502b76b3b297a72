"""The handle of a model's process: starts it, exchanges messages, and kills it when it hangs."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

from letstalk_rt.errors import ModelLost
from letstalk_rt.inference.child_main import EXIT_MEMORY
from letstalk_rt.inference.model_process import run_model
from letstalk_rt.inference.protocol import Fault
from letstalk_rt.inference.waiting import CallLimit, waited_s

WATCH_S = 0.1
"""How often the watchdog looks at the deadline."""

END_S = 2.0
"""How long a killed process is waited for; one that a driver holds is reaped later."""


class ChildProcess:
    """A process that runs one model.

    All calls but `kill` come from one thread at a time. A watchdog thread kills the process when a
    call takes longer than its limit; the call then raises `ModelLost`. On Linux, time in which the
    process waited for a processor does not count: on a busy machine, killing it would only add the
    work of another start. Nor does time in which its answer waits to be read.

    Args:
        load: the function that loads the pipeline, as `module:name`.
        memory_mb: see `run_model`.
        clock: returns monotonic seconds.
        main: the main function of the process.
    """

    def __init__(
        self,
        load: str,
        memory_mb: int | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        main: Callable[..., None] = run_model,
    ) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=main, args=(theirs, load, memory_mb), name="letstalk-model", daemon=True
        )
        with _without_interrupts():
            self._process.start()
        theirs.close()
        assert self._process.pid is not None, "it was started"
        self.pid = self._process.pid
        self._clock = clock
        self._lock = threading.Lock()  # of the two below
        self._limit: CallLimit | None = None
        self._has_hung = False
        threading.Thread(target=self._watch, name="letstalk-watchdog", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return not wait([self._process.sentinel], 0)

    @contextmanager
    def limit(self, limit_s: float) -> Iterator[None]:
        """Kill the process if the enclosed calls take longer than this."""
        with self._lock:
            self._limit = CallLimit(self._clock(), limit_s)
        try:
            yield
        finally:
            with self._lock:
                self._limit = None

    @contextmanager
    def limit_held(self) -> Iterator[None]:
        """Let the limit begin again afterwards: meanwhile the process waits for its caller."""
        with self._lock:
            limit, self._limit = self._limit, None
        try:
            yield
        finally:
            with self._lock:
                self._limit = None if limit is None else CallLimit(self._clock(), limit.limit_s)

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            ModelLost: the process has ended.
        """
        try:
            self._connection.send(message)
        except OSError:
            raise self._lost() from None

    def receive(self) -> Any:
        """Wait for the next message.

        Raises:
            ModelLost: the process has ended.
        """
        ready = wait([self._connection, self._process.sentinel])
        if self._connection in ready:
            with suppress(EOFError, OSError):
                return self._connection.recv()
        raise self._lost()

    def kill(self) -> None:
        """End the process. May be called twice, and from any thread."""
        self._process.kill()

    def close(self) -> None:
        """End the process, wait for it and release what it held."""
        self.kill()
        self._process.join(END_S)
        self._connection.close()

    def _lost(self) -> ModelLost:
        self.close()
        status = self._process.exitcode
        if self._has_hung:
            return ModelLost("the model did not answer in time and was ended", Fault.HUNG)
        if status == EXIT_MEMORY:
            return ModelLost("the model took more memory than allowed and was ended", Fault.MEMORY)
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        return ModelLost(f"the model's process ended by itself with {how}", Fault.DIED)

    def _watch(self) -> None:
        while not wait([self._process.sentinel], WATCH_S):
            with self._lock:
                if self._is_overdue():
                    self._has_hung, self._limit = True, None
                    self._process.kill()

    def _is_overdue(self) -> bool:
        limit = self._limit
        if limit is None or not limit.is_over(self._clock(), partial(waited_s, self.pid)):
            return False
        try:
            return not wait([self._connection], 0)  # the caller has not come to read its answer
        except OSError:  # it was closed just now
            return False


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C for processes started inside, which then get none even while they start."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
