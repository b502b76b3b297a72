"""How long a process waited for a processor, so that a busy machine is not taken for a hang.

Linux counts it for each thread; elsewhere nothing is known, and only the clock counts.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GUARD = "letstalk-guard"
"""The name of a thread that does no work: its waits say nothing about the progress of others."""

FREE_SHARE = 0.25
"""The waits in this share of a limit are not looked at: most calls end sooner."""

MOST = 10.0
"""A call may take so many times its limit, however long it has waited."""


def name_thread(name: str) -> None:
    """Name the calling thread so that other processes can see it; only Linux has it."""
    with suppress(OSError):
        path = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        path.write_text(name, encoding="ascii")


def waited_s(pid: int) -> Mapping[int, float]:
    """Return how long each thread of a process has waited for a processor, by its id.

    Empty where the system does not tell, and for a process that has ended.
    """
    found: dict[int, float] = {}
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError, IndexError):  # the thread has ended
                if (task / "comm").read_text().strip() != GUARD:
                    found[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found


@dataclass(slots=True)
class CallLimit:
    """The limit of one call of another process, in time in which that could run.

    Attributes:
        began_s: when the call began, in monotonic seconds.
        limit_s: how long it may take, apart from waits for a processor.
        waits: how long the threads had waited when it began, or a little later.
    """

    began_s: float
    limit_s: float
    waits: Mapping[int, float] | None = None

    def is_over(self, now_s: float, waited: Callable[[], Mapping[int, float]]) -> bool:
        """Return whether the call has taken too long.

        Args:
            now_s: monotonic seconds.
            waited: returns how long each thread has waited so far; see `waited_s`.
        """
        took_s = now_s - self.began_s
        if self.waits is None:
            if took_s < FREE_SHARE * self.limit_s:
                return False
            self.waits = waited()
        if took_s <= self.limit_s:
            return False
        if took_s > MOST * self.limit_s:
            return True
        now = waited()
        # A step has as many threads as cores: the one that waited longest has held it up.
        held_up_s = max((s - self.waits.get(thread, 0.0) for thread, s in now.items()), default=0.0)
        return took_s - held_up_s > self.limit_s
