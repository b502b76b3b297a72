"""Attacks of a WebRTC peer: offers, candidates, video frames and messages."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from soak.clients import until
from support.hostile_media import VP8_BOMB, HostileCamera, encoded

from attack.reach import Reach

BYSTANDERS = 256
FRAGMENT = "application/trickle-ice-sdpfrag"
CANDIDATE = "a=candidate:{} 1 udp 2122260223 {} {} typ host"
CAMERAS = 4
LARGEST_PX, FAST_FPS = (1920, 1200), 120.0
ENDLESS_BYTES = 20_000_000


async def offers_flood(reach: Reach) -> None:
    """Offer connections as fast as possible, and never connect."""
    await reach.begin()
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    pc.addTransceiver("audio", "recvonly")
    pc.addTransceiver("video", "recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    sdp = pc.localDescription.sdp
    headers = {"content-type": "application/sdp"}
    await reach.flood(lambda: reach.http.post("/v1/whep", content=sdp, headers=headers), 8)
    await pc.close()


async def candidates(reach: Reach) -> None:
    """Name addresses of bystanders as candidates, and count the packets that they get."""
    await reach.begin()
    bystanders = [reach.stack.enter_context(bystander()) for _ in range(BYSTANDERS)]
    async with connected(reach, camera=None) as (_, path, etag):

        async def patch() -> httpx.Response:
            first = reach.counts.total() * 64
            chosen = [bystanders[(first + number) % BYSTANDERS] for number in range(64)]
            lines = [CANDIDATE.format(n, *each.getsockname()) for n, each in enumerate(chosen)]
            headers = {"content-type": FRAGMENT, "if-match": etag}
            body = "\r\n".join(["a=mid:0", *lines, ""])
            return await reach.http.patch(path, content=body, headers=headers)

        await reach.flood(patch, 2)
    reach.counts["packets to bystanders"] = sum(received(each) for each in bystanders)


def bystander() -> socket.socket:
    """Return a UDP socket of this machine."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    opened.setblocking(False)
    return opened


def received(opened: socket.socket) -> int:
    """Return how many packets have arrived."""
    count = 0
    with suppress(BlockingIOError):
        while opened.recv(2000):
            count += 1
    return count


async def vp8_bombs(reach: Reach) -> None:
    """Send VP8 key frames of 67 bytes that claim 16383 x 16383 px."""
    await reach.begin()
    await film_bombs(reach, VP8_BOMB, "VP8")


async def h264_bombs(reach: Reach) -> None:
    """Send H.264 frames of 8192 x 4320 px."""
    [bomb] = await asyncio.to_thread(encoded, "libx264", 8192, 4320)
    await reach.begin()
    await film_bombs(reach, bomb, "H264")


async def large_cameras(reach: Reach) -> None:
    """Send frames of 4096 x 2160 px from the cameras of several sessions."""
    frames = await asyncio.to_thread(encoded, "libvpx", 4096, 2160, 10)
    await film(reach, frames, 30)


async def fast_cameras(reach: Reach) -> None:
    """Send the largest frames that may be, faster than may be, from several sessions."""
    frames = await asyncio.to_thread(encoded, "libvpx", *LARGEST_PX, 10)
    await film(reach, frames, FAST_FPS)


async def film(reach: Reach, frames: list[bytes], fps: float) -> None:
    """Send encoded frames again and again from the cameras of several sessions."""
    await reach.begin()
    count = int(fps / len(frames) * reach.target.seconds) + 1
    cameras = [HostileCamera(frames[0], frames * count, fps) for _ in range(CAMERAS)]

    async def send(camera: HostileCamera) -> None:
        with suppress(TimeoutError, RuntimeError):
            async with connected(reach, camera):
                await reach.until_over()

    await reach.together([send(camera) for camera in cameras])


async def film_bombs(reach: Reach, bomb: bytes, codec: str) -> None:
    """Send one encoded frame again and again."""
    count = int(30 * reach.target.seconds / 20) + 1
    camera = HostileCamera(bomb, [bomb] * 20 * count)
    async with connected(reach, camera, codec):
        await reach.until_over()
    reach.counts["connections"] += 1


async def endless_messages(reach: Reach) -> None:
    """Send messages without an end on a data channel; connect again when dropped."""
    await reach.begin()
    while reach.goes_on():
        try:
            async with connected(reach, camera=None, has_channel=True) as (pc, _, _):
                pc.sctp._remote_max_message_size = 0  # whatever the server says
                channel = pc.letstalk_channel
                channel.send(os.urandom(ENDLESS_BYTES))
                reach.counts["messages"] += 1
                await reach.until_over(lambda: pc.connectionState != "connected")
        except (TimeoutError, RuntimeError) as error:
            reach.counts[str(error) or type(error).__name__] += 1
            await asyncio.sleep(0.5)


@asynccontextmanager
async def connected(
    reach: Reach, camera: Any, codec: str = "VP8", *, has_channel: bool = False
) -> AsyncIterator[tuple[Any, str, str]]:
    """Connect as the page does it; yield the connection, its path and its entity tag.

    Raises:
        RuntimeError: The server has refused it; the message is the code of the problem.
    """
    pc: Any = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        pc.addTransceiver("audio", "recvonly")
        if camera is None:
            pc.addTransceiver("video", "recvonly")
        else:
            video = pc.addTransceiver(camera, "sendonly")
            known = RTCRtpReceiver.getCapabilities("video").codecs
            video.setCodecPreferences([each for each in known if each.mimeType.endswith(codec)])
        pc.letstalk_channel = pc.createDataChannel("control")
        await pc.setLocalDescription(await pc.createOffer())
        body = {"type": "offer", "sdp": pc.localDescription.sdp, "camera": camera is not None}
        response = await reach.note(reach.http.post("/v1/offer", json=body))
        if response is None or response.status_code != 201:
            raise RuntimeError("not connected")
        answer = response.json()
        await pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await until(lambda: pc.connectionState == "connected")
        if has_channel:
            await until(lambda: pc.letstalk_channel.readyState == "open")
        path = response.headers["location"]
        yield pc, path, f'"{answer["connection"]}"'
        await reach.http.delete(f"/v1/sessions/{answer['session']}")
    finally:
        await pc.close()


PEER_ATTACKS: dict[str, Callable[[Reach], Coroutine[Any, Any, None]]] = {
    "offers-flood": offers_flood,
    "candidates": candidates,
    "vp8-bombs": vp8_bombs,
    "h264-bombs": h264_bombs,
    "large-cameras": large_cameras,
    "fast-cameras": fast_cameras,
    "endless-messages": endless_messages,
}
