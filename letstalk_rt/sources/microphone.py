"""The microphone of this machine."""

import asyncio
from collections import deque
from typing import Any, Self

import numpy as np

from letstalk_rt.audio.audio_devices import find_device, load_sounddevice
from letstalk_rt.audio.resample import check_rate
from letstalk_rt.errors import DependencyError

BLOCK_MS = 10
MAX_WAITING = 50
"""Blocks that are kept for a reader who is late: half a second. Then the oldest are dropped."""


class Microphone:
    """Sound as it is spoken, in blocks of 10 ms; `async with` opens and closes the device.

        async with Microphone() as microphone:
            await feed(session, microphone)

    Args:
        device: number or part of the name of an input device; None is the default.
        sample_rate: in Hz; the device's own when None.

    Attributes:
        sample_rate: in Hz, known once it is open.
        overflows: how often sound was lost, because the machine or the reader was too slow.

    Raises:
        AudioFormatError: `sample_rate` is not a multiple of 100 from 8000 to 192000.
    """

    def __init__(self, device: str | int | None = None, *, sample_rate: int | None = None) -> None:
        if sample_rate is not None:
            check_rate(sample_rate)
        self.sample_rate = sample_rate or 0
        self.overflows = 0
        self._device = device
        self._stream: Any = None
        self._blocks: deque[np.ndarray] = deque()
        self._news = asyncio.Event()
        self._over = False  # the device stopped by itself, or was closed
        self._closed = False

    async def __aenter__(self) -> Self:
        """Open the device.

        Raises:
            ConfigError: no such device.
            DependencyError: the device cannot be opened, or PortAudio is missing.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> np.ndarray:
        """Wait for the next block, `(n,)` int16.

        Raises:
            DependencyError: the device is gone.
            StopAsyncIteration: the microphone was closed.
        """
        while not self._blocks:
            if self._closed:
                raise StopAsyncIteration
            if self._over:
                raise DependencyError("The microphone is gone. Connect it and start again.")
            self._news.clear()
            await self._news.wait()
        return self._blocks.popleft()

    async def aclose(self) -> None:
        """Close the device. Safe to call twice, and before opening."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await asyncio.to_thread(stream.close)
        self._news.set()

    def _open(self) -> None:
        sounddevice = load_sounddevice()
        device = find_device("input", self._device)
        if not self.sample_rate:
            own = int(device["default_samplerate"])
            self.sample_rate = own if own % 100 == 0 else 48_000
        try:
            stream = sounddevice.InputStream(
                samplerate=self.sample_rate,
                blocksize=self.sample_rate * BLOCK_MS // 1000,
                channels=1,
                dtype="int16",
                device=device["index"],
                latency="low",
                callback=self._hear,
                finished_callback=self._finish,
            )
            stream.start()
        except sounddevice.PortAudioError as error:
            raise DependencyError(
                f"The microphone {device['name']!r} cannot be opened at {self.sample_rate} Hz. "
                "Close the program that uses it, name another device or another rate."
            ) from error
        self._stream = stream

    # In PortAudio's thread

    def _hear(self, data: np.ndarray, frames: int, time: Any, status: Any) -> None:
        self._tell(self._take, data[:, 0].copy(), bool(status.input_overflow))

    def _finish(self) -> None:
        self._tell(self._note_end)

    def _tell(self, call: Any, *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return  # the event loop has ended; nobody listens any more

    # On the event loop

    def _take(self, block: np.ndarray, lost: bool) -> None:
        self.overflows += lost
        if len(self._blocks) == MAX_WAITING:
            self._blocks.popleft()
            self.overflows += 1
        self._blocks.append(block)
        self._news.set()

    def _note_end(self) -> None:
        self._over = True
        self._news.set()
