"""A local microphone as a source."""

import asyncio
from collections import deque
from typing import Any, Self

import numpy as np

from letstalk_rt.audio.audio_devices import find_device, load_sounddevice
from letstalk_rt.audio.resample import check_rate
from letstalk_rt.errors import DependencyError
from letstalk_rt.opening import open_in_thread

BLOCK_MS = 10
MAX_BUFFERED = 50
"""Blocks that are buffered, half a second; beyond that, the oldest are dropped."""


class Microphone:
    """A microphone, read in blocks of 10 ms. `async with` opens and closes the device.

        async with Microphone() as microphone:
            await feed(session, microphone)

    Args:
        device: number or part of the name of an input device; None for the default.
        sample_rate: in Hz; None for the device's own rate.

    Attributes:
        sample_rate: in Hz; 0 until the device is open.
        overflows: how often audio was lost because the machine or the consumer was too slow.

    Raises:
        AudioFormatError: `sample_rate` is not an integer from 8000 to 192000.
    """

    def __init__(self, device: str | int | None = None, *, sample_rate: int | None = None) -> None:
        if sample_rate is not None:
            check_rate(sample_rate)
        self.sample_rate = sample_rate or 0
        self.overflows = 0
        self._device = device
        self._stream: Any = None
        self._blocks: deque[np.ndarray] = deque()
        self._changed = asyncio.Event()
        self._stopped = False  # the device was unplugged, or closed
        self._closed = False

    async def __aenter__(self) -> Self:
        """Open the device.

        Raises:
            ConfigError: no device matches.
            DependencyError: the device cannot be opened, or PortAudio is not installed.
        """
        self._loop = asyncio.get_running_loop()
        await open_in_thread(self._open, self._release)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> np.ndarray:
        """Wait for the next block, `(n,)` int16.

        Raises:
            DependencyError: the device was disconnected.
            StopAsyncIteration: the microphone was closed.
        """
        while not self._blocks:
            if self._closed:
                raise StopAsyncIteration
            if self._stopped:
                raise DependencyError(
                    "The microphone was disconnected. Connect it and start again."
                )
            self._changed.clear()
            await self._changed.wait()
        return self._blocks.popleft()

    async def aclose(self) -> None:
        """Close the device. It may be called twice, and before opening."""
        self._closed = True
        await asyncio.to_thread(self._release)
        self._changed.set()

    def _open(self) -> None:
        sounddevice = load_sounddevice()
        device = find_device("input", self._device)
        if not self.sample_rate:
            self.sample_rate = int(device["default_samplerate"])
        try:
            stream = sounddevice.InputStream(
                samplerate=self.sample_rate,
                blocksize=self.sample_rate * BLOCK_MS // 1000,
                channels=1,
                dtype="int16",
                device=device["index"],
                latency="low",
                callback=self._on_block,
                finished_callback=self._on_finished,
            )
            stream.start()
        except sounddevice.PortAudioError as error:
            raise DependencyError(
                f"The microphone {device['name']!r} cannot be opened at {self.sample_rate} Hz. "
                "Close the program that uses it, or choose another device or sample rate."
            ) from error
        self._stream = stream

    def _release(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    # Called in PortAudio's thread

    def _on_block(self, data: np.ndarray, frames: int, time: Any, status: Any) -> None:
        self._call_on_loop(self._append, data[:, 0].copy(), bool(status.input_overflow))

    def _on_finished(self) -> None:
        self._call_on_loop(self._mark_stopped)

    def _call_on_loop(self, call: Any, *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return  # the event loop is closed

    # Called on the event loop

    def _append(self, block: np.ndarray, lost: bool) -> None:
        self.overflows += lost
        if len(self._blocks) == MAX_BUFFERED:
            self._blocks.popleft()
            self.overflows += 1
        self._blocks.append(block)
        self._changed.set()

    def _mark_stopped(self) -> None:
        self._stopped = True
        self._changed.set()
