"""Answers to the face of whoever the avatar looks at: a smile with a smile, a nod with a nod.

What a camera sees of them comes in, with the time at which it was captured; what of it comes back,
smaller and later, goes out. Only the last two seconds of three numbers are kept.
"""

import math
from collections import deque
from dataclasses import dataclass

from letstalk_rt.performance.gestures import SHAPES, Gesture

SHARE = 0.5
"""Size of an answer, of what it answers."""

DELAY_S = 0.45
"""How much later it is shown than it was captured: people take 0.3 to 0.6 s."""

MAX_SMILE = 0.4
"""The largest smile that is added."""

_KEPT_S = 2.0
_HOLD_S = 0.6  # a smile that was not seen again for so long fades
_FADE = 0.85  # share of it that is left in the next frame
_EASE = 0.25  # how fast the answer follows, a frame
_DIP, _BACK, _NOD_S = 0.06, 0.5, 0.9  # radians down, share of them up again, seconds for both
_NODS_EVERY_S = 1.5
_LEAST, _MOST = 0.25, 1.0  # size of nods


@dataclass(frozen=True, slots=True)
class Seen:
    """What a camera has seen of a face, relative to its neutral look.

    Attributes:
        captured_s: when, in monotonic seconds.
        smile: how far it smiles, from 0 to 1.
        pitch: how far the head is lowered, in radians.
    """

    captured_s: float
    smile: float
    pitch: float


class Mirror:
    """Remembers what was just seen, and says what is answered when."""

    def __init__(self) -> None:
        self._seen: deque[Seen] = deque()
        self._smile = 0.0
        self._nod: tuple[float, Gesture] | None = None  # when it begins
        self._nodded_s = -math.inf

    def see(self, seen: Seen) -> None:
        """Take the next thing that was seen; its time must not go back."""
        self._seen.append(seen)
        while self._seen[0].captured_s < seen.captured_s - _KEPT_S:
            self._seen.popleft()
        if seen.captured_s >= self._nodded_s + _NODS_EVERY_S:
            self._find_nod(seen)

    def frame(self, shown_s: float) -> tuple[float, Gesture | None]:
        """Return the smile that is added to a frame, and the gesture that begins in it.

        Args:
            shown_s: when the frame is shown, in monotonic seconds.
        """
        at_s = shown_s - DELAY_S
        known = [one for one in self._seen if at_s - _HOLD_S < one.captured_s <= at_s]
        if known:
            wanted = min(MAX_SMILE, SHARE * known[-1].smile)
            self._smile += _EASE * (wanted - self._smile)
        else:
            self._smile *= _FADE
        self._smile = self._smile if self._smile > 1e-3 else 0.0
        if self._nod is not None and shown_s >= self._nod[0]:
            nod, self._nod = self._nod[1], None
            return self._smile, nod
        return self._smile, None

    def answers_after(self, shown_s: float) -> bool:
        """Return whether something that was seen may still be answered, or is."""
        latest_s = self._seen[-1].captured_s if self._seen else -math.inf
        is_late = latest_s + DELAY_S + _HOLD_S > shown_s
        return is_late or self._nod is not None or self._smile > 0

    def _find_nod(self, last: Seen) -> None:
        """Find a head that went down and has come up again by half of that."""
        recent = [one for one in self._seen if one.captured_s >= last.captured_s - _NOD_S]
        lowest = max(recent, key=lambda one: one.pitch)
        before = min((o.pitch for o in recent if o.captured_s <= lowest.captured_s), default=0.0)
        depth = lowest.pitch - before
        if depth < _DIP or lowest.pitch - last.pitch < _BACK * depth:
            return
        size = max(pitch for _, pitch in SHAPES["nod"].curves["pitch"])
        amount = min(_MOST, max(_LEAST, SHARE * depth / size))
        self._nodded_s = last.captured_s
        lead_s = SHAPES["nod"].apex_s
        self._nod = lowest.captured_s + DELAY_S - lead_s / 2, Gesture("nod", amount)
