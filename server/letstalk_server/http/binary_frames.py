"""Frames and audio as binary messages, for clients without WebRTC.

The layout is described in `docs/protocol.md`: a header of 24 bytes, then the frame or the audio.
"""

import io
import struct
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
from PIL import Image

from letstalk_rt.portrait.watermark import STATEMENT
from letstalk_rt.types import SAMPLE_RATE
from letstalk_server.protocol.audio_payload import OpusEncoder, to_int16
from letstalk_server.protocol.client_messages import FramesFormat
from letstalk_server.session.playout import PlayoutSlot

HEADER = struct.Struct("<BBHIIHHII")
REPEATED, BADGE = 1, 2


class PayloadType(IntEnum):
    """The payload type of a binary message."""

    JPEG = 1
    RGB = 2
    PCM16 = 3
    OPUS = 4


class FramePacker:
    """Packs slots into binary messages for one connection.

    Args:
        frames_format: configured format of the frames.
        has_badge: whether the frames have the visible badge.
        sample_rate: sample rate of the slots' audio, Hz.
    """

    def __init__(
        self, frames_format: FramesFormat, *, has_badge: bool, sample_rate: int = SAMPLE_RATE
    ) -> None:
        self.frames_format = frames_format
        self._flags = BADGE if has_badge else 0
        self._rate = sample_rate
        self._opus = OpusEncoder(sample_rate) if frames_format.sound == "opus" else None

    def frame(self, slot: PlayoutSlot) -> bytes:
        """Return the message with a slot's frame. It takes a few ms: call it in a thread."""
        is_jpeg = self.frames_format.format == "jpeg"
        data = jpeg(slot.rgb, self.frames_format.quality) if is_jpeg else slot.rgb.tobytes()
        height, width = slot.rgb.shape[:2]
        flags = self._flags | (REPEATED if slot.repeated else 0)
        kind = PayloadType.JPEG if is_jpeg else PayloadType.RGB
        return _header(kind, slot, width, height, 0, flags) + data

    def audio_messages(self, slot: PlayoutSlot) -> Iterator[bytes]:
        """Yield the messages with a slot's audio."""
        flags = REPEATED if slot.repeated else 0
        if self._opus is not None:
            for packet in self._opus(slot.pcm):
                samples = slot.pcm.size // 2
                yield _header(PayloadType.OPUS, slot, samples, 1, self._rate, flags) + packet
        elif self.frames_format.sound == "pcm16":
            data = to_int16(slot.pcm).astype("<i2").tobytes()
            yield _header(PayloadType.PCM16, slot, slot.pcm.size, 1, self._rate, flags) + data


def jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """Return a JPEG with the disclosure as comment."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, comment=STATEMENT)
    return buffer.getvalue()


def _header(
    kind: PayloadType, slot: PlayoutSlot, width: int, height: int, rate: int, flags: int
) -> bytes:
    frame = slot.frame
    segment_id, epoch = (frame.segment_id, frame.epoch) if frame is not None else (0, 0)
    return HEADER.pack(
        kind, flags, HEADER.size, segment_id, slot.number, width, height, rate, epoch
    )
