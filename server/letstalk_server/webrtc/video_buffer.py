"""How a peer's camera is received: a frame is complete with its last packet, and stays encoded.

aiortc's jitter buffer waits for the first packet of the next frame, which is 40 ms at 25 frames per
second, and aiortc decodes in this process, whatever the size of the frames.
"""

import queue
from collections.abc import Callable
from typing import Any

from aiortc.jitterbuffer import JitterBuffer, JitterFrame

from letstalk_server.webrtc.encoders import VIDEO_CLOCK_HZ

PACKETS = 512
"""Packets that the buffer holds, as aiortc's own."""

_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_QUEUE = "_RTCRtpReceiver__decoder_queue"
_ERROR = "_RTCRtpReceiver__decoder_error"


class PromptBuffer(JitterBuffer):
    """Puts packets in order and returns frames, each as soon as its last packet is there.

    The last packet of a frame has the marker bit, in VP8 (RFC 7741) as in H.264 (RFC 6184).
    """

    def __init__(self) -> None:
        super().__init__(capacity=PACKETS, is_video=True)

    def _remove_frame(self, sequence_number: int) -> JitterFrame | None:
        """Remove and return the oldest frame if it is complete."""
        return self._marked_frame() or super()._remove_frame(sequence_number)

    def _marked_frame(self) -> JitterFrame | None:
        """Remove and return the oldest frame if its packets are there up to the marked one."""
        origin = self._origin
        assert origin is not None, "a packet was added"
        parts: list[bytes] = []
        timestamp = None
        for count in range(self.capacity):
            packet = self._packets[(origin + count) % self.capacity]
            if packet is None or (timestamp is not None and packet.timestamp != timestamp):
                return None
            timestamp = packet.timestamp
            parts.append(packet._data)  # type: ignore[attr-defined]
            if packet.marker:
                self.remove(count + 1)
                return JitterFrame(data=b"".join(parts), timestamp=timestamp)
        return None


class FrameQueue(queue.Queue[Any]):
    """In the place of the queue of aiortc's decoder: frames go elsewhere, and it only ends.

    Args:
        on_frame: called with the codec, the data and the timestamp in seconds of each frame.
    """

    def __init__(self, on_frame: Callable[[str, bytes, float], None]) -> None:
        super().__init__()
        self._on_frame = on_frame

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Pass on a frame, or end the decoder's thread."""
        if item is None:
            super().put(None, block, timeout)
        else:
            codec, frame = item
            self._on_frame(codec.name, frame.data, frame.timestamp / VIDEO_CLOCK_HZ)


def receive_encoded(receiver: Any, on_frame: Callable[[str, bytes, float], None]) -> None:
    """Make aiortc's receiver of a camera pass on encoded frames; aiortc has no interface for it."""
    for name in (_BUFFER, _QUEUE, _ERROR):
        assert name in vars(receiver), f"this version of aiortc has no attribute {name}"
    setattr(receiver, _BUFFER, PromptBuffer())
    setattr(receiver, _QUEUE, FrameQueue(on_frame))


def request_key_frame(receiver: Any) -> None:
    """Make aiortc's receiver ask for a key frame when the next packet comes."""
    getattr(receiver, _ERROR).set()
