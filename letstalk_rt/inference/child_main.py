"""What every process of an isolated model has in common: signals, memory, loading, errors.

The process ends when its connection is closed or its parent dies, and when it takes more memory
than allowed. It is started with its modules imported and without a model, so that a spare process
is ready within a second.
"""

import gc
import os
import pkgutil
import platform
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from letstalk_rt.errors import EngineError, LetsTalkError
from letstalk_rt.inference.model_messages import Failed, Load
from letstalk_rt.inference.waiting import GUARD, name_thread
from letstalk_rt.threads import shorten_openmp_spin

EXIT_MEMORY = 77
"""Exit status of a process that took too much memory."""

WATCH_S = 0.1
_STATM = Path("/proc/self/statm")
"""Made once: a new path each time would intern its parts, and fill the table of such strings."""

GROWTH_MB, GROWTH = 2048, 2.0
"""Without a limit, a process may grow by so much after loading, or to so many times its size."""


def run_child(serve: Callable[["ProcessGuard"], None], memory_mb: int | None) -> None:
    """Serve until the parent closes the connection; called by the main function of a process.

    Args:
        serve: loads, then answers requests.
        memory_mb: how much memory the process may take; None for a limit relative to its size
            after loading.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    offer_to_oom_killer()
    shorten_openmp_spin()
    guard = ProcessGuard(memory_mb)
    with suppress(EOFError, OSError):  # the parent has closed the connection
        serve(guard)


def load_in(connection: "Connection[Any, Any]", load: str, guard: "ProcessGuard") -> Any:
    """Load what the process serves, with the options of the first message.

    Args:
        connection: to the parent, which is told of a failure.
        load: the function that loads, as `module:name`.
        guard: limits the memory from now on.

    Returns:
        What was loaded; None if that failed.
    """
    function: Callable[..., Any] = pkgutil.resolve_name(load)
    message = connection.recv()
    assert isinstance(message, Load), type(message)
    try:
        loaded = function(**message.options)
    except Exception as error:
        connection.send(Failed(portable(error)))
        return None
    gc.collect()
    gc.freeze()  # scanning what is loaded would delay all sessions
    guard.limit_growth()
    return loaded


def portable(error: Exception) -> Exception:
    """Return an error that the other process can read, with the traceback as a note."""
    if not isinstance(error, LetsTalkError):
        error_of_step = EngineError(f"{type(error).__name__}: {error}")
        error_of_step.add_note("".join(traceback.format_exception(error)))
        return error_of_step
    return error


class ProcessGuard:
    """A thread that ends the process when its parent has died or it takes too much memory.

    Args:
        memory_mb: how much memory the process may take; None until `limit_growth`.
    """

    def __init__(self, memory_mb: int | None) -> None:
        self._most_bytes = memory_mb * 2**20 if memory_mb is not None else None
        self._has_limit = memory_mb is not None
        threading.Thread(target=self._watch, name="letstalk-guard", daemon=True).start()

    def limit_growth(self) -> None:
        """Set the limit relative to the present size, if none was given."""
        used = resident_bytes()
        if not self._has_limit and used is not None:
            self._most_bytes = int(max(GROWTH * used, used + GROWTH_MB * 2**20))

    def _watch(self) -> None:
        name_thread(GUARD)
        parent = parent_process()
        assert parent is not None, "this runs in a process of its own"
        while not wait([parent.sentinel], WATCH_S):
            used = resident_bytes()
            if self._most_bytes is not None and used is not None and used > self._most_bytes:
                os._exit(EXIT_MEMORY)
        os._exit(0)


def resident_bytes() -> int | None:
    """Return the resident memory of this process; on macOS its maximum; None where unknown."""
    if platform.system() == "Linux":
        pages = _STATM.read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    if platform.system() == "Darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def offer_to_oom_killer() -> None:
    """Make the system end this process first when memory runs out, and not the session's."""
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
