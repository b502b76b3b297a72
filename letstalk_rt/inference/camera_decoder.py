"""A process that decodes the video of one peer's camera; see `media_process`.

Each request on standard input is a `REQUEST` header and an encoded frame. One that asks for a reply
gets a `REPLY` header, and the pixels of the newest frame if there is one: `(H, W, 3)` uint8.
"""

import struct
import sys
from typing import Any

import av
import numpy as np
from av import VideoFrame

from letstalk_rt.inference.media_process import begin, give_way, limit_resources

CODECS = {"VP8": "vp8", "H264": "h264"}
"""FFmpeg's decoder of each codec. Its own of VP8 checks the size before it takes memory; libvpx
takes a gigabyte for a frame of 67 bytes."""

MOST_PX = 480
"""Longer side of the frames that are returned; larger ones are made smaller."""

MOST_PIXELS = 4096 * 2160
"""Larger frames are not decoded: they are refused by the key frame's header (VP8) or its sequence
parameter set (H.264)."""

MEMORY_MB = 512
"""What decoding may take: H.264 may refer to 16 frames, of 13 MB each."""

REQUEST = struct.Struct("!BBI")
"""Index of the codec in `CODECS`, whether a reply is wanted, and the length of the frame."""

REPLY = struct.Struct("!BHH")
"""Whether a frame since the last reply was damaged or refused; height and width, 0 for none."""


class CameraDecoder:
    """Decodes frames of one camera, which may change its codec."""

    def __init__(self) -> None:
        self._codec: int | None = None
        self._context: Any = None

    def decode(self, codec: int, data: bytes) -> VideoFrame | None:
        """Return the newest frame that is complete.

        Raises:
            av.FFmpegError: The data are damaged, or the frame is too large.
        """
        if codec != self._codec:
            self._codec = codec
            self._context = av.CodecContext.create(list(CODECS.values())[codec], "r")
            self._context.options = {"max_pixels": str(MOST_PIXELS)}
            self._context.thread_count = 1
        frames = self._context.decode(av.Packet(data))
        return frames[-1] if frames else None


def main() -> int:
    """Decode until the parent closes the pipe; return the exit status."""
    requests, replies = begin()
    give_way()
    limit_resources(MEMORY_MB)
    decoder = CameraDecoder()
    newest: VideoFrame | None = None
    has_failed = False
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        codec, is_asked, length = REQUEST.unpack(head)
        try:
            newest = decoder.decode(codec, requests.read(length)) or newest
        except av.FFmpegError:
            has_failed = True
        if is_asked:
            rgb = np.empty((0, 0, 3), np.uint8) if newest is None else as_rgb(newest)
            replies.write(REPLY.pack(has_failed, *rgb.shape[:2]) + rgb.tobytes())
            replies.flush()
            newest, has_failed = None, False
    return 0


def as_rgb(frame: VideoFrame) -> np.ndarray:
    """Return a frame as `(H, W, 3)` uint8, its longer side at most `MOST_PX`."""
    scale = min(1.0, MOST_PX / max(frame.width, frame.height))
    width, height = (2 * max(16, round(side * scale / 2)) for side in (frame.width, frame.height))
    rgb: np.ndarray = frame.to_ndarray(format="rgb24", width=width, height=height)
    return rgb


if __name__ == "__main__":
    sys.exit(main())
