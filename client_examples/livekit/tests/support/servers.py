"""The LiveKit server that the tests use: ours, or the one that `LIVEKIT_URL` names."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from livekit import api
from stub.server import API_KEY, API_SECRET


@dataclass(frozen=True, slots=True)
class Server:
    """A LiveKit server.

    Attributes:
        is_stub: whether it is ours, which shows what its workers report.
    """

    url: str
    api_key: str
    api_secret: str
    is_stub: bool

    @property
    def key(self) -> dict[str, str]:
        """The key, as arguments of `LiveKitAPI` and of the plugin."""
        return {"url": self.url, "api_key": self.api_key, "api_secret": self.api_secret}

    def token(self, identity: str, room: str, secret: str | None = None) -> str:
        """Return a token to join a room."""
        grants = api.VideoGrants(room_join=True, room=room)
        token = api.AccessToken(self.api_key, secret or self.api_secret)
        return token.with_identity(identity).with_grants(grants).to_jwt()

    async def close_room(self, room: str) -> None:
        """Send everybody out of a room."""
        async with api.LiveKitAPI(**self.key) as server:
            await server.room.delete_room(api.DeleteRoomRequest(room=room))


@contextmanager
def open_server() -> Iterator[Server]:
    """Use the server of the environment, or run the stub in a process of its own."""
    if url := os.environ.get("LIVEKIT_URL"):
        key, secret = os.environ["LIVEKIT_API_KEY"], os.environ["LIVEKIT_API_SECRET"]
        yield Server(url, key, secret, is_stub=False)
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "stub"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Server(process.stdout.readline().strip(), API_KEY, API_SECRET, is_stub=True)
        finally:
            process.stdin.close()
            process.wait(timeout=20)
