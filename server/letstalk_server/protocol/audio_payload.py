"""Audio in messages: PCM and Opus, decoded and encoded."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext

from letstalk_rt.types import FPS, SAMPLE_RATE
from letstalk_server.errors import BadAudioError
from letstalk_server.protocol.client_messages import OPUS_RATE, AudioFormat

MAX_OPUS_PACKET_BYTES = 1275 * 6
OPUS_BITRATE = 48_000
_PACKETS_PER_FRAME = 2


class AudioPayloadDecoder(Protocol):
    """Decodes the audio messages of one connection."""

    def __call__(self, data: bytes) -> np.ndarray:
        """Return `(n,)` or `(n, channels)`, int16 or float32.

        Raises:
            BadAudioError: The message is not in the format.
        """
        ...


def make_decoder(audio_format: AudioFormat) -> AudioPayloadDecoder:
    """Return a decoder for a format."""
    return OpusDecoder() if audio_format.format == "opus" else PcmDecoder(audio_format.channels)


class PcmDecoder:
    """Decodes little-endian 16-bit samples, interleaved.

    Args:
        channels: 1 or 2.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels

    def __call__(self, data: bytes) -> np.ndarray:
        """Return `(n,)` or `(n, 2)` int16."""
        size = 2 * self._channels
        if len(data) % size:
            raise BadAudioError(
                f"An audio chunk must have a multiple of {size} bytes, got {len(data)}."
            )
        samples = np.frombuffer(data, "<i2")
        return samples.reshape(-1, self._channels) if self._channels > 1 else samples


class OpusDecoder:
    """Decodes one Opus packet per message."""

    def __init__(self) -> None:
        self._codec = _context("libopus", "r")

    def __call__(self, data: bytes) -> np.ndarray:
        """Return `(n,)` float32 in [-1, 1] at 48 kHz."""
        if not 0 < len(data) <= MAX_OPUS_PACKET_BYTES:
            raise BadAudioError(
                f"An Opus packet has 1 to {MAX_OPUS_PACKET_BYTES} bytes, got {len(data)}."
            )
        try:
            frames = self._codec.decode(av.Packet(data))
        except av.FFmpegError:
            raise BadAudioError("The message is not an Opus packet.") from None
        return np.concatenate([np.zeros(0, np.float32), *map(_mono, frames)])


class OpusEncoder:
    """Encodes the avatar's audio as Opus packets of 20 ms.

    Args:
        sample_rate: 16000, 24000 or 48000 Hz.
    """

    def __init__(self, sample_rate: int = SAMPLE_RATE) -> None:
        self._codec = _context("libopus", "w")
        self._codec.sample_rate = self._sample_rate = sample_rate
        self._codec.format = "s16"
        self._codec.layout = "mono"
        self._codec.bit_rate = OPUS_BITRATE
        self._codec.options = {"application": "voip", "frame_duration": "20"}
        self._pts = 0

    def __call__(self, pcm: np.ndarray) -> Iterator[bytes]:
        """Yield the packets of a frame's audio, `(sample_rate // 25,)` float32 in [-1, 1]."""
        for chunk in to_int16(pcm).reshape(_PACKETS_PER_FRAME, -1):
            frame = av.AudioFrame.from_ndarray(chunk[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._sample_rate, self._pts
            frame.time_base = Fraction(1, self._sample_rate)
            self._pts += chunk.size
            for packet in self._codec.encode(frame):
                yield bytes(packet)


def to_int16(pcm: np.ndarray) -> np.ndarray:
    """Convert float32 in [-1, 1] to int16, with clipping."""
    scaled: np.ndarray = (np.clip(pcm, -1.0, 1.0) * 32_767).astype(np.int16)
    return scaled


def _context(name: str, mode: str) -> AudioCodecContext:
    context = av.CodecContext.create(name, mode)  # type: ignore[call-overload]
    assert isinstance(context, AudioCodecContext), type(context)
    return context


def _mono(frame: av.AudioFrame) -> np.ndarray:
    assert frame.sample_rate == OPUS_RATE, frame.sample_rate
    samples = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    scale = 32_768 if samples.dtype == np.int16 else 1
    mono: np.ndarray = samples.astype(np.float32).mean(axis=0) / scale
    return mono


assert OPUS_RATE % FPS == 0
