"""What all processes share that decode images, films and cameras of strangers.

Decoders have had security holes. So such a process holds no secrets, opens no file and no socket
once it has begun, and has limits of memory and processor time. It answers its parent with plain
bytes: unpickling them could run code.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from letstalk_rt.inference.child_main import offer_to_oom_killer

_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""The variables that a process gets; secrets and keys are in others."""

_NICE = 10


def command(module: str) -> list[str]:
    """Return the command that runs a module of this package."""
    return [sys.executable, "-m", module]


def popen_options() -> dict[str, Any]:
    """Return how to start it: with pipes, an environment without secrets, and without Ctrl-C."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # As the child of `multiprocessing`, it finds modules where this process does.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    # Each thread of a decoder would reserve memory of its own, which counts as taken.
    environment["MALLOC_ARENA_MAX"] = "1"
    environment["OMP_NUM_THREADS"] = "1"
    return {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "env": environment,
        # Without a session of its own: Linux shares processors between sessions first, so that
        # `give_way` would make it give way to nobody else.
        "process_group": 0,
    }


def begin() -> tuple[BinaryIO, BinaryIO]:
    """Return where the process reads requests and writes replies; called first in it.

    What libraries print goes elsewhere.
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    offer_to_oom_killer()
    return sys.stdin.buffer, replies


def give_way() -> None:
    """Let live sessions have the processor first: nobody waits for this process frame by frame."""
    if sys.platform != "win32":
        os.nice(_NICE)


def limit_resources(memory_mb: int, cpu_s: int | None = None) -> None:
    """Limit this process for good; the system ends it when it needs more.

    No file can be opened and none can be written, nor can a socket be made. Without POSIX limits,
    only the parent's clock limits it.

    Args:
        memory_mb: memory beyond what it has mapped; only Linux tells that.
        cpu_s: processor time of all threads, s.
    """
    if sys.platform == "win32":
        return
    import resource

    limits = {
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    if (mapped := _mapped_bytes()) is not None:
        limits[resource.RLIMIT_AS] = mapped + memory_mb * 2**20
    if cpu_s is not None:
        limits[resource.RLIMIT_CPU] = cpu_s
    for kind, limit in limits.items():
        with suppress(OSError, ValueError):  # macOS refuses some
            resource.setrlimit(kind, (limit, limit))


def _mapped_bytes() -> int | None:
    """Return the size of the address space of this process; None where unknown, as on macOS."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
