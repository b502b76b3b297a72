"""Speak into the microphone and have an avatar say it: heard here, seen where you like.

    pip install websockets numpy av sounddevice
    python microphone.py --url http://localhost:8080 --avatar mira --save me.mp4
    python microphone.py --camera          # as a virtual camera (pip install pyvirtualcam)

Wear headphones: nothing here keeps the avatar's voice out of the microphone. Ctrl-C ends it.
"""

import argparse
import asyncio
import io
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np
from letstalk_client import FPS, SAMPLE_RATE, Client, Picture, Sound
from media import Movie

BLOCK = SAMPLE_RATE // 50
MAX_WAITING = 25
"""Blocks of 20 ms that wait for the network; older ones are dropped, so that no delay builds up."""

MAX_UNHEARD = 3 * SAMPLE_RATE // 10


class Voice:
    """The microphone and the loudspeaker, as `sounddevice` gives them.

    Args:
        devices: names or numbers of input and output; `None` takes the system's.
    """

    def __init__(self, devices: tuple[str | None, str | None]) -> None:
        import sounddevice

        self.heard: asyncio.Queue[np.ndarray] = asyncio.Queue(MAX_WAITING)
        self._loop = asyncio.get_running_loop()
        self._unheard = np.zeros(0, np.int16)
        try:
            self._stream = sounddevice.Stream(
                samplerate=SAMPLE_RATE,
                blocksize=BLOCK,
                channels=1,
                dtype="int16",
                device=devices,
                callback=self._exchange,
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            raise RuntimeError(
                f"no microphone and loudspeaker can be opened ({error}); "
                "python -m sounddevice lists what there is, for --input and --output"
            ) from error

    def __enter__(self) -> "Voice":
        self._stream.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stream.close()

    def play(self, pcm: np.ndarray) -> None:
        """Add to what the loudspeaker plays next; what is far too late is left out."""
        self._unheard = np.concatenate([self._unheard, pcm])[-MAX_UNHEARD:]

    def _exchange(self, heard: np.ndarray, played: np.ndarray, *_: Any) -> None:
        # Runs in the sound system's thread: only quick things here.
        ready, self._unheard = self._unheard[: len(played)], self._unheard[len(played) :]
        played[:, 0] = np.pad(ready, (0, len(played) - len(ready)))
        self._loop.call_soon_threadsafe(self._keep, heard[:, 0].copy())

    def _keep(self, block: np.ndarray) -> None:
        if self.heard.full():
            self.heard.get_nowait()
        self.heard.put_nowait(block)


async def converse(client: Client, voice: Voice, show: Callable[[Picture | Sound], None]) -> None:
    """Send what the microphone hears; play and show what comes back."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_send(client, voice))
        async for item in client:
            if isinstance(item, Sound):
                voice.play(item.pcm)
                show(item)
            elif isinstance(item, Picture):
                show(item)
            elif item["type"] in ("avatar.speaking", "avatar.idle"):
                print(item["type"].removeprefix("avatar."))
            elif item["type"] in ("session.warning", "session.error"):
                print(item["detail"], file=sys.stderr)
        raise ConnectionError("the server ended the session")


async def _send(client: Client, voice: Voice) -> None:
    while True:
        await client.push(await voice.heard.get())


class Camera:
    """A virtual camera that other programs see; opened with the first picture."""

    def __init__(self) -> None:
        self._camera: Any = None

    def __enter__(self) -> "Camera":
        return self

    def __exit__(self, *failure: object) -> None:
        if self._camera is not None:
            self._camera.close()

    def add(self, item: Picture | Sound) -> None:
        """Show a picture."""
        if isinstance(item, Sound):
            return
        if self._camera is None:
            import pyvirtualcam

            self._camera = pyvirtualcam.Camera(*item.size, fps=FPS)
        with av.open(io.BytesIO(item.data), format="mjpeg") as jpeg:
            self._camera.send(next(jpeg.decode(video=0)).to_ndarray(format="rgb24"))


async def talk(given: argparse.Namespace) -> None:
    """Open everything and talk until it is interrupted."""
    with ExitStack() as stack:
        screens: list[Movie | Camera] = []
        if given.save:
            screens.append(stack.enter_context(Movie(given.save)))
        if given.camera:
            screens.append(stack.enter_context(Camera()))

        def show(item: Picture | Sound) -> None:
            for screen in screens:
                screen.add(item)

        voice = stack.enter_context(Voice((given.input, given.output)))
        async with Client(given.url, token=given.token, avatar=given.avatar) as client:
            if not screens:  # sound comes with pictures; one of low quality a second costs little
                few = {"format": "jpeg", "quality": 1, "max_fps": 1}
                await client.send(type="session.configure", frames=few)
            await converse(client, voice, show)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://localhost:8080", help="address of the server")
    parser.add_argument("--token", help="where the server asks for one")
    parser.add_argument("--avatar", help="id of the avatar; the server's first by default")
    parser.add_argument("--save", type=Path, help="MP4 file to write")
    parser.add_argument("--camera", action="store_true", help="show it as a virtual camera")
    parser.add_argument("--input", help="microphone: part of its name")
    parser.add_argument("--output", help="loudspeaker: part of its name")
    given = parser.parse_args()
    try:
        asyncio.run(talk(given))
    except KeyboardInterrupt:
        return 0
    except (OSError, ImportError, RuntimeError, ExceptionGroup) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
