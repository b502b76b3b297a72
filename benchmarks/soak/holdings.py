"""What a server and its child processes hold: memory, threads, file descriptors and the like.

Read from /proc, from outside, so that measuring changes nothing; the number of asyncio tasks comes
from the server's metrics.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the processes of a server hold together.

    Attributes:
        tasks: asyncio tasks of the server.
        threads: threads.
        descriptors: open file descriptors.
        children: child processes.
        shared_segments: segments of shared memory that are mapped.
        temporary_files: entries of the server's folder for temporary files.
        rss_mb: resident memory, MB of 10^6 bytes.
    """

    tasks: int
    threads: int
    descriptors: int
    children: int
    shared_segments: int
    temporary_files: int
    rss_mb: float

    def counts(self) -> dict[str, int]:
        """Return all but the memory: what must not be more at the end."""
        return {name: value for name, value in asdict(self).items() if name != "rss_mb"}


def holdings(pid: int, tasks: int, temporary: Path) -> Holdings:
    """Return what a process and its descendants hold.

    Args:
        pid: the server.
        tasks: its asyncio tasks.
        temporary: its folder for temporary files.
    """
    pids = [pid, *descendants(pid)]
    return Holdings(
        tasks=tasks,
        threads=sum(len(entries(each, "task")) for each in pids),
        descriptors=sum(len(entries(each, "fd")) for each in pids),
        children=len(pids) - 1,
        shared_segments=sum(len(segments(each)) for each in pids),
        temporary_files=sum(1 for _ in temporary.rglob("*")),
        rss_mb=rss_mb(pids),
    )


def rss_mb(pids: list[int]) -> float:
    """Return the resident memory of processes together, without what they share in /dev/shm."""
    total = 0
    for pid in pids:
        fields = read(pid, "status")
        parts = [re.search(rf"^{name}:\s+(\d+)", fields, re.M) for name in ("RssAnon", "RssFile")]
        total += sum(int(part.group(1)) for part in parts if part is not None)
    return total * 1024 / 1e6


def descendants(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started, and those of theirs."""
    children: dict[int, list[int]] = {}
    for stat in PROC.glob("[0-9]*/stat"):
        text = read(int(stat.parent.name), "stat")
        if text:
            parent = int(text.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    return list(_below(pid, children))


def _below(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, []):
        yield child
        yield from _below(child, children)


def segments(pid: int) -> set[str]:
    """Return the segments of shared memory that a process has mapped, removed names included."""
    found = re.findall(r" (\w+:\w+) (\d+) +/dev/shm/", read(pid, "maps"))
    return {f"{device} {inode}" for device, inode in found}


def entries(pid: int, name: str) -> list[str]:
    """Return the entries of a folder of a process; none if it has ended."""
    try:
        return os.listdir(PROC / str(pid) / name)
    except OSError:
        return []


def read(pid: int, name: str) -> str:
    """Return a file of a process; nothing if it has ended."""
    try:
        return (PROC / str(pid) / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line through the memory over time, by least squares.

    Attributes:
        mb_per_h: its slope.
        error_mb_per_h: the standard error of that, which takes each value for independent.
        from_s, to_s: the part of the run that it was fitted to.
    """

    mb_per_h: float
    error_mb_per_h: float
    from_s: float
    to_s: float


def slope(times_s: list[float], memory_mb: list[float], from_s: float) -> Slope | None:
    """Return the slope of the memory from `from_s` on; None with less than four values."""
    times, values = np.array(times_s), np.array(memory_mb)
    times, values = times[times >= from_s], values[times >= from_s]
    if len(times) < 4:
        return None
    (a, b), covariance = np.polyfit(times / 3600, values, 1, cov=True)
    error = float(np.sqrt(covariance[0, 0]))
    return Slope(round(float(a), 3), round(error, 3), float(times[0]), float(times[-1]))
