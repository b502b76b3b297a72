"""The one playout clock of a session: which picture and which sound belong to which moment.

Time is cut into slots of one frame. A slot is filled when it is first asked for, so the video
and the audio track that ask for it get the same frame and cannot drift apart. A slot for which
no frame came repeats the last picture in silence; nobody ever waits past a due time.
It knows nothing of WebRTC. The SDK's `letstalk_rt.playout` pushes frames to a sink at its own pace;
here two senders pull.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, AVFrame

SLOT_S = 1 / FPS
MAX_WAITING = 4
"""Frames that wait here, one window: what is shown can be at most so much older than made."""

MAX_SPARE = 1
"""Frames that may always be waiting, against jitter; more are dropped while it is silent."""

QUIET_RMS = 0.01
"""Sound below this level is silence (-40 dB of full scale)."""

IDLE_AFTER_SLOTS = 10
STALL_SLOTS = 25
_HISTORY = 16
_SILENCE = np.zeros(SAMPLES_PER_FRAME, np.float32)


@dataclass(frozen=True, slots=True)
class Slot:
    """What is shown in one frame's time.

    Attributes:
        number: slots since the clock started; due at `number / 25` s.
        rgb: `(H, W, 3)` uint8.
        pcm: `(640,)` float32 in [-1, 1], 16 kHz mono.
        repeated: no frame was there in time; the picture is the last one.
        frame: the engine's frame that is shown; `None` when repeated.
    """

    number: int
    rgb: np.ndarray
    pcm: np.ndarray
    repeated: bool
    frame: AVFrame | None = None


class PulledPlayout:
    """Frames in as they are made, slots out as they are due.

    Args:
        still: `(H, W, 3)` uint8, shown until the first frame comes.
        on_speaking: called with True when the shown sound begins and with False when it ends.
        on_stall: called once when no frame came for a second.
        on_slot: called with each slot, once, when it is filled.
        clock: monotonic time, s.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        still: np.ndarray,
        *,
        on_speaking: Callable[[bool], None] = lambda speaking: None,
        on_stall: Callable[[], None] = lambda: None,
        on_slot: Callable[[Slot], None] = lambda slot: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.repeats = 0
        self.skips = 0
        self._rgb = still
        self._on_speaking, self._on_stall, self._on_slot = on_speaking, on_stall, on_slot
        self._clock, self._sleep = clock, sleep
        self._frames: asyncio.Queue[AVFrame] = asyncio.Queue(MAX_WAITING)
        self._slots: deque[Slot] = deque(maxlen=_HISTORY)
        self._waiting: deque[int] = deque(maxlen=FPS)  # frames left after each of the last slots
        self._start_s: float | None = None
        self._epoch = 0
        self._next = 0
        self._missed = 0
        self._quiet = IDLE_AFTER_SLOTS

    async def put(self, frame: AVFrame) -> None:
        """Queue a frame; waits while a whole window is waiting already."""
        if frame.epoch >= self._epoch:
            await self._frames.put(frame)

    def clear(self, epoch: int) -> None:
        """Drop the frames not shown yet, and those on their way that are older than `epoch`.

        The last picture stays until a new one comes.
        """
        self._epoch = epoch
        while not self._frames.empty():
            self._frames.get_nowait()

    def now(self) -> float:
        """Give the seconds since the clock started; the first call starts it."""
        if self._start_s is None:
            self._start_s = self._clock()
        return self._clock() - self._start_s

    async def wait_until(self, due_s: float) -> None:
        """Wait until `due_s` seconds after the start; returns at once when that is past."""
        if (ahead := due_s - self.now()) > 0:
            await self._sleep(ahead)

    def slot(self, number: int) -> Slot:
        """Give slot `number`, or the oldest one still known if that is long past."""
        while self._next <= number:
            self._fill()
        oldest = self._slots[0].number
        return self._slots[max(0, number - oldest)]

    def _fill(self) -> None:
        frame = self._take()
        if frame is None:
            self.repeats += 1
            self._missed += 1
            if self._missed == STALL_SLOTS:
                self._on_stall()
        else:
            self._rgb = frame.rgb
            self._missed = 0
        pcm = _SILENCE if frame is None else frame.pcm
        slot = Slot(self._next, self._rgb, pcm, frame is None, frame)
        self._slots.append(slot)
        self._next += 1
        self._on_slot(slot)
        self._notice_speech(pcm)

    def _take(self) -> AVFrame | None:
        while not self._frames.empty():
            frame = self._frames.get_nowait()
            if frame.epoch >= self._epoch:
                return self._catch_up(frame)
        self._waiting.append(0)
        return None

    def _catch_up(self, frame: AVFrame) -> AVFrame:
        """Leave out a silent frame when later ones keep waiting: delay must not add up."""
        if self._is_behind() and not self._frames.empty() and is_quiet(frame.pcm):
            self.skips += 1
            self._waiting = deque((count - 1 for count in self._waiting), maxlen=FPS)
            frame = self._frames.get_nowait()
        self._waiting.append(self._frames.qsize())
        return frame

    def _is_behind(self) -> bool:
        """Tell whether frames waited here for nothing all through the last second."""
        return len(self._waiting) == FPS and min(self._waiting) > MAX_SPARE

    def _notice_speech(self, pcm: np.ndarray) -> None:
        was_speaking = self._quiet < IDLE_AFTER_SLOTS
        self._quiet = self._quiet + 1 if is_quiet(pcm) else 0
        if was_speaking != (self._quiet < IDLE_AFTER_SLOTS):
            self._on_speaking(not was_speaking)


def is_quiet(pcm: np.ndarray) -> bool:
    """Tell whether `(n,)` float32 sound is below the level of speech."""
    return float(np.dot(pcm, pcm)) < QUIET_RMS**2 * pcm.size
