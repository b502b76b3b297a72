"""The playout of a session: one clock, and the frame that is due in each of its slots.

Time is divided into slots of one frame. A slot is filled when it is first read, so the video and
the audio track read the same frame and cannot drift apart. The clock is held for a frame that is a
little late; a slot without a frame repeats the last one in silence. Live frames wait no longer
than the jitter of the last seconds requires: until then the clock runs slightly fast, which a
receiver's jitter buffer absorbs inaudibly.
This module is independent of WebRTC. `letstalk_rt.session.playout` pushes frames to a sink; here
senders pull them. Both use a `PlayoutClock`, each with its own policies.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from letstalk_rt.session.pacing import CatchUpPolicy, HoldPolicy, PlayoutClock
from letstalk_rt.session.playout import in_epoch
from letstalk_rt.types import FPS, SAMPLE_RATE, AVFrame

SLOT_S = 1 / FPS
MAX_QUEUED_FRAMES = 4
"""Size of the queue: one window, which bounds the playout latency."""

START_FRAMES, START_WAIT_S = 3, 0.2
"""Frames that must be queued before the first is shown, and the maximum wait for them: the first
steps of a session are slower, and a receiver enlarges its jitter buffer for a long time."""

HOLDS = HoldPolicy(max_s=SLOT_S)
CATCH_UP = CatchUpPolicy(
    faster=0.025, margin_s=0.005, steady_frames=10 * FPS, recent_frames=2 * FPS
)
STALL_SLOTS = 25
_HISTORY = 16
_SOON_S = 1e-6


@dataclass(frozen=True, slots=True)
class PlayoutSlot:
    """What is shown in one frame period.

    Attributes:
        number: index since the start of the clock; due at `number / 25` s.
        rgb: `(H, W, 3)` uint8.
        pcm: `(sample_rate // 25,)` float32 in [-1, 1], mono.
        repeated: no frame came in time; `rgb` is that of the last one.
        frame: the frame that is shown; `None` if repeated.
    """

    number: int
    rgb: np.ndarray
    pcm: np.ndarray
    repeated: bool
    frame: AVFrame | None = None


class SlotPlayout:
    """A bounded queue of frames that are read as slots of the playout clock.

    Args:
        still: `(H, W, 3)` uint8, shown until the first frame comes.
        is_live: returns whether speech or motion comes from a live source; other frames are made
            ahead.
        on_stall: called once when no frame has come for a second.
        on_slot: called once with each slot, when it is filled.
        clock: monotonic time, s.
        sleep: waits for a number of seconds.
        sample_rate: sample rate of the audio, Hz.

    Attributes:
        sample_rate: sample rate of the audio, Hz.
        repeats: slots without a frame.
        skips: frames without voice that were skipped to catch up.
    """

    def __init__(
        self,
        still: np.ndarray,
        *,
        is_live: Callable[[], bool] = lambda: False,
        on_stall: Callable[[], None] = lambda: None,
        on_slot: Callable[[PlayoutSlot], None] = lambda slot: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        self.sample_rate = sample_rate
        self._silence = np.zeros(sample_rate // FPS, np.float32)
        self.repeats = 0
        self.skips = 0
        self._rgb = still
        self._is_live = is_live
        self._on_stall, self._on_slot = on_stall, on_slot
        self._clock, self._sleep = clock, sleep
        self._frames: asyncio.Queue[tuple[AVFrame, float]] = asyncio.Queue(MAX_QUEUED_FRAMES)
        self._arrived = asyncio.Event()
        self._slots: deque[PlayoutSlot] = deque(maxlen=_HISTORY)
        self._playout_clock = PlayoutClock(FPS, holds=HOLDS, catch_up=CATCH_UP)
        self._epoch = 0
        self._next = 0
        self._missed = STALL_SLOTS  # before the first frame there is no stall
        self._started, self._first_s = False, math.inf

    async def put(self, frame: AVFrame) -> None:
        """Queue a frame; wait while the queue is full."""
        arrived_s = self._clock()
        self._resume()
        await self._frames.put((frame, arrived_s))

    def silence(self, epoch: int) -> None:
        """Silence all frames older than `epoch` that were not shown yet.

        The frames themselves are still shown, as a bridge to the new ones.
        """
        self._epoch = epoch
        self._playout_clock.forget_arrivals()
        self._missed = max(1, self._missed)  # do not hold the clock: silence starts at once
        self._resume()

    def now(self) -> float:
        """Return the seconds since the clock started; the first call starts it."""
        return self._playout_clock.elapsed_s(self._clock())

    @property
    def held_s(self) -> float:
        """Total time for which the clock was held, s."""
        return self._playout_clock.held_s

    async def wait_until(self, due_s: float) -> None:
        """Wait until `due_s` seconds after the start, and a little longer for a late frame.

        Return at once if that time is past.
        """
        while (ahead_s := due_s - self.now()) > _SOON_S:
            await self._sleep(ahead_s)
        if self._next * SLOT_S <= due_s + _SOON_S and self._frames.empty() and not self._missed:
            await self._hold()

    async def _hold(self) -> None:
        """Hold the clock until a frame comes, at most for the policy's `max_s`."""
        self._playout_clock.hold(self._clock())
        self._arrived.clear()
        try:
            async with asyncio.timeout(HOLDS.max_s):
                await self._arrived.wait()
        except TimeoutError:
            pass
        finally:
            self._resume()

    def _resume(self) -> None:
        """Release a held clock."""
        if self._playout_clock.resume(self._clock()):
            self._arrived.set()

    def read_slot(self, number: int) -> PlayoutSlot:
        """Return slot `number`, or the oldest one in the history if that is too old."""
        while self._next <= number:
            self._fill()
        oldest = self._slots[0].number
        return self._slots[max(0, number - oldest)]

    def close(self) -> None:
        """Drop the frames that wait and the older ones; the last one stays."""
        while not self._frames.empty():
            self._frames.get_nowait()
        while len(self._slots) > 1:
            self._slots.popleft()

    def is_filled(self, number: int) -> bool:
        """Return whether slot `number` was read already."""
        return self._next > number

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
        pcm = self._silence if frame is None else frame.pcm
        slot = PlayoutSlot(self._next, self._rgb, pcm, frame is None, frame)
        self._slots.append(slot)
        self._next += 1
        self._on_slot(slot)

    def _take(self) -> AVFrame | None:
        if self._frames.empty() or not self._may_start():
            return None
        frame, arrived_s = self._frames.get_nowait()
        frame = self._catch_up(frame, arrived_s)
        return in_epoch(frame, max(self._epoch, frame.epoch))

    def _may_start(self) -> bool:
        """Return whether frames are shown already, or enough are queued to start."""
        if not self._started:
            now_s = self._clock()
            self._first_s = min(self._first_s, now_s)
            enough = self._frames.qsize() >= START_FRAMES
            self._started = enough or now_s - self._first_s >= START_WAIT_S
        return self._started

    def _catch_up(self, frame: AVFrame, arrived_s: float) -> AVFrame:
        """Return the frame, or the next one if a live frame without voice can be skipped."""
        clock = self._playout_clock
        clock.elapsed_s(self._clock())  # a clock that was never read starts now
        clock.note_arrival(frame.index, arrived_s)
        if not self._is_live():
            return frame
        is_spare = not (frame.voiced or self._frames.empty())
        if is_spare and clock.may_skip(frame.index, self._next):
            self.skips += 1
            frame, arrived_s = self._frames.get_nowait()
            clock.note_arrival(frame.index, arrived_s)
        clock.run_fast(frame.index, self._next)
        return frame
