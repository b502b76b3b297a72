"""Encodes frames as H.264 and AAC into an open container, in sync to the sample."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

import av
import numpy as np
import soxr
from av.codec.codec import UnknownCodecError
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.reformatter import Colorspace

from letstalk_rt.errors import DependencyError
from letstalk_rt.portrait.watermark import with_badge
from letstalk_rt.recording.letterbox import fit
from letstalk_rt.types import FPS

VIDEO_CODEC: Final = "libx264"
AUDIO_CODEC: Final = "aac"
"""FFmpeg's names of codecs that every player supports."""

_AAC_RATES_HZ = (
    8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000,
)  # fmt: skip
_BT709 = 1
_LIMITED_RANGE = 1
_STEREO_BIT_RATE, _MONO_BIT_RATE = 192_000, 128_000


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of `AVEncoder`.

    Attributes:
        rate: sample rate of the input audio in Hz.
        channels: channels of the input audio; more than two are mixed down to one.
        fps: frames per second.
        badge: draw the badge "AI avatar" into the frames.
        aac_rate: sample rate of the encoded audio; None keeps `rate` if AAC supports it.
        aac_channels: 2 duplicates a single channel, for services that require stereo; None keeps
            the channels of the input.
        x264: options of the video encoder.
        bit_rate: bit rate of the video in bit/s; None if `x264` sets the quality.
        key_frame_s: longest time from one key frame to the next; None for the encoder's default.
    """

    rate: int
    channels: int = 1
    fps: int = FPS
    badge: bool = True
    aac_rate: int | None = None
    aac_channels: int | None = None
    x264: dict[str, str] = field(default_factory=lambda: {"crf": "18", "preset": "veryfast"})
    bit_rate: int | None = None
    key_frame_s: float | None = None


class AVEncoder:
    """An encoder that writes into a container, which the caller closes.

    Sample 0 and frame 0 start together. Errors of the container are raised as `OSError`.

    Attributes:
        frames: number of frames written, including those without an image.
    """

    def __init__(self, container: OutputContainer, settings: EncoderSettings) -> None:
        """Add the streams to the container.

        Raises:
            DependencyError: this FFmpeg lacks an encoder.
        """
        self.frames = 0
        self._settings = settings
        self._container = container
        self._samples = 0
        self._size: tuple[int, int] | None = None  # width and height of the frames that come
        try:
            self._add_streams()
        except UnknownCodecError as error:
            raise DependencyError(
                f"This FFmpeg has no encoder {error}. Install the package av from PyPI, whose "
                "FFmpeg includes libx264 and aac."
            ) from error

    def start(self, width: int, height: int) -> None:
        """Set the frame size; otherwise the first frame sets it."""
        self._size = width, height
        self._video.width, self._video.height = width // 2 * 2, height // 2 * 2
        self._video.pix_fmt = "yuv420p"
        context = self._video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE

    def write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        """Write one frame and any amount of audio.

        Args:
            rgb: `(H, W, 3)` uint8; odd sizes lose their last row or column. An image of another
                size than the first, as after a change of the portrait, is scaled to fit, on black.
                None keeps the previous image for the duration of this frame.
            pcm: float in [-1, 1], `(n,)` or `(n, channels)`.
        """
        if rgb is not None:
            self._write_video(rgb)
        self.frames += 1
        self.write_audio(pcm)

    def write_audio(self, pcm: np.ndarray) -> None:
        """Write audio alone; see `write`."""
        pcm = self._to_layout(np.asarray(pcm, np.float32))
        if self._resampler is not None:
            pcm = self._resampler.resample_chunk(pcm)
        self._encode_audio(pcm)

    def finish(self) -> None:
        """Write the frames that the encoders still buffer."""
        if self._resampler is not None:
            empty = np.zeros((0, 2) if self._channels == 2 else 0, np.float32)
            self._encode_audio(self._resampler.resample_chunk(empty, last=True))
        if self._size is not None:
            self._mux(self._video, None)
        self._mux(self._audio, None)

    def _add_streams(self) -> None:
        settings = self._settings
        self._video = self._container.add_stream(
            VIDEO_CODEC, rate=settings.fps, options=settings.x264
        )
        if settings.bit_rate is not None:
            self._video.bit_rate = settings.bit_rate
        if settings.key_frame_s is not None:
            self._video.gop_size = round(settings.key_frame_s * settings.fps)
        self._channels = 2 if settings.channels == 2 else 1
        stereo = (settings.aac_channels or self._channels) == 2
        default_rate = settings.rate if settings.rate in _AAC_RATES_HZ else 48_000
        self._aac_rate = settings.aac_rate or default_rate
        layout = "stereo" if stereo else "mono"
        self._audio = self._container.add_stream(AUDIO_CODEC, rate=self._aac_rate, layout=layout)
        self._audio.bit_rate = _STEREO_BIT_RATE if stereo else _MONO_BIT_RATE
        if self._container.format.name == "tee":  # tee does not pass on its formats' flags
            for stream in (self._video, self._audio):
                stream.codec_context.flags |= Flags.global_header
        self._resampler = (
            None
            if self._aac_rate == settings.rate
            else soxr.ResampleStream(settings.rate, self._aac_rate, self._channels, "float32")
        )

    def _write_video(self, rgb: np.ndarray) -> None:
        if self._size is None:
            self.start(rgb.shape[1], rgb.shape[0])
        assert self._size is not None
        rgb = fit(rgb, self._size)
        if self._settings.badge:
            rgb = with_badge(rgb)
        even = rgb[: self._video.height, : self._video.width]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = self.frames, Fraction(1, self._settings.fps)
        self._mux(self._video, frame)

    def _to_layout(self, pcm: np.ndarray) -> np.ndarray:
        channels = 1 if pcm.ndim == 1 else pcm.shape[1]
        assert channels == self._settings.channels, (pcm.shape, self._settings.channels)
        return pcm if pcm.ndim == 1 or self._channels == 2 else pcm.mean(1)

    def _encode_audio(self, pcm: np.ndarray) -> None:
        if not len(pcm):
            return
        planes = pcm.reshape(len(pcm), -1).T
        if self._audio.layout.name == "stereo" and len(planes) == 1:
            planes = np.repeat(planes, 2, 0)
        planes = np.ascontiguousarray(planes)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=self._audio.layout.name)
        frame.sample_rate = self._aac_rate
        frame.pts, frame.time_base = self._samples, Fraction(1, self._aac_rate)
        self._samples += len(pcm)
        self._mux(self._audio, frame)

    def _mux(
        self,
        stream: av.VideoStream | av.AudioStream,
        frame: av.VideoFrame | av.AudioFrame | None,
    ) -> None:
        self._container.mux(stream.encode(frame))  # type: ignore[arg-type]
