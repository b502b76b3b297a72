"""Engine <-> aiortc: media tracks that release slots when they are due. The only file with `av`.

Both tracks release at start + pts of one clock, because RTCP sender reports pair the time of
sending with the last pts: a frame sent late would make the browser play it out of step.
"""

import asyncio
from fractions import Fraction

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from letstalk_rt.types import FPS, SAMPLE_RATE
from letstalk_server.playout import SLOT_S, PulledPlayout

VIDEO_CLOCK_HZ = 90_000
VIDEO_TICKS = VIDEO_CLOCK_HZ // FPS
AUDIO_RATE = 48_000
PIECE = AUDIO_RATE // 50
"""Samples of one Opus packet, 20 ms."""

PIECES_PER_SLOT = AUDIO_RATE // FPS // PIECE
PIECE_S = PIECE / AUDIO_RATE
MAX_LATE_S = 0.2
"""Sound later than this is skipped; less is sent at once to catch up."""

MAX_HEARD = 25
"""Microphone pieces that wait for the model, 0.5 s; older ones are dropped."""


class VideoTrack(MediaStreamTrack):
    """The avatar's picture, 25 fps."""

    kind = "video"

    def __init__(self, playout: PulledPlayout) -> None:
        super().__init__()
        self._playout = playout
        self._next = 0

    async def recv(self) -> av.VideoFrame:
        """Give the next picture when it is due; one that is late gives way to the present one."""
        if self.readyState != "live":
            raise MediaStreamError
        number = max(self._next, int(self._playout.now() / SLOT_S))
        await self._playout.wait_until(number * SLOT_S)
        self._next = number + 1
        frame = av.VideoFrame.from_ndarray(_even(self._playout.slot(number).rgb), format="rgb24")
        frame.pts = number * VIDEO_TICKS
        frame.time_base = Fraction(1, VIDEO_CLOCK_HZ)
        return frame


class AudioTrack(MediaStreamTrack):
    """The avatar's voice in pieces of 20 ms, 48 kHz mono."""

    kind = "audio"

    def __init__(self, playout: PulledPlayout) -> None:
        super().__init__()
        self._playout = playout
        self._upsample = Upsampler(AUDIO_RATE // SAMPLE_RATE)
        self._next = 0
        self._slot = -1
        self._pieces = np.zeros((PIECES_PER_SLOT, PIECE), np.int16)

    async def recv(self) -> av.AudioFrame:
        """Give the next piece when it is due."""
        if self.readyState != "live":
            raise MediaStreamError
        present = int(self._playout.now() / PIECE_S)
        if (present - self._next) * PIECE_S > MAX_LATE_S:
            self._next = present
        number = self._next
        await self._playout.wait_until(number * PIECE_S)
        self._next = number + 1
        frame = av.AudioFrame.from_ndarray(self._piece(number), format="s16", layout="mono")
        frame.sample_rate = AUDIO_RATE
        frame.pts = number * PIECE
        frame.time_base = Fraction(1, AUDIO_RATE)
        return frame

    def _piece(self, number: int) -> np.ndarray:
        slot, part = divmod(number, PIECES_PER_SLOT)
        if slot != self._slot:
            pcm = self._upsample(self._playout.slot(slot).pcm)
            self._pieces = to_int16(pcm).reshape(PIECES_PER_SLOT, PIECE)
            self._slot = slot
        return self._pieces[part : part + 1]


class Upsampler:
    """Streaming resampler by a whole factor, exact in count: `n` samples in, `factor * n` out.

    It delays by `TAPS / 2` input samples, 1 ms at 16 kHz. soxr's streams give uneven counts, and
    aiortc's own resampler holds the first piece back, which shifts the sender reports by 20 ms.
    """

    TAPS = 32

    def __init__(self, factor: int) -> None:
        self._factor = factor
        x = np.arange(factor * self.TAPS + 1) - factor * self.TAPS / 2
        kernel = np.sinc(x / factor) * np.kaiser(x.size, 8.0)
        self._phases = [kernel[i::factor][: self.TAPS].astype(np.float32) for i in range(factor)]
        self._past = np.zeros(self.TAPS - 1, np.float32)

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        """Resample `(n,)` float32 to `(factor * n,)`."""
        x = np.concatenate([self._past, pcm])
        self._past = x[-(self.TAPS - 1) :]
        phases = [np.convolve(x, taps, "valid") for taps in self._phases]
        return np.stack(phases, axis=1).ravel().astype(np.float32)


class Microphone:
    """What a peer says: always consumed, and never older than half a second.

    Args:
        track: the peer's audio track.
    """

    def __init__(self, track: MediaStreamTrack) -> None:
        self._track = track
        self._heard: asyncio.Queue[np.ndarray] = asyncio.Queue(MAX_HEARD)
        self.dropped = 0

    async def listen(self) -> None:
        """Receive until the track ends; drops the oldest sound when nobody takes it."""
        while True:
            try:
                frame = await self._track.recv()
            except MediaStreamError:
                return
            if self._heard.full():
                self._heard.get_nowait()
                self.dropped += 1
            assert isinstance(frame, av.AudioFrame), type(frame)
            self._heard.put_nowait(to_mono(frame))

    async def take(self) -> np.ndarray:
        """Wait for the next piece: `(n,)` float32 in [-1, 1], `AUDIO_RATE`."""
        return await self._heard.get()


def to_int16(pcm: np.ndarray) -> np.ndarray:
    """Turn float32 in [-1, 1] into int16; what is beyond is clipped."""
    scaled: np.ndarray = (np.clip(pcm, -1.0, 1.0) * 32_767).astype(np.int16)
    return scaled


def to_mono(frame: av.AudioFrame) -> np.ndarray:
    """Turn a packed 16-bit frame of any layout into `(n,)` float32 in [-1, 1]."""
    samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    mono: np.ndarray = samples.astype(np.float32).mean(axis=1) / 32_768
    return mono


def _even(rgb: np.ndarray) -> np.ndarray:
    """Cut an odd last row or column: 4:2:0 pictures have even sides."""
    height, width = rgb.shape[0] & ~1, rgb.shape[1] & ~1
    return np.ascontiguousarray(rgb[:height, :width])
