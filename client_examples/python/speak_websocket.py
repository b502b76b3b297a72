"""Let an avatar speak an audio file over WebSocket, and save the video.

pip install '.[server]'                       # in a clone
python speak_websocket.py hello.wav hello.mp4 --url http://localhost:8080 --avatar mira
"""

import argparse
import asyncio
import sys
from pathlib import Path

from letstalk_client import SAMPLE_RATE, AudioFrame, Client, VideoFrame
from media import PairedFrames, read_audio

from letstalk_rt.recording.file import VideoWriter

TAIL_S = 0.6
"""The recording continues for this long after the last word."""


async def speak(audio: Path, video: Path, url: str, token: str | None, avatar: str | None) -> int:
    """Speak the file; return the number of video frames saved."""
    pcm = read_audio(audio)
    async with Client(url, token=token, avatar=avatar) as client:
        with VideoWriter(video, SAMPLE_RATE, badge=False) as writer:  # the server has drawn it
            sending = asyncio.create_task(client.say(pcm))
            try:
                await _record(client, PairedFrames(writer))
            finally:  # all is sent, or nobody listens any more
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        await client.send(type="session.close")
    return writer.frames


async def _record(client: Client, frames: PairedFrames) -> None:
    ends_at: float | None = None
    loop = asyncio.get_running_loop()
    async for item in client:
        if isinstance(item, VideoFrame | AudioFrame):
            frames.add(item)
        elif item["type"] == "segment.finished":
            ends_at = loop.time() + TAIL_S
        elif item["type"] == "session.error":  # a part of the file would be missing
            raise RuntimeError(f"{item['detail']} ({item['code']})")
        if ends_at is not None and loop.time() > ends_at:
            return
    raise RuntimeError("the server ended the session before the whole file was spoken")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("audio", type=Path, help="audio file, such as WAV or MP3")
    parser.add_argument("video", type=Path, help="MP4 file to write")
    parser.add_argument("--url", default="http://localhost:8080", help="address of the server")
    parser.add_argument("--token", help="access token, if the server requires one")
    parser.add_argument("--avatar", help="id of the avatar (default: the first one of the server)")
    options = parser.parse_args()
    try:
        count = asyncio.run(
            speak(options.audio, options.video, options.url, options.token, options.avatar)
        )
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.video}: {count} frames")
    return 0


if __name__ == "__main__":
    sys.exit(main())
