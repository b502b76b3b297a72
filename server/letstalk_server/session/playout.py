"""The one playout clock of a session: which picture and which sound belong to which moment.

Time is cut into slots of one frame. A slot is filled when it is first asked for, so the video
and the audio track that ask for it get the same frame and cannot drift apart. The clock stands
still for a frame that is a little late; a slot for which none came repeats the last picture in
silence. Live frames wait here no longer than the unsteadiness of the last seconds asks for: the
clock runs a little fast until then, which a receiver's jitter buffer takes up unheard.
It knows nothing of WebRTC. `letstalk_rt.session.playout` pushes frames to a sink; here two senders
pull. Both keep a `PlayoutClock`, with the policies of their kind.
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
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, AVFrame

SLOT_S = 1 / FPS
MAX_QUEUED_FRAMES = 4
"""Frames that wait here, one window: what is shown can be at most so much older than made."""

START_FRAMES, START_WAIT_S = 3, 0.2
"""Frames that must wait before the first is shown, or how long it waits for them: the first steps
of a session are slower than the later ones, and a receiver long remembers what came late."""

HOLDS = HoldPolicy(max_s=SLOT_S)
CATCH_UP = CatchUpPolicy(
    faster=0.025, margin_s=0.005, steady_frames=10 * FPS, recent_frames=2 * FPS
)
STALL_SLOTS = 25
_HISTORY = 16
_SOON_S = 1e-6
_SILENCE = np.zeros(SAMPLES_PER_FRAME, np.float32)


@dataclass(frozen=True, slots=True)
class PlayoutSlot:
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


class SlotPlayout:
    """Frames in as they are made, slots out as they are due.

    Args:
        still: `(H, W, 3)` uint8, shown until the first frame comes.
        is_live: whether frames are made of speech as it is spoken; others wait on purpose.
        on_stall: called once when no frame came for a second.
        on_slot: called with each slot, once, when it is filled.
        clock: monotonic time, s.
        sleep: waits that many seconds.

    Attributes:
        repeats: slots for which no frame came.
        skips: frames without voice left out to catch up.
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
    ) -> None:
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
        self._missed = STALL_SLOTS  # what has not begun does not stall
        self._started, self._first_s = False, math.inf

    async def put(self, frame: AVFrame) -> None:
        """Queue a frame; waits while a whole window is waiting already."""
        arrived_s = self._clock()
        self._resume()
        await self._frames.put((frame, arrived_s))

    def silence(self, epoch: int) -> None:
        """Take the sound of all frames older than `epoch` that are not shown yet.

        Their pictures are shown: they lead over to the new ones without a stop.
        """
        self._epoch = epoch
        self._playout_clock.forget_arrivals()
        self._missed = max(1, self._missed)  # the clock does not wait now: silence comes at once
        self._resume()

    def now(self) -> float:
        """Return the seconds since the clock started; the first call starts it."""
        return self._playout_clock.elapsed_s(self._clock())

    @property
    def held_s(self) -> float:
        """How long the clock stood still in all."""
        return self._playout_clock.held_s

    async def wait_until(self, due_s: float) -> None:
        """Wait until `due_s` seconds after the start, and a little for a frame that is late.

        Returns at once when that is past.
        """
        while (ahead_s := due_s - self.now()) > _SOON_S:
            await self._sleep(ahead_s)
        if self._next * SLOT_S <= due_s + _SOON_S and self._frames.empty() and not self._missed:
            await self._hold()

    async def _hold(self) -> None:
        """Let the clock stand still until a frame comes, or it is too late for it."""
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
        """Let the clock go on from where it stood."""
        if self._playout_clock.resume(self._clock()):
            self._arrived.set()

    def read_slot(self, number: int) -> PlayoutSlot:
        """Give slot `number`, or the oldest one still known if that is long past."""
        while self._next <= number:
            self._fill()
        oldest = self._slots[0].number
        return self._slots[max(0, number - oldest)]

    def is_filled(self, number: int) -> bool:
        """Tell whether somebody has asked for slot `number`."""
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
        pcm = _SILENCE if frame is None else frame.pcm
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
        """Tell whether frames are shown already, or enough of them wait to begin."""
        if not self._started:
            now_s = self._clock()
            self._first_s = min(self._first_s, now_s)
            enough = self._frames.qsize() >= START_FRAMES
            self._started = enough or now_s - self._first_s >= START_WAIT_S
        return self._started

    def _catch_up(self, frame: AVFrame, arrived_s: float) -> AVFrame:
        """Return the frame, or the one after it: live frames must not wait for nothing."""
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
