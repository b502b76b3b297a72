"""What an attacker can reach, and what the server answered it."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx


@dataclass(frozen=True, slots=True)
class Target:
    """What an attacker knows.

    Attributes:
        address: of the server.
        token: of the attacker's own subject, with all scopes but that of the metrics.
        view_token: for a session of somebody else, to watch.
        session, connection: of somebody else.
        portrait: that somebody else has uploaded.
        seconds: how long it attacks, s.
    """

    address: str
    token: str
    view_token: str
    session: str
    connection: str
    portrait: str
    seconds: float


class Reach:
    """One attack that runs.

    Args:
        target: what is attacked.
        folder: for files.
        stack: closes what is opened.

    Attributes:
        http: a client with the attacker's token.
        counts: what the server answered: codes of problems, or statuses.
        sessions: those that it has opened.
    """

    def __init__(self, target: Target, folder: Path, stack: ExitStack) -> None:
        self.target, self.folder, self.stack = target, folder, stack
        self.counts: Counter[str] = Counter()
        self.sessions: list[str] = []
        self.http = httpx.AsyncClient(
            base_url=target.address,
            headers={"authorization": f"Bearer {target.token}"},
            timeout=30,
            limits=httpx.Limits(keepalive_expiry=2.0),
        )
        parts = urlsplit(target.address)
        self.place = str(parts.hostname), int(parts.port or 80)
        self.began_s = time.monotonic()

    async def begin(self) -> None:
        """Tell that all is made that the attack needs, and begin it when told so."""
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        self.began_s = time.monotonic()

    def goes_on(self) -> bool:
        """Return whether there is time left."""
        return time.monotonic() < self.began_s + self.target.seconds

    async def until_over(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Wait until the time or something else is over."""
        while self.goes_on():
            if is_over():
                break
            await asyncio.sleep(0.1)

    def head(self, method: str, path: str, size: int) -> bytes:
        """Return the header of a request whose body has `size` bytes."""
        return (
            f"{method} {path} HTTP/1.1\r\nhost: {self.place[0]}:{self.place[1]}\r\n"
            f"content-length: {size}\r\nauthorization: Bearer {self.target.token}\r\n\r\n"
        ).encode()

    async def note(self, answer: Awaitable[httpx.Response]) -> httpx.Response | None:
        """Wait for an answer and count it; return None if there is none."""
        try:
            response = await answer
        except httpx.HTTPError as error:
            self.counts[type(error).__name__] += 1
            return None
        is_problem = "problem" in response.headers.get("content-type", "")
        self.counts[response.json()["code"] if is_problem else str(response.status_code)] += 1
        if response.status_code == 201 and (path := response.headers.get("location")):
            self.sessions.append(path.partition("/connections/")[0])
        return response

    async def end_sessions(self) -> None:
        """End what is left, so that the next attack begins with the sessions of others."""
        for path in self.sessions:
            with suppress(httpx.HTTPError):
                await self.http.delete(path)

    async def flood(self, ask: Callable[[], Awaitable[httpx.Response]], at_once: int) -> None:
        """Ask again and again, so many at once, without a pause."""

        async def one_after_another() -> None:
            while self.goes_on():
                await self.note(ask())

        await self.together([one_after_another() for _ in range(at_once)])

    async def together(self, works: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Run all at once; end those that are not done some seconds after the time is over."""
        tasks = [asyncio.create_task(work) for work in works]
        left_s = self.began_s + self.target.seconds - time.monotonic()
        _, late = await asyncio.wait(tasks, timeout=max(0.0, left_s) + 0.5)
        for task in late:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
