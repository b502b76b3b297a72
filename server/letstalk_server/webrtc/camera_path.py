"""From the encoded video of a peer to frames of its camera, with their capture times.

It is decoded in a process of its own, one for each camera, within a budget. Only the newest frame
counts: all are decoded, but those that have been overtaken are not converted. No frame is kept,
stored or logged.
"""

import asyncio
import logging
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import numpy as np

from letstalk_rt.inference.camera_decoder import CODECS, MOST_PX, REPLY, REQUEST, Fault
from letstalk_rt.inference.media_process import command, popen_options
from letstalk_server.webrtc.camera_budget import CameraGate

log = logging.getLogger(__name__)

MOST_WAITING, MOST_WAITING_BYTES = 64, 8 * 2**20
"""Encoded frames that wait for the process; with more, all are dropped."""

REPLY_S = 5.0
"""A process that does not answer within this time is ended."""

STARTS, PAUSE_S = 5, 1.0
"""How often a process is started for one camera, and the pause after one was lost."""

KEPT_DELAYS = 128
"""Frames whose delays are known; the smallest is that of a frame that waited nowhere."""


class CaptureClock:
    """Converts timestamps of a stream to the times at which its frames would arrive undelayed.

    Frames come from a steady clock, and arrive late by a varying delay. The smallest delay of the
    last frames is taken as that of all, so that jitter of network and encoder does not move faces.
    """

    def __init__(self) -> None:
        self._delays_s: deque[float] = deque(maxlen=KEPT_DELAYS)

    def captured_s(self, stamp_s: float, arrived_s: float) -> float:
        """Return when a frame was captured, in the clock of arrivals.

        Args:
            stamp_s: the timestamp of the frame in its stream.
            arrived_s: when it arrived.
        """
        self._delays_s.append(arrived_s - stamp_s)
        return stamp_s + min(self._delays_s)


@dataclass(frozen=True, slots=True)
class _EncodedFrame:
    codec: int
    data: bytes
    captured_s: float


@dataclass(frozen=True, slots=True)
class _Reply:
    fault: Fault
    pixels: int
    rgb: np.ndarray | None


class CameraPath:
    """Decodes the video of one camera. Used on the event loop only.

    Args:
        on_frame: called with each frame, `(H, W, 3)` uint8 RGB, and its capture time in seconds of
            the monotonic clock.
        gate: decides which frames are decoded, and asks for key frames.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        on_frame: Callable[[np.ndarray, float], None],
        gate: CameraGate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_frame, self._gate, self._clock = on_frame, gate, clock
        self._capture_clock = CaptureClock()
        self._waiting: deque[_EncodedFrame] = deque()
        self._arrived = asyncio.Event()

    def push(self, codec: str, data: bytes, stamp_s: float) -> None:
        """Take an encoded frame.

        Args:
            codec: its codec, `VP8` or `H264`; others are ignored.
            data: the frame.
            stamp_s: its timestamp in the stream.
        """
        if codec not in CODECS:
            return
        captured_s = self._capture_clock.captured_s(stamp_s, self._clock())
        if not self._gate.admits(codec, data):
            return
        self._waiting.append(_EncodedFrame(list(CODECS).index(codec), data, captured_s))
        size = sum(len(frame.data) for frame in self._waiting)
        if len(self._waiting) > MOST_WAITING or size > MOST_WAITING_BYTES:
            self._waiting.clear()
            self._gate.note_loss()
        self._arrived.set()

    async def run(self) -> None:
        """Decode frames and pass them on, until cancelled or the process was lost too often."""
        for _ in range(STARTS):
            with suppress(OSError, EOFError, TimeoutError):
                async with _started() as process:
                    await self._serve(process)
            log.warning("the process of a camera was lost")
            self._gate.note_loss()
            await asyncio.sleep(PAUSE_S)

    async def _serve(self, process: Process) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            frames = list(self._waiting)
            self._waiting.clear()
            if not frames:
                continue
            async with asyncio.timeout(REPLY_S):
                reply = await _exchange(process, frames)
            self._gate.note_decoded(reply.pixels, len(frames))
            if reply.fault is Fault.TOO_LARGE:
                self._gate.note_too_large()
            elif reply.fault is Fault.DAMAGED:
                self._gate.note_damage()
            if reply.rgb is not None:
                self._on_frame(reply.rgb, frames[-1].captured_s)


@asynccontextmanager
async def _started() -> AsyncIterator[Process]:
    program, *arguments = command("letstalk_rt.inference.camera_decoder")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, limit=3 * MOST_PX**2, **popen_options()
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _exchange(process: Process, frames: list[_EncodedFrame]) -> _Reply:
    """Have frames decoded; return how that went, and the newest that could be.

    Raises:
        OSError: The process has ended.
        EOFError: Likewise.
    """
    assert process.stdin is not None and process.stdout is not None
    for left, frame in zip(reversed(range(len(frames))), frames, strict=True):
        process.stdin.write(REQUEST.pack(frame.codec, not left, len(frame.data)) + frame.data)
    await process.stdin.drain()
    head = await process.stdout.readexactly(REPLY.size)
    fault, height, width, pixels = REPLY.unpack(head)
    if fault not in list(Fault) or max(height, width) > MOST_PX:
        raise EOFError("the process does not keep to the protocol")
    if not height:
        return _Reply(Fault(fault), pixels, None)
    data = await process.stdout.readexactly(height * width * 3)
    rgb = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    return _Reply(Fault(fault), pixels, rgb)
