"""The runs of the soak: sessions for hours, and very many sessions one after the other.

A run begins with the same sessions for a short time, so that what the server creates once (threads,
codecs, caches) is there before anything is counted.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from soak.clients import Client, Pair, Socket, Talk
from soak.holdings import Holdings, descendants, holdings, rss_mb
from soak.onsets import skews_ms

BENCHMARKS = Path(__file__).parents[1]
WARM_UP_S = 30.0
SETTLE_S = 8.0
"""Time after the end of the sessions: the model starts its spare process 5 s after loading."""

INTERRUPT_S = 30.0
CHURN_WARM_UP = 25
CHURN_AT_ONCE = 4
STOP_S = 30.0


@dataclass(slots=True)
class Server:
    """A server in a process of its own.

    Attributes:
        address: where it listens.
        process: the process.
        temporary: its folder for temporary files.
        http: a client for it.
        survivors: its child processes that were still there after its end.
        left_files: temporary files that were still there then.
        status: its exit status.
    """

    address: str
    process: "subprocess.Popen[str]"
    temporary: Path
    http: httpx.AsyncClient = field(init=False)
    survivors: int = 0
    left_files: int = 0
    status: int | None = None

    def __post_init__(self) -> None:
        # The server closes idle connections after 5 s; one that it is about to close is of no use.
        limits = httpx.Limits(keepalive_expiry=2.0)
        self.http = httpx.AsyncClient(base_url=self.address, timeout=60, limits=limits)

    async def metric(self, name: str) -> float:
        """Return a value of the server's metrics."""
        text = (await self.http.get("/metrics")).text
        found = re.search(rf"^letstalk_{name} (\S+)$", text, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"the server's metrics lack letstalk_{name}")
        return float(found.group(1))

    async def holdings(self) -> Holdings:
        """Return what the server holds now."""
        tasks = int(await self.metric("tasks"))
        return holdings(self.process.pid, tasks, self.temporary)

    async def at_rest(self) -> Holdings:
        """Wait until no session runs and everything is released; return what is held then."""
        for _ in range(300):
            if not await self.metric("sessions"):
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(SETTLE_S)
        return await self.holdings()

    def rss_mb(self) -> list[float]:
        """Return the memory of each of its processes, MB: its own first, then in order of age."""
        pids = [self.process.pid, *sorted(descendants(self.process.pid))]
        return [round(rss_mb([pid]), 3) for pid in pids]


@contextmanager
def serving(model: str, size: int, *, patient: bool = False) -> Iterator[Server]:
    """Run a server; afterwards, note what it has left behind.

    Args:
        model: `mock` or `embedded`.
        size: longer side of the video, px.
        patient: do not take slow clients for lost, nor a slow model for one that hangs.
    """
    with tempfile.TemporaryDirectory(prefix="letstalk-soak-") as folder:
        paths = [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "TMPDIR": folder,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        command = [sys.executable, "-m", "soak.server", "--model", model, "--size", str(size)]
        command += ["--patient"] if patient else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        children: list[int] = []
        try:
            server = Server(_address(process), process, Path(folder))
            yield server
            children = descendants(process.pid)
        finally:
            status = _stop(process)
        server.status = status
        server.survivors = _survivors(children)
        server.left_files = sum(1 for _ in Path(folder).rglob("*"))


def _survivors(children: Sequence[int]) -> int:
    """Return how many processes do not end within a few seconds: some end by themselves."""
    for _ in range(50):
        alive = sum(Path(f"/proc/{pid}").exists() for pid in children)
        if not alive:
            break
        time.sleep(0.1)
    return alive if children else 0


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    address = re.search(r"http://[^\s/]+", process.stdout.readline())
    if address is None:
        raise RuntimeError("the server did not start")
    return address.group()


def _stop(process: "subprocess.Popen[str]") -> int:
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


@dataclass(slots=True)
class LongRun:
    """What a long run has measured.

    Attributes:
        before, after: what was held before and after the sessions.
        seconds: how long they ran.
        times_s, memory_mb: the memory over time.
        process_mb: the same of each process; their number changes if one is replaced.
        skews: for each kind of client, its skews with their times in the run: (s, ms).
        clients: for each kind of client, how many frames and flashes it received, and the
            warnings and errors.
        shown, repeated: frames of all sessions.
    """

    before: Holdings
    after: Holdings
    seconds: float
    times_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    process_mb: list[list[float]] = field(default_factory=list)
    skews: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    clients: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: float = 0.0
    repeated: float = 0.0


def four_clients(server: Server) -> dict[str, Client]:
    """Return one client of each kind, and one with the other codec."""
    return {
        "talk": Talk(server.http),
        "talk-h264": Talk(server.http, codec="H264"),
        "whip-whep": Pair(server.http),
        "websocket": Socket(server.address),
    }


def one_client(server: Server) -> dict[str, Client]:
    """Return one client as the page is one."""
    return {"talk": Talk(server.http)}


async def long_run(
    server: Server,
    clients: Callable[[Server], dict[str, Client]],
    seconds: float,
    note: Callable[[str], None],
) -> LongRun:
    """Run sessions for so long, after the same ones for a short time.

    Args:
        server: the server.
        clients: returns the clients, not opened.
        seconds: how long the sessions run.
        note: called with a line about the progress.
    """
    async with server.http:
        await _run(server, clients(server), min(WARM_UP_S, seconds), None, note)
        before = await server.at_rest()
        run = LongRun(before, before, seconds)
        await _run(server, clients(server), seconds, run, note)
        run.after = await server.at_rest()
    return run


async def _run(
    server: Server,
    clients: dict[str, Client],
    seconds: float,
    run: LongRun | None,
    note: Callable[[str], None],
) -> None:
    try:
        for client in clients.values():
            await client.open()
        began_s, wall_s = time.monotonic(), time.time()
        every_s = min(10.0, max(1.0, seconds / 200))
        next_interrupt_s = INTERRUPT_S
        while (at_s := time.monotonic() - began_s) < seconds:
            if run is not None:
                run.times_s.append(round(at_s, 1))
                run.process_mb.append(server.rss_mb())
                run.memory_mb.append(round(sum(run.process_mb[-1]), 3))
            if at_s >= next_interrupt_s:
                next_interrupt_s += INTERRUPT_S
                for client in clients.values():
                    await client.interrupt()
            if int(at_s // 60) != int((at_s - every_s) // 60):
                note(f"{at_s / 60:5.0f} min  {sum(server.rss_mb()):8.1f} MB")
            await asyncio.sleep(min(every_s, seconds - at_s))
        if run is not None:
            run.shown = await server.metric("live_frames")
            run.repeated = await server.metric("live_repeats")
    finally:
        for client in clients.values():
            await client.close()
    if run is not None:
        _collect(run, clients, wall_s)


def _collect(run: LongRun, clients: dict[str, Client], wall_s: float) -> None:
    for name, client in clients.items():
        view = client.view
        found = skews_ms(view.flashes_s, view.beeps_s)
        run.skews[name] = [(at_s - wall_s, skew) for at_s, skew in found]
        run.clients[name] = {
            "pictures": view.pictures,
            "flashes": len(view.flashes_s),
            "errors": dict(Counter(view.errors)),
        }


@dataclass(frozen=True, slots=True)
class Churn:
    """What was held before, halfway and after many sessions of one kind.

    Attributes:
        count: how many sessions were opened and closed.
        failures: errors of those that could not be opened.
        seconds: how long that took.
        before, half, after: what was held.
    """

    count: int
    failures: list[str]
    seconds: float
    before: Holdings
    half: Holdings
    after: Holdings


CHURN_KINDS: dict[str, Callable[[Server], Client]] = {
    "talk": lambda server: Talk(server.http, speaks=False),
    "whip": lambda server: Pair(server.http, watches=False),
    "whep": lambda server: Pair(server.http, speaks=False),
    "websocket": lambda server: Socket(server.address),
    "say": lambda server: Socket(server.address, speaks=False, text="Hello."),
}


async def churns(
    server: Server, kinds: Sequence[str], count: int, note: Callable[[str], None]
) -> dict[str, Churn]:
    """Open and close so many sessions of each kind."""
    async with server.http:
        return {kind: await _churn(server, kind, count, note) for kind in kinds}


async def _churn(server: Server, kind: str, count: int, note: Callable[[str], None]) -> Churn:
    """Open and close so many sessions of one kind, a few at once."""
    make = CHURN_KINDS[kind]
    failures = await _open_and_close(server, make, CHURN_WARM_UP)
    before = await server.at_rest()
    began_s = time.monotonic()
    failures += await _open_and_close(server, make, count // 2)
    half = await server.at_rest()
    note(f"{kind}: {count // 2} of {count}  {half.rss_mb:8.1f} MB")
    failures += await _open_and_close(server, make, count - count // 2)
    seconds = time.monotonic() - began_s
    after = await server.at_rest()
    note(f"{kind}: {count} of {count}  {after.rss_mb:8.1f} MB")
    return Churn(count, failures, round(seconds, 1), before, half, after)


async def _open_and_close(
    server: Server, make: Callable[[Server], Client], count: int
) -> list[str]:
    """Return the errors of the sessions that could not be opened."""
    left = iter(range(count))
    failures: list[str] = []

    async def one_after_another() -> None:
        for _ in left:
            client = make(server)
            try:
                await client.open()
            except (OSError, RuntimeError, httpx.HTTPError) as error:  # OSError: timeouts, too
                failures.append(f"{type(error).__name__}: {error}"[:200])
            finally:
                await client.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(count, CHURN_AT_ONCE)):
            group.create_task(one_after_another())
    return failures
