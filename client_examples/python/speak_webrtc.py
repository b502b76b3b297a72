"""Let an avatar speak an audio file over WebRTC, as a browser would, and save the video.

pip install aiortc
python speak_webrtc.py hello.wav hello.mp4 --url http://localhost:8080 --avatar mira
"""

import argparse
import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaPlayer, MediaRecorder

PING_S = 1.5
TAIL_S = 0.6
START_TIMEOUT_S = 10.0
"""If the avatar has not begun by this time after the end of the file, the file is silent."""

IDLE_S = 2.0
"""The avatar has finished once it was idle for this long after the end of the file."""


def post(url: str, path: str, body: dict[str, Any], token: str | None) -> dict[str, Any]:
    """Post JSON and return the JSON of the response.

    Raises:
        RuntimeError: the server refused the request; the message gives its reason.
    """
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    request = Request(f"{url.rstrip('/')}/{path}", json.dumps(body).encode(), headers)
    try:
        with urlopen(request, timeout=30) as response:
            return dict(json.load(response))
    except HTTPError as error:
        raise RuntimeError(json.load(error).get("detail", str(error))) from None
    except URLError as error:
        raise RuntimeError(f"the server at {url} cannot be reached: {error.reason}") from None


class Call:
    """A peer connection that sends an audio file and records the avatar to a video file."""

    def __init__(self, ice_servers: list[dict[str, Any]], audio: Path, video: Path) -> None:
        servers = [RTCIceServer(**server) for server in ice_servers]
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._player = MediaPlayer(str(audio))
        self._recorder = MediaRecorder(str(video))
        self._is_speaking = False
        self._has_spoken = asyncio.Event()
        self._lost = asyncio.Event()
        self.pc.addTrack(self._player.audio)
        self.pc.addTransceiver("video", "recvonly")
        self._channel = self.pc.createDataChannel("control")
        self._channel.on("message", self._on_message)
        self.pc.on("track", self._on_track)
        self.pc.on("connectionstatechange", self._on_state)

    async def run(self) -> None:
        """Send the whole file, and return when the avatar has spoken it."""
        pinging = asyncio.create_task(self._ping())
        try:
            await self._recorder.start()
            await self._wait_until_spoken()
            await asyncio.sleep(TAIL_S)
        finally:
            pinging.cancel()
            with suppress(asyncio.CancelledError):
                await pinging
            await self._recorder.stop()
            was_lost = self._lost.is_set()
            await self.pc.close()
        if was_lost:
            raise RuntimeError("the connection was lost")

    async def _wait_until_spoken(self) -> None:
        ended = asyncio.Event()
        self._player.audio.on("ended", ended.set)
        await self._wait_for(ended)
        await self._wait_for(self._has_spoken, START_TIMEOUT_S)
        idle_s = 0.0
        while idle_s < IDLE_S and not self._lost.is_set():
            await asyncio.sleep(0.1)
            idle_s = 0.0 if self._is_speaking else idle_s + 0.1

    async def _wait_for(self, event: asyncio.Event, timeout_s: float | None = None) -> None:
        """Wait for the event, the loss of the connection or the timeout."""
        waits = [asyncio.create_task(each.wait()) for each in (event, self._lost)]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            if self._channel.readyState == "open":
                self._channel.send('{"type": "session.ping"}')

    def _on_track(self, track: Any) -> None:
        self._recorder.addTrack(track)

    def _on_state(self) -> None:
        if self.pc.connectionState in ("failed", "closed"):
            self._lost.set()

    def _on_message(self, text: str) -> None:
        message_type = json.loads(text)["type"]
        if message_type in ("avatar.speaking", "avatar.idle"):
            self._is_speaking = message_type == "avatar.speaking"
            if self._is_speaking:
                self._has_spoken.set()


async def speak(audio: Path, video: Path, url: str, token: str | None, avatar: str | None) -> None:
    """Speak the file and save the video."""
    parameters = {"avatar": avatar} if avatar else {}
    session = await asyncio.to_thread(post, url, "v1/sessions", parameters, token)
    token = session["token"] or token
    call = Call(session["ice_servers"], audio, video)
    await call.pc.setLocalDescription(await call.pc.createOffer())
    offer = {"type": "offer", "sdp": call.pc.localDescription.sdp}
    path = f"v1/offer?session={session['session']}"
    answer = await asyncio.to_thread(post, url, path, offer, token)
    await call.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
    await call.run()


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
        asyncio.run(speak(options.audio, options.video, options.url, options.token, options.avatar))
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.video)
    return 0


if __name__ == "__main__":
    sys.exit(main())
