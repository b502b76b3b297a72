"""Decoding of PCM that arrives in pieces: raw 16-bit samples, or a WAV file of unknown length."""

import struct
from collections.abc import AsyncIterator

import numpy as np

from letstalk_rt.audio.resample import MAX_RATE_HZ, MIN_RATE_HZ
from letstalk_rt.errors import SynthesisError
from letstalk_rt.speech.interface import Speech

_PCM, _EXTENSIBLE = 1, 0xFFFE
_MAX_CHUNK_BYTES = 1_000_000
"""Longest chunk of a WAV file before the data."""


class _Bytes:
    """A buffer before an iterator of bytes."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._buffer = b""

    async def peek(self, count: int) -> bytes:
        """Return the next `count` bytes without taking them; fewer at the end."""
        while len(self._buffer) < count:
            data = await anext(self._source, None)
            if data is None:
                break
            self._buffer += data
        return self._buffer[:count]

    async def take(self, count: int) -> bytes:
        """Take `count` bytes; fewer at the end."""
        data = await self.peek(count)
        self._buffer = self._buffer[len(data) :]
        return data

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield all that follows, as it arrives."""
        if self._buffer:
            yield self._buffer
            self._buffer = b""
        async for data in self._source:
            yield data


async def decode_pcm(
    source: AsyncIterator[bytes], name: str, raw_rate: int | None = None
) -> Speech:
    """Yield the samples of a stream as they arrive.

    Args:
        source: a WAV file with 16-bit samples or, if `raw_rate` is given, such samples alone.
        name: name of the engine, for messages.
        raw_rate: sample rate of raw samples in Hz; None if only WAV is expected.

    Raises:
        SynthesisError: the stream is neither.
    """
    data = _Bytes(source)
    head = await data.peek(12)
    if not head:
        return
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        channels, rate = await _read_wav_header(data, name)
    elif raw_rate is not None and not _is_compressed(head):
        channels, rate = 1, raw_rate
    else:
        raise SynthesisError(f"{name} did not deliver PCM or WAV; choose such an output format")
    size, left = 2 * channels, b""
    async for part in data.rest():
        left += part
        whole = len(left) // size * size
        if whole:
            samples = np.frombuffer(left[:whole], "<i2").astype(np.int16).reshape(-1, channels)
            mono = samples[:, 0] if channels == 1 else samples.mean(axis=1).astype(np.int16)
            left = left[whole:]
            yield mono, rate


async def _read_wav_header(data: _Bytes, name: str) -> tuple[int, int]:
    """Take everything before the samples; return the number of channels and the sample rate."""
    await data.take(12)
    channels = rate = 0
    while True:
        header = await data.take(8)
        if len(header) < 8:
            raise SynthesisError(f"{name} delivered a WAV file without samples")
        kind, length = header[:4], int.from_bytes(header[4:], "little")
        if kind == b"data":
            break
        if length > _MAX_CHUNK_BYTES:
            raise SynthesisError(f"{name} delivered a damaged WAV file")
        chunk = await data.take(length + length % 2)
        if kind == b"fmt " and len(chunk) >= 16:
            form, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
            if form not in (_PCM, _EXTENSIBLE) or bits != 16:
                raise SynthesisError(f"{name} delivered WAV of {bits} bits, expected PCM of 16")
    if not (1 <= channels <= 8 and MIN_RATE_HZ <= rate <= MAX_RATE_HZ):
        raise SynthesisError(f"{name} delivered WAV of {rate} Hz with {channels} channels")
    return channels, rate


def _is_compressed(head: bytes) -> bool:
    """Return whether data begin like MP3, Ogg or FLAC, or are text such as JSON."""
    is_mp3_frame = head[0] == 0xFF and len(head) > 1 and head[1] & 0xE0 == 0xE0 and head[1] != 0xFF
    return is_mp3_frame or head.startswith((b"ID3", b"OggS", b"fLaC", b'{"', b"<!", b"<html"))
