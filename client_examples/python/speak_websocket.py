"""Have an avatar speak a sound file, and save what comes back. By WebSocket.

pip install websockets av numpy
python speak_websocket.py hello.wav hello.mp4 --url http://localhost:8080 --avatar mira
"""

import argparse
import asyncio
import sys
from pathlib import Path

from letstalk_client import Client, Picture, Sound
from media import Movie, read_sound

TAIL_S = 0.6
"""The film goes on this long after the last word."""


async def speak(sound: Path, film: Path, url: str, token: str | None, avatar: str | None) -> int:
    """Say the file; give the number of pictures that were saved."""
    pcm = read_sound(sound)
    async with Client(url, token=token, avatar=avatar) as client:
        with Movie(film) as movie:
            saying = asyncio.create_task(client.say(pcm))
            await _record(client, movie)
            await saying
        await client.send(type="session.close")
    return movie.pictures


async def _record(client: Client, movie: Movie) -> None:
    ends_at: float | None = None
    loop = asyncio.get_running_loop()
    async for item in client:
        if isinstance(item, Picture | Sound):
            movie.add(item)
        elif item["type"] == "segment.finished":
            ends_at = loop.time() + TAIL_S
        elif item["type"] == "session.error" and item["fatal"]:
            raise RuntimeError(f"{item['detail']} ({item['code']})")
        if ends_at is not None and loop.time() > ends_at:
            return
    raise RuntimeError("the server ended the session before all was said")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sound", type=Path, help="WAV, MP3 or any other sound file")
    parser.add_argument("film", type=Path, help="MP4 file to write")
    parser.add_argument("--url", default="http://localhost:8080", help="address of the server")
    parser.add_argument("--token", help="where the server asks for one")
    parser.add_argument("--avatar", help="id of the avatar; the server's first by default")
    given = parser.parse_args()
    try:
        count = asyncio.run(speak(given.sound, given.film, given.url, given.token, given.avatar))
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.film}: {count} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
