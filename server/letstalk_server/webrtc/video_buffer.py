"""The jitter buffer for a peer's camera: a frame is complete with its last packet.

aiortc's own waits for the first packet of the next frame, which is 40 ms at 25 frames per second.
"""

from typing import Any

from aiortc.jitterbuffer import JitterBuffer, JitterFrame

PACKETS = 512
"""Packets that the buffer holds, as aiortc's own."""

_ATTRIBUTE = "_RTCRtpReceiver__jitter_buffer"


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


def use_prompt_buffer(receiver: Any) -> None:
    """Give aiortc's receiver of a camera this buffer, for which aiortc has no interface."""
    assert _ATTRIBUTE in vars(receiver), f"this version of aiortc has no attribute {_ATTRIBUTE}"
    setattr(receiver, _ATTRIBUTE, PromptBuffer())
