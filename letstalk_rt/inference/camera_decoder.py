"""A process that decodes the video of one peer's camera; see `media_process`.

Each request on standard input is a `REQUEST` header and an encoded frame. One that asks for a reply
gets a `REPLY` header, and the pixels of the newest frame if there is one: `(H, W, 3)` uint8.
"""

import struct
import sys
from enum import IntEnum
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

MOST_PIXELS = 1920 * 1200
"""Larger frames are not decoded: they are refused by the key frame's header (VP8) or its sequence
parameter set (H.264)."""

MEMORY_MB = 512
"""What decoding may take: H.264 may refer to 16 frames, of 4 MB each."""

REQUEST = struct.Struct("!BBI")
"""Index of the codec in `CODECS`, whether a reply is wanted, and the length of the frame."""

REPLY = struct.Struct("!BHHQ")
"""A `Fault` since the last reply; height and width, 0 for none; pixels of all frames decoded."""


class Fault(IntEnum):
    """What was wrong with frames; `TOO_LARGE`, if those that come now are."""

    NONE = 0
    DAMAGED = 1
    TOO_LARGE = 2


class CameraDecoder:
    """Decodes frames of one camera, which may change its codec.

    Attributes:
        is_too_large: whether the frames that come now are larger than `MOST_PIXELS`.
    """

    def __init__(self) -> None:
        self.is_too_large = False
        self._codec: int | None = None
        self._context: Any = None

    @property
    def pixels(self) -> int:
        """Pixels of each frame that comes now; 0 if they are not decoded."""
        if self._context is None or self.is_too_large:
            return 0
        return int(self._context.width * self._context.height)

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
        try:
            frames = self._context.decode(av.Packet(data))
        except av.FFmpegError as error:
            # Of VP8, no other argument than the size may be wrong; of H.264, the size is known.
            pixels = self._context.width * self._context.height
            self.is_too_large |= isinstance(error, av.ArgumentError) or pixels > MOST_PIXELS
            raise
        self.is_too_large = False
        return frames[-1] if frames else None


def main() -> int:
    """Decode until the parent closes the pipe; return the exit status."""
    requests, replies = begin()
    give_way()
    limit_resources(MEMORY_MB)
    decoder = CameraDecoder()
    newest: VideoFrame | None = None
    is_damaged, pixels = False, 0
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        codec, is_asked, length = REQUEST.unpack(head)
        try:
            newest = decoder.decode(codec, requests.read(length)) or newest
        except av.FFmpegError:
            is_damaged = True
        pixels += decoder.pixels
        if is_asked:
            fault = Fault.TOO_LARGE if decoder.is_too_large else Fault(is_damaged)
            rgb = np.empty((0, 0, 3), np.uint8) if newest is None else as_rgb(newest)
            replies.write(REPLY.pack(fault, *rgb.shape[:2], pixels) + rgb.tobytes())
            replies.flush()
            newest, is_damaged, pixels = None, False, 0
    return 0


def as_rgb(frame: VideoFrame) -> np.ndarray:
    """Return a frame as `(H, W, 3)` uint8, its longer side at most `MOST_PX`."""
    scale = min(1.0, MOST_PX / max(frame.width, frame.height))
    width, height = (2 * max(16, round(side * scale / 2)) for side in (frame.width, frame.height))
    rgb: np.ndarray = frame.to_ndarray(format="rgb24", width=width, height=height)
    return rgb


if __name__ == "__main__":
    sys.exit(main())
