"""The one playout clock of a session: which picture and which sound belong to which moment.

Time is cut into slots of one frame. A slot is filled when it is first asked for, so the video
and the audio track that ask for it get the same frame and cannot drift apart. The clock stands
still for a frame that is a little late; a slot for which none came repeats the last picture in
silence. Live frames wait here no longer than the unsteadiness of the last seconds asks for: the
clock runs a little fast until then, which a receiver's jitter buffer takes up unheard.
It knows nothing of WebRTC. The SDK's `letstalk_rt.playout` pushes frames to a sink at its own pace;
here two senders pull.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from letstalk_rt.playout import in_epoch
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, AVFrame

SLOT_S = 1 / FPS
MAX_WAITING = 4
"""Frames that wait here, one window: what is shown can be at most so much older than made."""

RESERVE, RESERVE_S = 3, 0.2
"""Frames that must wait before the first is shown, or how long it waits for them: the first steps
of a session are slower than the later ones, and a receiver long remembers what came late."""

MAX_HOLD_S = SLOT_S
"""How long the clock stands still for a frame that is late."""

MARGIN_S = 0.005
"""How long the latest of live frames should wait here."""

FASTER = 0.025
"""By how much the clock runs fast while live frames wait longer."""

STEADY_SLOTS, RECENT_SLOTS = 10 * FPS, 2 * FPS
"""How far back is looked for the latest frame: to run fast, and to leave out silent frames."""

QUIET_RMS = 0.01
"""Sound below this level is silence (-40 dB of full scale)."""

IDLE_AFTER_SLOTS = 10
STALL_SLOTS = 25
_HISTORY = 16
_SOON_S = 1e-6
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


class Arrivals:
    """When frames came, against when they are shown. Arithmetic only.

    Args:
        slots: how many frames are remembered.
    """

    def __init__(self, slots: int) -> None:
        self._at_s: deque[float] = deque(maxlen=slots)

    def note(self, index: int, at_s: float) -> None:
        """Take the arrival of frame `index` of an unbroken series."""
        self._at_s.append(at_s - index * SLOT_S)

    def wait_s(self, index: int, due_s: float) -> float:
        """Give how long the latest of the frames would wait if `index` is shown at `due_s`.

        0 while too few are known.
        """
        if len(self._at_s) < min(FPS, self._at_s.maxlen or 0):
            return 0.0
        return due_s - index * SLOT_S - max(self._at_s)

    def forget(self) -> None:
        """Begin anew: the series is broken."""
        self._at_s.clear()


class PulledPlayout:
    """Frames in as they are made, slots out as they are due.

    Args:
        still: `(H, W, 3)` uint8, shown until the first frame comes.
        is_live: whether frames are made of speech as it is spoken; others wait on purpose.
        on_speaking: called with True when the shown sound begins and with False when it ends.
        on_stall: called once when no frame came for a second.
        on_slot: called with each slot, once, when it is filled.
        clock: monotonic time, s.
        sleep: waits that many seconds.

    Attributes:
        repeats: slots for which no frame came.
        skips: silent frames left out to catch up.
        held_s: how long the clock stood still in all.
    """

    def __init__(
        self,
        still: np.ndarray,
        *,
        is_live: Callable[[], bool] = lambda: False,
        on_speaking: Callable[[bool], None] = lambda speaking: None,
        on_stall: Callable[[], None] = lambda: None,
        on_slot: Callable[[Slot], None] = lambda slot: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.repeats = 0
        self.skips = 0
        self.held_s = 0.0
        self._rgb = still
        self._is_live = is_live
        self._on_speaking, self._on_stall, self._on_slot = on_speaking, on_stall, on_slot
        self._clock, self._sleep = clock, sleep
        self._frames: asyncio.Queue[tuple[AVFrame, float]] = asyncio.Queue(MAX_WAITING)
        self._came = asyncio.Event()
        self._slots: deque[Slot] = deque(maxlen=_HISTORY)
        self._steady, self._recent = Arrivals(STEADY_SLOTS), Arrivals(RECENT_SLOTS)
        self._start_s: float | None = None
        self._held_since_s: float | None = None
        self._epoch = 0
        self._next = 0
        self._missed = STALL_SLOTS  # what has not begun does not stall
        self._quiet = IDLE_AFTER_SLOTS
        self._begun, self._first_s = False, math.inf

    async def put(self, frame: AVFrame) -> None:
        """Queue a frame; waits while a whole window is waiting already."""
        came_s = self._clock()
        self._go_on()
        await self._frames.put((frame, came_s))

    def silence(self, epoch: int) -> None:
        """Take the sound of all frames older than `epoch` that are not shown yet.

        Their pictures are shown: they lead over to the new ones without a stop.
        """
        self._epoch = epoch
        self._steady.forget()
        self._recent.forget()
        self._missed = max(1, self._missed)  # the clock does not wait now: silence comes at once
        self._go_on()

    def now(self) -> float:
        """Give the seconds since the clock started; the first call starts it."""
        now_s = self._clock() if self._held_since_s is None else self._held_since_s
        if self._start_s is None:
            self._start_s = now_s
        return now_s - self._start_s

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
        if self._held_since_s is None:
            self._held_since_s = self._clock()
            self._came.clear()
        try:
            async with asyncio.timeout(MAX_HOLD_S):
                await self._came.wait()
        except TimeoutError:
            pass
        finally:
            self._go_on()

    def _go_on(self) -> None:
        """Let the clock go on from where it stood."""
        if self._held_since_s is None or self._start_s is None:
            return
        held_s = self._clock() - self._held_since_s
        self._held_since_s = None
        self._start_s += held_s
        self.held_s += held_s
        self._came.set()

    def slot(self, number: int) -> Slot:
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
        slot = Slot(self._next, self._rgb, pcm, frame is None, frame)
        self._slots.append(slot)
        self._next += 1
        self._on_slot(slot)
        self._notice_speech(pcm)

    def _take(self) -> AVFrame | None:
        if self._frames.empty() or not self._may_begin():
            return None
        frame, came_s = self._frames.get_nowait()
        frame = self._catch_up(frame, came_s)
        return in_epoch(frame, max(self._epoch, frame.epoch))

    def _may_begin(self) -> bool:
        """Tell whether frames are shown already, or enough of them wait to begin."""
        if not self._begun:
            now_s = self._clock()
            self._first_s = min(self._first_s, now_s)
            enough = self._frames.qsize() >= RESERVE
            self._begun = enough or now_s - self._first_s >= RESERVE_S
        return self._begun

    def _catch_up(self, frame: AVFrame, came_s: float) -> AVFrame:
        """Give the frame, or the one after it: live frames must not wait for nothing."""
        due_s = self._due_s()
        self._steady.note(frame.index, came_s)
        self._recent.note(frame.index, came_s)
        if not self._is_live():
            return frame
        spare_s = self._recent.wait_s(frame.index, due_s) - MARGIN_S
        if spare_s > SLOT_S and not self._frames.empty() and is_quiet(frame.pcm):
            self.skips += 1
            frame, came_s = self._frames.get_nowait()
            self._steady.note(frame.index, came_s)
            self._recent.note(frame.index, came_s)
        spare_s = self._steady.wait_s(frame.index, due_s) - MARGIN_S
        self._start_s = due_s - self._next * SLOT_S - min(max(spare_s, 0.0), FASTER * SLOT_S)
        return frame

    def _due_s(self) -> float:
        """Give when the next slot is due, in the clock's time; starts the clock."""
        self.now()
        assert self._start_s is not None
        return self._start_s + self._next * SLOT_S

    def _notice_speech(self, pcm: np.ndarray) -> None:
        was_speaking = self._quiet < IDLE_AFTER_SLOTS
        self._quiet = self._quiet + 1 if is_quiet(pcm) else 0
        if was_speaking != (self._quiet < IDLE_AFTER_SLOTS):
            self._on_speaking(not was_speaking)


def is_quiet(pcm: np.ndarray) -> bool:
    """Tell whether `(n,)` float32 sound is below the level of speech."""
    return float(np.dot(pcm, pcm)) < QUIET_RMS**2 * pcm.size
