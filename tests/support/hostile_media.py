"""Media that attack a decoder: films, pictures and encoded frames that claim to be huge."""

import asyncio
from fractions import Fraction

import av
from aiortc.mediastreams import VideoStreamTrack
from av import CodecContext, Packet, VideoFrame


def fast_film(path, repeats, width=3840, height=2160, rate=30_000):
    """Write a film of black 4K frames at 30,000 per second: 30 encoded ones, repeated."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.max_b_frames = 0
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        packets = []
        for index in range(30):
            frame.pts, frame.time_base = index, Fraction(1, rate)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        contents = [bytes(packet) for packet in packets]
        for index in range(30 * repeats):
            packet = av.Packet(contents[index % 30])
            packet.stream, packet.time_base = stream, Fraction(1, rate)
            packet.pts = packet.dts = index
            packet.is_keyframe = index % 30 == 0
            container.mux(packet)
    return path.read_bytes()


class HostileCamera(VideoStreamTrack):
    """A camera that sends encoded frames which are far too large, then one that can be shown.

    Args:
        bomb: a frame that is sent 20 times at first.
        frames: those that follow.
        fps: frames per second.
    """

    def __init__(self, bomb, frames, fps=30.0):
        super().__init__()
        self._packets = [*[bomb] * 20, *frames]
        self._fps = fps
        self._began_s = None
        self._sent = 0

    def go_on_with(self, frames):
        """Send these frames from now on."""
        self._packets = list(frames)

    async def next_timestamp(self):
        """Wait until the next frame is due, and return its time."""
        now_s = asyncio.get_running_loop().time()
        self._began_s = now_s if self._began_s is None else self._began_s
        due_s = self._began_s + self._sent / self._fps
        await asyncio.sleep(due_s - now_s)
        self._sent += 1
        return int(90_000 * self._sent / self._fps), Fraction(1, 90_000)

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        if not self._packets:
            await asyncio.Event().wait()
        packet = Packet(self._packets.pop(0))
        packet.pts, packet.time_base = pts, time_base
        return packet


def encoded(codec, width, height, count=1):
    """Return the frames of a grey film."""
    context = CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base = Fraction(1, 25)
    context.options = {"tune": "zerolatency"} if codec == "libx264" else {"deadline": "realtime"}
    frames = []
    for index in range(count):
        frame = VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        frame.pts, frame.time_base = index, Fraction(1, 25)
        frames += [bytes(packet) for packet in context.encode(frame)]
    return frames + [bytes(packet) for packet in context.encode(None)]


VP8_BOMB = bytes.fromhex("1005009d012aff3fff3f") + bytes(57)
"""A key frame of 16383x16383 px in 67 bytes, for which libvpx takes a gigabyte."""
