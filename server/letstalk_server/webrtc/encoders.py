"""Encoders for WebRTC: VP8, H.264 and Opus with PyAV, tuned for live faces.

aiortc's own encoders cost up to ten times as much (H.264 without a preset), remove camera noise
that generated faces do not have, and cannot be shared between peers. Only aiortc's packetizers
are used. An encoder may be called from any thread, but not concurrently.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
import cv2
import numpy as np
from aiortc.codecs.h264 import H264Encoder as H264Packetizer
from aiortc.codecs.vpx import Vp8Encoder as Vp8Packetizer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from letstalk_rt.types import FPS, SAMPLE_RATE

VIDEO_CLOCK_HZ = 90_000
VIDEO_TICKS = VIDEO_CLOCK_HZ // FPS
AUDIO_CLOCK_HZ = 48_000
"""RTP clock rate of Opus, whatever the sample rate (RFC 7587)."""

PACKETS_PER_S = 50
PACKET_TICKS = AUDIO_CLOCK_HZ // PACKETS_PER_S
OPUS_BITRATE = 48_000
OPUS_DELAY_TICKS = 312
"""Encoder delay of Opus, 6.5 ms."""

_VIDEO_TIME_BASE = Fraction(1, VIDEO_CLOCK_HZ)


@dataclass(frozen=True, slots=True)
class EncodedUnit:
    """An encoded frame or audio packet, split into RTP payloads.

    Attributes:
        payloads: one for each RTP packet.
        timestamp: in ticks of the RTP clock.
        key_frame: it can be decoded without earlier units.
    """

    payloads: list[bytes]
    timestamp: int
    key_frame: bool


class VideoEncoder(Protocol):
    """Encodes the video of one session."""

    def encode(self, rgb: np.ndarray, number: int, *, key_frame: bool) -> EncodedUnit:
        """Encode slot `number`, `(H, W, 3)` uint8 of any size."""
        ...

    def set_bitrate(self, bitrate: int) -> None:
        """Set the maximum bit/s. It costs a key frame, because FFmpeg opens a new codec."""
        ...

    def close(self) -> None:
        """Release the codec, which ends its threads."""
        ...


class _YuvConverter:
    """Converts RGB to planar YUV in place. A repeated frame is not converted again."""

    def __init__(self) -> None:
        self._rgb: np.ndarray | None = None
        self._yuv = np.zeros((0, 0), np.uint8)
        self._frame: av.VideoFrame | None = None

    def convert(self, rgb: np.ndarray) -> av.VideoFrame:
        """Return the YUV frame; it is valid until the next call."""
        # 4:2:0 video has even sides: an odd last row or column is cut off.
        height, width = rgb.shape[0] & ~1, rgb.shape[1] & ~1
        frame = self._frame
        if frame is None or (frame.height, frame.width) != (height, width):
            self._yuv = np.empty((height * 3 // 2, width), np.uint8)
            frame = self._frame = av.VideoFrame.from_numpy_buffer(self._yuv, "yuv420p")
            self._rgb = None
        if rgb is not self._rgb:
            # OpenCV takes a quarter of the time of FFmpeg's scaler. The buffer can be reused: the
            # encoders do not keep the last frame.
            cv2.cvtColor(rgb[:height, :width], cv2.COLOR_RGB2YUV_I420, dst=self._yuv)
            self._rgb = rgb
        return frame


class _PyAvVideoEncoder:
    """Base class of the video encoders."""

    def __init__(self, bitrate: int, packetizer: Vp8Packetizer | H264Packetizer) -> None:
        self._bitrate = bitrate
        self._packetizer = packetizer
        self._yuv_converter = _YuvConverter()
        self._codec: VideoCodecContext | None = None

    def encode(self, rgb: np.ndarray, number: int, *, key_frame: bool) -> EncodedUnit:
        frame = self._yuv_converter.convert(rgb)
        codec = self._codec_for(frame)
        frame.pts, frame.time_base = number * VIDEO_TICKS, _VIDEO_TIME_BASE
        frame.pict_type = PictureType.I if key_frame else PictureType.NONE
        packets = codec.encode(frame)
        assert len(packets) == 1, "a live encoder returns one packet per frame"
        payloads, timestamp = self._packetizer.pack(packets[0])
        return EncodedUnit(payloads, timestamp, packets[0].is_keyframe)

    def set_bitrate(self, bitrate: int) -> None:
        # FFmpeg cannot change the bitrate of libvpx; x264 takes many seconds to follow a change.
        self._bitrate, self._codec = bitrate, None

    def close(self) -> None:
        self._codec, self._yuv_converter = None, _YuvConverter()

    def _codec_for(self, frame: av.VideoFrame) -> VideoCodecContext:
        codec = self._codec
        if codec is None or (codec.width, codec.height) != (frame.width, frame.height):
            codec = self._codec = self._open(frame.width, frame.height)
        return codec

    def _open(self, width: int, height: int) -> VideoCodecContext:
        raise NotImplementedError


class Vp8Encoder(_PyAvVideoEncoder):
    """VP8 by libvpx."""

    def __init__(self, bitrate: int) -> None:
        super().__init__(bitrate, Vp8Packetizer())

    def _open(self, width: int, height: int) -> VideoCodecContext:
        rate = str(self._bitrate)
        options = {
            "deadline": "realtime",
            # 8 is a fifth faster than aiortc's 6 and looks the same; at 12 quality drops visibly.
            "cpu-used": "-8",
            # Generated faces have no camera noise: without the denoiser 2.4 dB better, and faster.
            "noise-sensitivity": "0",
            "lag-in-frames": "0",
            "partitions": "0",
            "static-thresh": "1",
            "minrate": rate,
            "maxrate": rate,
            "bufsize": rate,  # one second
            "undershoot-pct": "100",
            "overshoot-pct": "15",
            # A key frame may take four frames' worth of bandwidth; later frames refine it.
            "max-intra-rate": "400",
        }
        codec = _context("libvpx", width, height, options, self._bitrate)
        # A lower minimum than 8 takes twice the bits and packets, for 0.5 dB at 42.
        codec.qmin, codec.qmax = 8, 56
        return codec


class H264Encoder(_PyAvVideoEncoder):
    """H.264 constrained baseline by x264."""

    def __init__(self, bitrate: int) -> None:
        super().__init__(bitrate, H264Packetizer())

    def _open(self, width: int, height: int) -> VideoCodecContext:
        options = {
            # A tenth faster than superfast and 0.3 dB better here: what superfast adds is tuned for
            # grainy film.
            "preset": "ultrafast",
            "tune": "zerolatency",
            "level": "31",
            "forced-idr": "1",
            # Limits quality: a third fewer bits and packets, for 0.5 dB at 43.
            "crf": "20",
            "maxrate": str(self._bitrate),
            "bufsize": str(self._bitrate // 4),  # small, to keep key frames small
            "x264-params": "scenecut=0:repeat-headers=1:subme=1",
        }
        codec = _context("libx264", width, height, options)
        codec.profile = "Baseline"
        return codec


def _context(
    name: str, width: int, height: int, options: dict[str, str], bitrate: int = 0
) -> VideoCodecContext:
    codec = av.CodecContext.create(name, "w")
    assert isinstance(codec, VideoCodecContext), codec
    codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
    codec.bit_rate = bitrate
    codec.time_base, codec.framerate = _VIDEO_TIME_BASE, Fraction(FPS, 1)
    codec.gop_size = 3000  # key frames are sent on request
    codec.thread_count = 1
    codec.options = options
    return codec


def open_encoder(name: str, bitrate: int) -> VideoEncoder:
    """Return an encoder for a video codec, `VP8` or `H264` as in SDP.

    Args:
        name: name of the codec.
        bitrate: maximum, bit/s.
    """
    assert name in _ENCODERS, name
    return _ENCODERS[name](bitrate)


_ENCODERS: dict[str, type[Vp8Encoder] | type[H264Encoder]] = {
    "VP8": Vp8Encoder,
    "H264": H264Encoder,
}


class RtpOpusEncoder:
    """An Opus encoder for mono audio, one RTP packet of 20 ms per call.

    Args:
        sample_rate: 16000, 24000 or 48000 Hz.
        fec: forward error correction: each packet also holds the previous one, at half the
            quality. Encoding takes twice the time.
    """

    def __init__(self, sample_rate: int = SAMPLE_RATE, *, fec: bool = False) -> None:
        self._sample_rate = sample_rate
        self._packet_samples = sample_rate // PACKETS_PER_S
        self._time_base = Fraction(1, sample_rate)
        codec = av.CodecContext.create("libopus", "w")
        assert isinstance(codec, av.AudioCodecContext), codec
        codec.bit_rate = OPUS_BITRATE
        codec.format, codec.layout, codec.sample_rate = "flt", "mono", sample_rate
        codec.time_base = self._time_base
        codec.options = {
            "application": "audio",
            "compression_level": "0",  # 10 takes three times as long and saves few bits
            "fec": str(int(fec)),
            "packet_loss": "10" if fec else "0",
        }
        self._codec: av.AudioCodecContext | None = codec

    def close(self) -> None:
        """Release the codec, which ends the threads of its filter graph."""
        self._codec = None

    def encode(self, pcm: np.ndarray, number: int) -> EncodedUnit:
        """Encode packet `number`, `(sample_rate // 50,)` float32 in [-1, 1]."""
        frame = av.AudioFrame.from_ndarray(pcm[None], format="flt", layout="mono")
        frame.sample_rate, frame.time_base = self._sample_rate, self._time_base
        frame.pts = number * self._packet_samples
        assert self._codec is not None, "the encoder is open"
        payloads = [bytes(packet) for packet in self._codec.encode(frame)]
        return EncodedUnit(payloads, number * PACKET_TICKS, True)
