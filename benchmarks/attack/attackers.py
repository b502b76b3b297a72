"""The attacks: each goes on until its time is over, from a process of its own.

`python -m attack.attackers NAME` (in benchmarks/) reads a `Target` as JSON, and prints what the
server answered. Attackers hold a token of another subject than the viewers, or none.
"""

import asyncio
import io
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import httpx
from PIL import Image
from support.hostile_media import fast_film
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from attack.peers import PEER_ATTACKS
from attack.reach import Reach, Target

SOCKETS = 600
"""Silent connections at once; the server may hold 256."""

UPLOAD = "/v1/avatars?consent=true"
AFTERMATH_S = 3.0
"""Time in which the server is asked how it is, with the attacker's sessions still there."""

LARGE_PX, FORBIDDEN_PX = 6300, 7000
"""Sides of pictures: one that may just be uploaded, 40 million pixels, and one that may not."""


async def idle_sockets(reach: Reach) -> None:
    """Keep silent connections open, more than the server holds."""
    await reach.begin()
    waiting: list[asyncio.StreamWriter] = []
    while reach.goes_on():
        try:
            _, writer = await asyncio.open_connection(*reach.place)
            writer.write(b"GET / HTTP/1.1\r\nx:")
            waiting.append(writer)
            reach.counts["connections"] += 1
        except OSError:
            reach.counts["connections refused"] += 1
        if len(waiting) > SOCKETS:
            waiting.pop(0).close()
        await asyncio.sleep(0.005)
    for writer in waiting:
        writer.close()


async def forged_tokens(reach: Reach) -> None:
    """Ask with tokens that nobody issued."""
    await reach.begin()
    headers = {"authorization": "Bearer " + "e30." * 300 + "x"}
    await reach.flood(lambda: reach.http.post("/v1/sessions", json={}, headers=headers), 8)


async def film_bombs(reach: Reach) -> None:
    """Upload films of a few kilobytes that decode to hundreds of 4K frames."""
    film = await asyncio.to_thread(lambda: fast_film(reach.folder / "a.mp4", repeats=10))
    await reach.begin()
    await reach.flood(lambda: reach.http.post(UPLOAD, content=film), 4)


async def picture_bombs(reach: Reach) -> None:
    """Upload pictures of a few kilobytes with 40 and 49 million pixels."""
    bombs = [await asyncio.to_thread(black_png, side) for side in (LARGE_PX, FORBIDDEN_PX)]
    await reach.begin()

    async def upload() -> httpx.Response:
        return await reach.http.post(UPLOAD, content=bombs[reach.counts.total() % 2])

    await reach.flood(upload, 4)


def black_png(side: int) -> bytes:
    """Return a black picture of `side` x `side` px."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


async def upload_flood(reach: Reach) -> None:
    """Upload small pictures as fast as possible."""
    await reach.begin()
    small = black_png(64)
    await reach.flood(lambda: reach.http.post(UPLOAD, content=small), 16)


async def slow_uploads(reach: Reach) -> None:
    """Begin uploads that stall, and one that trickles."""
    await reach.begin()

    async def stall(is_trickling: bool) -> None:
        while reach.goes_on():
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(*reach.place)
                writer.write(reach.head("POST", UPLOAD, 10_000_000))
                reach.counts["uploads begun"] += 1
                answer = asyncio.create_task(reader.read(100))
                while reach.goes_on() and not answer.done():
                    if is_trickling:
                        writer.write(b"x")
                    await asyncio.sleep(0.1)
                answer.cancel()
                writer.close()
            await asyncio.sleep(0.05)

    await reach.together([stall(number % 2 == 0) for number in range(16)])


async def session_flood(reach: Reach) -> None:
    """Open sessions as fast as possible."""
    await reach.begin()
    await reach.flood(lambda: reach.http.post("/v1/sessions", json={}), 8)


async def foreign_portraits(reach: Reach) -> None:
    """Ask for another subject's portrait in every way."""
    await reach.begin()
    name = reach.target.portrait
    requests: list[Callable[[], Awaitable[httpx.Response]]] = [
        lambda: reach.http.get(f"/v1/avatars/{name}"),
        lambda: reach.http.delete(f"/v1/avatars/{name}"),
        lambda: reach.http.post("/v1/sessions", json={"avatar": name}),
        lambda: reach.http.post("/v1/sessions", json={"portrait": name}),
    ]

    async def one() -> httpx.Response:
        return await requests[reach.counts.total() % 4]()

    await reach.flood(one, 4)


async def foreign_connections(reach: Reach) -> None:
    """List and delete connections of others, with a token to view their session."""
    await reach.begin()
    headers = {"authorization": f"Bearer {reach.target.view_token}"}
    session = f"/v1/sessions/{reach.target.session}"

    async def one() -> httpx.Response:
        shown = await reach.http.get(session, headers=headers)
        reach.counts["connections shown"] += len(shown.json().get("connections") or ())
        path = f"{session}/connections/{reach.target.connection}"
        await reach.note(reach.http.delete(session, headers=headers))
        return await reach.http.delete(path, headers=headers)

    await reach.flood(one, 4)


async def brackets(reach: Reach) -> None:
    """Have texts spoken that espeak would read as phonemes, as long as they may be."""
    text = "[[[a]]] " * 100
    await say_and_send(reach, json.dumps({"type": "speech.say", "text": text}), 0.2)


async def message_flood(reach: Reach) -> None:
    """Send messages as fast as the connection takes them."""
    await say_and_send(reach, json.dumps({"type": "session.configure", "x": "y" * 1000}), 0.0)


async def say_and_send(reach: Reach, message: str, pause_s: float) -> None:
    """Send a message again and again on a WebSocket of one's own; connect again when dropped."""
    await reach.begin()
    address = reach.target.address.replace("http", "ws", 1) + "/v1/ws"
    headers = {"authorization": f"Bearer {reach.target.token}"}
    while reach.goes_on():
        try:
            async with connect(address, additional_headers=headers, max_size=None) as socket:
                reach.counts["websockets"] += 1
                receiving = asyncio.create_task(_count(reach, socket))
                while reach.goes_on():
                    await socket.send(message)
                    reach.counts["messages"] += 1
                    await asyncio.sleep(pause_s)
                receiving.cancel()
        except (OSError, ConnectionClosed, InvalidStatus, TimeoutError) as error:
            reach.counts[type(error).__name__] += 1
            await asyncio.sleep(0.2)


async def _count(reach: Reach, socket: Any) -> None:
    with suppress(ConnectionClosed):
        async for data in socket:
            if isinstance(data, str) and (code := json.loads(data).get("code")):
                reach.counts[str(code)] += 1


Attack = Callable[[Reach], Coroutine[Any, Any, None]]

ATTACKS: dict[str, Attack] = {
    "idle-sockets": idle_sockets,
    "forged-tokens": forged_tokens,
    "film-bombs": film_bombs,
    "picture-bombs": picture_bombs,
    "upload-flood": upload_flood,
    "slow-uploads": slow_uploads,
    "session-flood": session_flood,
    "foreign-portraits": foreign_portraits,
    "foreign-connections": foreign_connections,
    "brackets": brackets,
    "message-flood": message_flood,
    **PEER_ATTACKS,
}


async def attack(name: str, target: Target, folder: Path) -> None:
    """Attack for the time of the target; print what was answered, and clean up later."""
    with ExitStack() as stack:
        reach = Reach(target, folder, stack)
        async with reach.http:
            try:
                await ATTACKS[name](reach)
            finally:
                reach.counts["seconds"] = round(time.monotonic() - reach.began_s)
                print(json.dumps(dict(reach.counts)), flush=True)
                await asyncio.sleep(AFTERMATH_S)
                await reach.end_sessions()


def main() -> int:
    """Run the attack that the command line names, on the target of standard input."""
    fields = json.loads(sys.stdin.readline())
    folder = Path(fields.pop("folder"))
    asyncio.run(attack(sys.argv[1], Target(**fields), folder))
    return 0


def request(target: Target, folder: Path) -> bytes:
    """Return what an attacker reads: a target, and a folder for its files."""
    return json.dumps(asdict(target) | {"folder": str(folder)}).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
