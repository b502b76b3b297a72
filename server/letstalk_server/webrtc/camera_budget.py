"""How much of a peer's camera is decoded: a budget of pixels, and a share of that of all cameras.

Frames depend on those before them, so that none can be left out by itself: a camera that has spent
its budget is not decoded until it has some again and a key frame comes.
"""

import math
import os
import re
import time
from collections.abc import Callable

from letstalk_rt.inference.camera_decoder import MOST_PIXELS
from letstalk_server.session.transport import CameraTrouble

CAMERA_PIXELS_PER_S = 1.1 * 30 * MOST_PIXELS
"""Of one camera: the largest frames, 30 times a second, with some room for clocks."""

CORE_PIXELS_PER_S = 60 * MOST_PIXELS
"""Of all cameras, for each processor core: less than half of it, as a frame of 1920x1080 px takes
6 ms with its conversion (docs/log.md)."""

LEAST_PIXELS = 640 * 360
"""A smaller frame counts as one of this size: what is done for each takes time, too."""

BURST_S, MOST_DEBT_S = 1.0, 3.0
"""What a budget holds, and by how much it may be overdrawn, as time of its rate. What waits for the
decoder is not counted yet; and who used what others left need not make up for all of it."""

ACTIVE_S = 2.0
"""A camera shares in the budget of all for so long after its last frame."""

KEY_FRAME_S, REFUSED_S = 1.0, 5.0
"""Least time between two requests for a key frame; the second while frames are too large: a sender
that changes their size begins with a key frame unasked."""

TELL_S = 10.0
"""Least time between two reports of the same trouble."""

_H264_KEY_FRAME = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65\x07\x27\x47\x67]")
"""A slice of an instantaneous refresh, or a sequence parameter set (ITU-T H.264, 7.3.1)."""


class Budget:
    """Pixels that may be decoded. It fills at a rate, and can be overdrawn.

    Args:
        clock: monotonic time, s.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._at_s = clock, clock()
        self._spent = 0.0

    def left(self, per_s: float) -> float:
        """Return what is left, at most `BURST_S` of the rate; negative if it is overdrawn.

        Args:
            per_s: the rate at which it has filled since it was last asked, pixels per second.
        """
        now_s = self._clock()
        spent = min(self._spent, (BURST_S + MOST_DEBT_S) * per_s)
        self._spent = max(0.0, spent - (now_s - self._at_s) * per_s)
        self._at_s = now_s
        return BURST_S * per_s - self._spent

    def spend(self, pixels: float) -> None:
        """Take pixels that were decoded."""
        self._spent += pixels


class SharedBudget:
    """The budget of all cameras of a server.

    While it is spent, each camera has an equal share, so that nobody's camera takes what another
    needs; otherwise those that send much use what others leave.

    Args:
        per_s: pixels per second; by default what the cores of this machine can decode beside all
            else.
        clock: monotonic time, s.
    """

    def __init__(
        self, per_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self._per_s = CORE_PIXELS_PER_S * (os.cpu_count() or 1) if per_s is None else per_s
        self._budget = Budget(clock)
        self._active_s: dict[CameraBudget, float] = {}

    @property
    def is_spent(self) -> bool:
        """Whether cameras are limited to their shares."""
        return self._budget.left(self._per_s) <= 0

    def share(self, camera: "CameraBudget") -> float:
        """Return the share of a camera that sends, pixels per second."""
        now_s = self.clock()
        self._active_s[camera] = now_s
        self._active_s = {c: s for c, s in self._active_s.items() if now_s - s < ACTIVE_S}
        return self._per_s / len(self._active_s)

    def spend(self, pixels: float) -> None:
        """Take pixels that were decoded."""
        self._budget.spend(pixels)


class CameraBudget:
    """What may be decoded of one camera.

    Args:
        shared: the budget of all cameras.
    """

    def __init__(self, shared: SharedBudget) -> None:
        self._shared = shared
        self._own, self._fair = Budget(shared.clock), Budget(shared.clock)

    def left_s(self) -> float:
        """Return how much of its budget a camera has that sends a frame now, as time of its rate.

        It is at most `BURST_S`, and 0 or less if the frame must not be decoded.
        """
        share = self._shared.share(self)
        fair_s = self._fair.left(share) / share
        own_s = self._own.left(CAMERA_PIXELS_PER_S) / CAMERA_PIXELS_PER_S
        return min(own_s, fair_s) if self._shared.is_spent else own_s

    def spend(self, pixels: float) -> None:
        """Take pixels that were decoded."""
        for budget in (self._own, self._fair, self._shared):
            budget.spend(pixels)


class CameraGate:
    """Decides which frames of a camera are decoded.

    Args:
        shared: the budget of all cameras.
        ask: asks the peer for a key frame.
        tell: told why frames are not decoded, again and again while they are not.
    """

    def __init__(
        self,
        shared: SharedBudget,
        ask: Callable[[], None],
        tell: Callable[[CameraTrouble], None],
    ) -> None:
        self._budget, self._clock = CameraBudget(shared), shared.clock
        self._ask, self._tell = ask, tell
        self._needs_key_frame = False
        self._trouble: CameraTrouble | None = None
        self._asked_s = -math.inf
        self._told_s: dict[CameraTrouble, float] = {}

    def admits(self, codec: str, data: bytes) -> bool:
        """Return whether an encoded frame is to be decoded."""
        left_s = self._budget.left_s()
        if left_s <= 0:
            self._shut(CameraTrouble.TOO_MUCH)
        if self._needs_key_frame and not (left_s > 0 and is_key_frame(codec, data)):
            self._refuse(left_s)
            return False
        self._needs_key_frame, self._trouble = False, None
        return True

    def note_decoded(self, pixels: int, frames: int) -> None:
        """Spend the budget on frames that were decoded.

        Args:
            pixels: of all of them.
            frames: how many they were.
        """
        self._budget.spend(max(pixels, frames * LEAST_PIXELS))

    def note_damage(self) -> None:
        """Ask for a key frame: one that was decoded was damaged."""
        self._ask_for_key_frame(KEY_FRAME_S)

    def note_loss(self) -> None:
        """Ask for a key frame, and decode nothing before it: frames were lost."""
        self._needs_key_frame = True
        self._ask_for_key_frame(KEY_FRAME_S)

    def note_too_large(self) -> None:
        """Decode nothing before the next key frame: those of this one are too large."""
        self._shut(CameraTrouble.TOO_LARGE)
        self._tell_if_due()

    def _shut(self, trouble: CameraTrouble) -> None:
        self._needs_key_frame = True
        self._trouble = self._trouble or trouble

    def _refuse(self, left_s: float) -> None:
        self._tell_if_due()
        if left_s > BURST_S / 2:  # with less, it would be spent again at once
            is_large = self._trouble is CameraTrouble.TOO_LARGE
            self._ask_for_key_frame(REFUSED_S if is_large else KEY_FRAME_S)

    def _tell_if_due(self) -> None:
        now_s, trouble = self._clock(), self._trouble
        if trouble is not None and now_s - self._told_s.get(trouble, -math.inf) >= TELL_S:
            self._told_s[trouble] = now_s
            self._tell(trouble)

    def _ask_for_key_frame(self, pause_s: float) -> None:
        now_s = self._clock()
        if now_s - self._asked_s >= pause_s:
            self._asked_s = now_s
            self._ask()


def is_key_frame(codec: str, data: bytes) -> bool:
    """Return whether a frame can be decoded without those before it.

    Args:
        codec: `VP8` (RFC 6386, 9.1) or `H264`.
        data: the frame; of H.264, with start codes.
    """
    if codec == "VP8":
        return bool(data) and not data[0] & 1
    return _H264_KEY_FRAME.search(data) is not None
