"""One attack after the other on a server with four honest sessions."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from soak.clients import read
from soak.holdings import descendants, rss_mb

from attack.attackers import UPLOAD, request
from attack.reach import Target
from attack.viewers import QUIET_S, Player, SocketViewer, Viewer
from letstalk_rt.avatars import list_avatars

BENCHMARKS = Path(__file__).parents[1]
NONE = "none"
SCOPES = ["sessions", "speak", "view", "avatars"]
LATE_SHARE_MS = 40.0
"""A frame that is later than its successor is due counts in the share of late ones."""

SETTLE_S = 20.0
"""Longest time until the attacker's sessions have ended, and free memory was given back."""

RETURN_S, GROWN_MB = 35.0, 32.0
READY_S, MARGIN_S, STOP_S = 60.0, 20.0, 30.0
ATTACKER_NICE = 5
KINDS: tuple[type[Viewer], ...] = (Player, SocketViewer, Player, SocketViewer)
"""What watches each of the honest sessions."""

NO_ANSWER_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one attack did to others.

    Attributes:
        attack: its name.
        seconds: how long it went on.
        frames: frames of all honest sessions meanwhile.
        latest_ms: lateness of the latest one.
        late_share: share of those that were more than one frame late.
        before_ms: lateness of the latest one in the seconds before the attack.
        load: load of the machine at the end, whoever caused it.
        memory_mb: of all processes of the server before.
        grown_mb: growth when the attacker's sessions have ended.
        peak_mb: growth while it went on, at most.
        health_during_ms: the slowest answer of /healthz meanwhile.
        health_ms, session_ms: time of an answer a second after the end.
        answers: what the attacker was answered, and how often.
    """

    attack: str
    seconds: float
    frames: int
    latest_ms: float
    late_share: float
    before_ms: float
    load: float
    memory_mb: float
    grown_mb: float
    peak_mb: float
    health_during_ms: float
    health_ms: float
    session_ms: float
    answers: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it, its figures rounded."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


class Stage:
    """A server, viewers of one subject, and tokens of two others.

    Args:
        process: the server.
        address: where it listens.
        folder: for files of attackers.
    """

    def __init__(self, process: "subprocess.Popen[str]", address: str, folder: Path) -> None:
        self.process, self.address, self.folder = process, address, folder
        self.operator = self._client(os.environ["LETSTALK_API_KEY"])
        self.viewers: list[Viewer] = []
        self.newcomer: httpx.AsyncClient
        self.target: Target

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        size: int,
        descriptors: int,
        folder: Path,
        kinds: Sequence[type[Viewer]] = KINDS,
    ) -> AsyncIterator[Self]:
        """Start the server and a session for each viewer; end them afterwards."""
        process = started(size, descriptors)
        try:
            assert process.stdout is not None
            found = re.search(r"http://[^\s/]+", await asyncio.to_thread(process.stdout.readline))
            if found is None:
                raise RuntimeError("the server did not start")
            async with AsyncExitStack() as stack:
                stage = cls(process, found.group(), folder)
                await stage._open(stack, kinds)
                yield stage
        finally:
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.to_thread(process.communicate, timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def memory_mb(self) -> float:
        """Return the memory of all processes of the server, MB."""
        return rss_mb([self.process.pid, *descendants(self.process.pid)])

    def lateness_ms(self, from_s: float, to_s: float) -> np.ndarray:
        """Return the lateness of all frames between two times, ms."""
        found = [viewer.arrivals.lateness_ms(from_s, to_s) for viewer in self.viewers]
        return np.concatenate(found)

    async def sessions(self) -> int:
        """Return how many sessions the server has."""
        text = (await self.operator.get("/metrics")).text
        found = re.search(r"^letstalk_sessions (\S+)$", text, re.MULTILINE)
        assert found is not None, "the metrics lack letstalk_sessions"
        return round(float(found.group(1)))

    async def at_rest(self) -> None:
        """Wait until the attacker's sessions have ended and decoders are those that wait."""
        for _ in range(round(2 * SETTLE_S)):
            if await self.sessions() <= len(self.viewers):
                break
            await asyncio.sleep(0.5)
        await asyncio.sleep(2.0)

    async def grown_mb(self, before_mb: float, allowed_mb: float) -> float:
        """Return the growth of the memory; the server gives free memory back every half a minute.

        Args:
            before_mb: the memory before.
            allowed_mb: a growth for which that is not waited for.
        """
        for _ in range(round(RETURN_S)):
            if self.memory_mb() - before_mb <= allowed_mb:
                break
            await asyncio.sleep(1.0)
        return self.memory_mb() - before_mb

    def _client(self, token: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token}"}
        limits = httpx.Limits(keepalive_expiry=2.0)
        return httpx.AsyncClient(base_url=self.address, headers=headers, timeout=10, limits=limits)

    async def _token(self, **fields: Any) -> str:
        body = {"scopes": SCOPES, "ttl_s": 3600} | fields
        answer = read(await self.operator.post("/v1/tokens", json=body), 201)
        return str(answer.json()["token"])

    async def _open(self, stack: AsyncExitStack, kinds: Sequence[type[Viewer]]) -> None:
        await stack.enter_async_context(self.operator)
        ann = await stack.enter_async_context(self._client(await self._token(subject="ann")))
        self.newcomer = self._client(await self._token(subject="newcomer"))
        await stack.enter_async_context(self.newcomer)
        for kind in kinds:
            viewer = kind(ann)
            stack.push_async_callback(viewer.close)
            await viewer.open()
            self.viewers.append(viewer)
        upload = read(await ann.post(UPLOAD, content=picture(), timeout=60), 201).json()
        session = self.viewers[0].session
        shown = read(await ann.get(f"/v1/sessions/{session}"), 200).json()
        self.target = Target(
            address=self.address,
            token=await self._token(subject="mallory"),
            view_token=await self._token(subject="ann", scopes=["view"], session=session),
            session=session,
            connection=shown["connections"][0]["id"],
            portrait=upload["id"],
            seconds=0.0,
        )
        await asyncio.sleep(QUIET_S)


def started(size: int, descriptors: int) -> "subprocess.Popen[str]":
    """Start the server; its first line tells its address."""
    command = [sys.executable, "-m", "attack.server", "--size", str(size)]
    command += ["--descriptors", str(descriptors)]
    # Python looks for modules in the present folder first.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=BENCHMARKS
    )


def picture() -> bytes:
    """Return a portrait to upload."""
    return Path(next(iter(list_avatars().values()))).read_bytes()


def environment() -> dict[str, str]:
    """Return the environment of a program of `benchmarks/`."""
    paths = [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


async def measured(stage: Stage, name: str, seconds: float) -> Row:
    """Run one attack, or none, and return what it did to others."""
    before_mb = stage.memory_mb()
    async with _attacking(stage, name, seconds) as attacker:
        await _begun(attacker)
        probing = asyncio.create_task(_probe(stage))
        from_s = time.monotonic()
        answers = await _answers(attacker, seconds)
        to_s = time.monotonic()
        probing.cancel()
        health_during_ms, peak_mb = await probing
        await asyncio.sleep(1.0)
        health_ms = await timed_ms(stage.newcomer.get("/healthz"), 200)
        session_ms = await new_session_ms(stage.newcomer)
    await stage.at_rest()
    late_ms = stage.lateness_ms(from_s, to_s)
    return Row(
        attack=name,
        seconds=to_s - from_s,
        frames=len(late_ms),
        latest_ms=float(late_ms.max()),
        late_share=float((late_ms > LATE_SHARE_MS).mean()),
        before_ms=float(stage.lateness_ms(from_s - QUIET_S, from_s).max()),
        load=os.getloadavg()[0],
        memory_mb=before_mb,
        grown_mb=await stage.grown_mb(before_mb, GROWN_MB),
        peak_mb=peak_mb - before_mb,
        health_during_ms=health_during_ms,
        health_ms=health_ms,
        session_ms=session_ms,
        answers=answers,
    )


Attacker = asyncio.subprocess.Process | None


@asynccontextmanager
async def _attacking(stage: Stage, name: str, seconds: float) -> AsyncIterator[Attacker]:
    """Start an attacker, if there is to be one; afterwards, let it end what it has opened."""
    if name == NONE:
        yield None
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "attack.attackers", name),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment() | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.nice(ATTACKER_NICE),
    )
    target = Target(**(asdict(stage.target) | {"seconds": seconds}))
    assert process.stdin is not None
    process.stdin.write(request(target, stage.folder))
    try:
        yield process
        async with asyncio.timeout(MARGIN_S):
            await process.wait()
    except TimeoutError:
        process.kill()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _begun(attacker: Attacker) -> None:
    """Wait until an attacker has made what it needs, and for a quiet time after that."""
    if attacker is not None and attacker.stdout is not None:
        await asyncio.wait_for(attacker.stdout.readline(), READY_S)
    await asyncio.sleep(QUIET_S)
    if attacker is not None and attacker.stdin is not None:
        attacker.stdin.write(b"go\n")


async def _answers(attacker: Attacker, seconds: float) -> dict[str, int]:
    """Wait until the time is over; return what an attacker was answered."""
    if attacker is None or attacker.stdout is None:
        await asyncio.sleep(seconds)
        return {}
    try:
        line = await asyncio.wait_for(attacker.stdout.readline(), seconds + MARGIN_S)
    except TimeoutError:
        return {"the attacker hung": 1}
    counts: dict[str, int] = json.loads(line or '{"the attacker failed": 1}')
    return counts


async def new_session_ms(http: httpx.AsyncClient) -> float:
    """Open a session and end it; return the time that opening took, ms."""
    before_s = time.monotonic()
    try:
        answer = await http.post("/v1/sessions", json={})
    except httpx.HTTPError:
        return NO_ANSWER_MS
    took_ms = (time.monotonic() - before_s) * 1000
    if answer.status_code != 201:
        return NO_ANSWER_MS
    await http.delete(answer.headers["location"])
    return took_ms


async def _probe(stage: Stage) -> tuple[float, float]:
    """Ask for health once a second until cancelled; return the slowest answer and most memory."""
    slowest_ms = most_mb = 0.0
    try:
        while True:
            most_mb = max(most_mb, stage.memory_mb())
            slowest_ms = max(slowest_ms, await timed_ms(stage.operator.get("/healthz"), 200))
            await asyncio.sleep(1.0)
    except asyncio.CancelledError:
        return slowest_ms, max(most_mb, stage.memory_mb())


async def timed_ms(asked: Any, status: int) -> float:
    """Return the time of an answer, ms; `NO_ANSWER_MS` if it is another one, or none."""
    began_s = time.monotonic()
    try:
        answer = await asked
    except httpx.HTTPError:
        return NO_ANSWER_MS
    if answer.status_code != status:
        return NO_ANSWER_MS
    return (time.monotonic() - began_s) * 1000
