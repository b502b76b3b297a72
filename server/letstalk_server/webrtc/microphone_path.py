"""From a peer's RTP packets to 16 kHz audio: reordering, Opus, concealment, resampling.

A packet is held back only while an earlier one is missing, 60 ms at most: the engine has a buffer
of its own, and any further delay would make the avatar react later. aiortc's jitter buffer holds
four packets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np

from letstalk_rt.types import SAMPLE_RATE

CLOCK_HZ = 48_000
"""RTP clock rate of Opus, and the sample rate at which it is decoded."""

MAX_HELD_PACKETS = 3
"""Packets held for a missing one before it counts as lost."""

MAX_GAP_TICKS = CLOCK_HZ // 2
"""Longest gap that is concealed, in ticks; a longer one is an outage and is skipped."""

MAX_SEQUENCE_JUMP = 100
"""Jump in sequence numbers above which the stream counts as a new one."""

FADE_SAMPLES = CLOCK_HZ // 200
"""Samples of a fade, 5 ms."""

_SCALE = np.float32(1 / 32_768)


@dataclass(frozen=True, slots=True)
class AudioGap:
    """Lost audio, in samples at 48 kHz; 0 where the stream restarts."""

    samples: int


class ReorderBuffer:
    """Puts packets in order and marks gaps; see `MAX_HELD_PACKETS`."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._next_timestamp = 0
        self._held: dict[int, tuple[int, bytes]] = {}

    def __len__(self) -> int:
        """Return the number of packets held."""
        return len(self._held)

    def push(self, sequence: int, timestamp: int, payload: bytes) -> list[bytes | AudioGap]:
        """Add a packet and return the payloads and gaps that are in order now.

        Args:
            sequence: 16-bit sequence number.
            timestamp: 32-bit RTP timestamp.
            payload: the packet's payload.
        """
        if self._next is None:
            self._next, self._next_timestamp = sequence, timestamp
        ahead = _signed_difference(sequence - self._next, 16)
        if abs(ahead) > MAX_SEQUENCE_JUMP:
            return self._restart(sequence, timestamp, payload)
        if ahead < 0:
            return []  # too late
        self._held[sequence] = timestamp, payload
        ready = self._in_order()
        if len(self) >= MAX_HELD_PACKETS:
            ready += self._skip_missing()
        return ready

    def _restart(self, sequence: int, timestamp: int, payload: bytes) -> list[bytes | AudioGap]:
        self._held.clear()
        self._next = sequence
        self._held[sequence] = timestamp, payload
        return [AudioGap(0), *self._in_order()]

    def _in_order(self) -> list[bytes | AudioGap]:
        ready: list[bytes | AudioGap] = []
        assert self._next is not None
        while self._next in self._held:
            timestamp, payload = self._held.pop(self._next)
            self._next = (self._next + 1) & 0xFFFF
            # The duration of a packet is not known without parsing it; most last 20 ms.
            self._next_timestamp = (timestamp + CLOCK_HZ // 50) & 0xFFFFFFFF
            ready.append(payload)
        return ready

    def _skip_missing(self) -> list[bytes | AudioGap]:
        assert self._next is not None
        expected = self._next
        self._next = min(self._held, key=lambda number: _signed_difference(number - expected, 16))
        samples = _signed_difference(self._held[self._next][0] - self._next_timestamp, 32)
        return [AudioGap(samples if 0 < samples <= MAX_GAP_TICKS else 0), *self._in_order()]


class LossConcealer:
    """Fills gaps without clicks.

    The audio before a gap is mirrored and faded out, the audio after it is faded in.
    """

    def __init__(self) -> None:
        self._tail = np.zeros(FADE_SAMPLES, np.float32)
        self._fade_in = False

    def pass_through(self, pcm: np.ndarray) -> np.ndarray:
        """Return received audio, `(n,)` float32, faded in after a gap."""
        if self._fade_in and pcm.size:
            pcm = pcm.copy()
            count = min(FADE_SAMPLES, pcm.size)
            pcm[:count] *= np.linspace(0, 1, count, endpoint=False, dtype=np.float32)
            self._fade_in = False
        self._tail = np.concatenate([self._tail, pcm])[-FADE_SAMPLES:]
        return pcm

    def conceal(self, samples: int) -> np.ndarray:
        """Return the filling of a gap, `(samples,)` float32."""
        filling = np.zeros(samples, np.float32)
        count = min(FADE_SAMPLES, samples)
        fade_out = np.linspace(1, 0, FADE_SAMPLES, endpoint=False, dtype=np.float32)
        filling[:count] = (self._tail[::-1] * fade_out)[:count]
        self._tail = np.zeros(FADE_SAMPLES, np.float32)
        self._fade_in = True
        return filling


class Downsampler:
    """Streaming resampler by an integer factor, with a delay of 1 ms at 48 kHz.

    The engine's resampler, which takes any rate, has a delay of 12.5 ms.

    Args:
        factor: input samples for each output sample.
    """

    TAPS = 32

    def __init__(self, factor: int) -> None:
        size = factor * self.TAPS
        x = np.arange(size) - (size - 1) / 2
        kernel = np.sinc(x / factor) / factor * np.kaiser(size, 8.0)
        self._phases = [kernel[i::factor].astype(np.float32) for i in range(factor)]
        self._factor = factor
        self._past = np.zeros(size - factor, np.float32)

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        """Resample `(n,)` float32; return about `(n / factor,)`."""
        x = np.concatenate([self._past, pcm])
        count = (x.size - self._factor * (self.TAPS - 1)) // self._factor
        if count <= 0:
            self._past = x
            return x[:0]
        self._past = x[count * self._factor :]
        used = x[: (count + self.TAPS - 1) * self._factor].reshape(-1, self._factor)
        mixed = np.zeros(count, np.float32)
        for column, taps in zip(used.T, self._phases, strict=True):
            mixed += np.correlate(column, taps, "valid")
        return mixed


class MicrophonePath:
    """The receiving side of one peer's microphone. `push` never waits.

    Args:
        on_audio: called with each chunk, `(n,)` float32 in [-1, 1], in order and gapless.
        sample_rate: sample rate of the chunks, 16000 or 48000 Hz.

    Attributes:
        concealed_samples: samples inserted for lost ones, at 48 kHz.
    """

    def __init__(
        self, on_audio: Callable[[np.ndarray], None], sample_rate: int = SAMPLE_RATE
    ) -> None:
        self.concealed_samples = 0
        self._on_audio = on_audio
        self._reorder = ReorderBuffer()
        self._concealer = LossConcealer()
        self._decoder = _open_decoder()
        factor = CLOCK_HZ // sample_rate
        self._downsample = Downsampler(factor) if factor > 1 else None

    def push(self, sequence: int, timestamp: int, payload: bytes) -> None:
        """Add an Opus RTP packet."""
        for item in self._reorder.push(sequence, timestamp, payload):
            decoded = self._fill(item) if isinstance(item, AudioGap) else self._decode(item)
            pcm = decoded if self._downsample is None else self._downsample(decoded)
            if pcm.size:
                self._on_audio(np.clip(pcm, -1.0, 1.0))  # the filter may overshoot

    def _fill(self, gap: AudioGap) -> np.ndarray:
        self.concealed_samples += gap.samples
        return self._concealer.conceal(gap.samples)

    def _decode(self, payload: bytes) -> np.ndarray:
        try:
            frames = self._decoder.decode(av.Packet(payload)) if payload else []
        except av.FFmpegError:
            frames = []  # damaged or hostile; the stream continues
        if not frames:
            return self._fill(AudioGap(CLOCK_HZ // 50))
        # Planes are padded; `to_ndarray` would copy once more.
        samples = [np.frombuffer(memoryview(f.planes[0]), np.int16, f.samples) for f in frames]
        return self._concealer.pass_through(np.concatenate(samples) * _SCALE)


def _open_decoder() -> av.AudioCodecContext:
    decoder = av.CodecContext.create("libopus", "r")
    assert isinstance(decoder, av.AudioCodecContext), decoder
    # Opus mixes two channels to one.
    decoder.format, decoder.layout, decoder.sample_rate = "s16", "mono", CLOCK_HZ
    return decoder


def _signed_difference(difference: int, bits: int) -> int:
    """Return a difference of counters that wrap around as a signed number."""
    half = 1 << (bits - 1)
    return (difference + half) % (1 << bits) - half
