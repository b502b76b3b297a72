"""Speak through an avatar: play its audio here, and save or show its video.

    pip install '.[server,mic]'            # in a clone
    python microphone.py --url http://localhost:8080 --avatar mira --save me.mp4
    python microphone.py --camera          # as a virtual camera (pip install pyvirtualcam)

Wear headphones: there is no echo cancellation. Press Ctrl-C to stop.
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
from letstalk_client import FPS, SAMPLE_RATE, AudioFrame, Client, VideoFrame
from media import PairedFrames

from letstalk_rt.audio.audio_devices import load_sounddevice
from letstalk_rt.errors import LetsTalkError
from letstalk_rt.recording.file import VideoWriter

BLOCK = SAMPLE_RATE // 50
MAX_QUEUED = 25
"""Blocks of 20 ms that wait for the network; beyond, the oldest are dropped to limit the delay."""

MAX_UNPLAYED = 3 * SAMPLE_RATE // 10
"""Samples that wait for the loudspeaker; beyond, the oldest are dropped."""


class AudioDevices:
    """A microphone and a loudspeaker, opened with `sounddevice`.

    Args:
        devices: names or numbers of the input and the output; None for the system's default.
    """

    def __init__(self, devices: tuple[str | None, str | None]) -> None:
        sounddevice = load_sounddevice()  # or an error that says what to install
        self.recorded: asyncio.Queue[np.ndarray] = asyncio.Queue(MAX_QUEUED)
        self._loop = asyncio.get_running_loop()
        self._unplayed = np.zeros(0, np.int16)
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
                f"cannot open a microphone and a loudspeaker ({error}); "
                "choose devices with --input and --output; python -m sounddevice lists them"
            ) from error

    def __enter__(self) -> "AudioDevices":
        self._stream.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stream.close()

    def play(self, pcm: np.ndarray) -> None:
        """Queue audio for the loudspeaker."""
        self._unplayed = np.concatenate([self._unplayed, pcm])[-MAX_UNPLAYED:]

    def _exchange(self, recorded: np.ndarray, played: np.ndarray, *_: Any) -> None:
        # Called in PortAudio's thread, so it must not block.
        ready, self._unplayed = self._unplayed[: len(played)], self._unplayed[len(played) :]
        played[:, 0] = np.pad(ready, (0, len(played) - len(ready)))
        self._loop.call_soon_threadsafe(self._append, recorded[:, 0].copy())

    def _append(self, block: np.ndarray) -> None:
        if self.recorded.full():
            self.recorded.get_nowait()
        self.recorded.put_nowait(block)


async def converse(
    client: Client, audio: AudioDevices, show: Callable[[VideoFrame | AudioFrame], None]
) -> None:
    """Send the microphone; play and show the frames that arrive."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_send(client, audio))
        async for item in client:
            if isinstance(item, AudioFrame):
                audio.play(item.pcm)
                show(item)
            elif isinstance(item, VideoFrame):
                show(item)
            elif item["type"] in ("avatar.speaking", "avatar.idle"):
                print(item["type"].removeprefix("avatar."))
            elif item["type"] in ("session.warning", "session.error"):
                print(item["detail"], file=sys.stderr)
        raise ConnectionError("the server ended the session")


async def _send(client: Client, audio: AudioDevices) -> None:
    while True:
        await client.push(await audio.recorded.get())


class Camera:
    """A virtual camera for other programs, opened with the first video frame."""

    def __init__(self) -> None:
        self._camera: Any = None

    def __enter__(self) -> "Camera":
        return self

    def __exit__(self, *failure: object) -> None:
        if self._camera is not None:
            self._camera.close()

    def add(self, item: VideoFrame | AudioFrame) -> None:
        """Show a video frame."""
        if isinstance(item, AudioFrame):
            return
        if self._camera is None:
            import pyvirtualcam

            self._camera = pyvirtualcam.Camera(*item.size, fps=FPS)
        with av.open(io.BytesIO(item.data), format="mjpeg") as jpeg:
            self._camera.send(next(jpeg.decode(video=0)).to_ndarray(format="rgb24"))


async def talk(options: argparse.Namespace) -> None:
    """Open the devices and the session, and talk until Ctrl-C."""
    with ExitStack() as stack:
        outputs: list[PairedFrames | Camera] = []
        if options.save:
            writer = VideoWriter(options.save, SAMPLE_RATE, badge=False)  # the server has drawn it
            outputs.append(PairedFrames(stack.enter_context(writer)))
        if options.camera:
            outputs.append(stack.enter_context(Camera()))

        def show(item: VideoFrame | AudioFrame) -> None:
            for output in outputs:
                output.add(item)

        audio = stack.enter_context(AudioDevices((options.input, options.output)))
        async with Client(options.url, token=options.token, avatar=options.avatar) as client:
            if not outputs:  # audio comes with video; one small frame per second costs little
                minimal = {"format": "jpeg", "quality": 1, "max_fps": 1}
                await client.send(type="session.configure", frames=minimal)
            await converse(client, audio, show)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://localhost:8080", help="address of the server")
    parser.add_argument("--token", help="access token, if the server requires one")
    parser.add_argument("--avatar", help="id of the avatar (default: the first one of the server)")
    parser.add_argument("--save", type=Path, help="MP4 file to write")
    parser.add_argument("--camera", action="store_true", help="output to a virtual camera")
    parser.add_argument("--input", help="part of the name of the microphone")
    parser.add_argument("--output", help="part of the name of the loudspeaker")
    options = parser.parse_args()
    try:
        asyncio.run(talk(options))
    except KeyboardInterrupt:
        return 0
    except (LetsTalkError, OSError, ImportError, RuntimeError, ExceptionGroup) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
