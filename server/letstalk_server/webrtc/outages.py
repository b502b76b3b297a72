"""Decides when a peer has missed so much video that it is not sent again.

Receivers differ in what they do after an outage. Chromium drops what it lost and asks for a key
frame. aiortc asks once for the latest 128 lost packets, never for those before, and shows nothing
until it has them or 512 later packets. So the sender decides: it sends a key frame at once, with
sequence numbers so far ahead that any receiver takes it for another beginning.
"""

from collections import deque
from collections.abc import Sequence

SILENT_S = 2.0
"""Browsers and aiortc report at least every 1.5 s; one that was silent for longer was cut off."""

INTERVALS = 8
"""Latest intervals between packets that are remembered: some receivers report every 5 s only."""

MOST_REPAIRED = 100
"""Packets in a row, more than a second of video, that may be worth sending again."""

SKIPPED = 4096
"""Sequence numbers between the last packet and the first one after it: more than what receivers
take for loss (3000, RFC 3550, A.1), less than what SRTP can follow (32,768)."""

INTERVAL_S = 3.0
"""Minimum time between two beginnings because of requests: each costs a key frame."""


class Outages:
    """Decides when a stream has to begin anew for its peer."""

    def __init__(self) -> None:
        self._heard_s: float | None = None
        self._intervals_s: deque[float] = deque([0.0], INTERVALS)
        self._began_s = -INTERVAL_S

    def is_over(self, now_s: float) -> bool:
        """Note that the peer was heard; return whether it had been silent for too long."""
        interval_s = 0.0 if self._heard_s is None else now_s - self._heard_s
        was_silent = interval_s > max(SILENT_S, 2 * max(self._intervals_s))
        self._heard_s = now_s
        self._intervals_s.append(interval_s)
        if was_silent:
            self._began_s = now_s
        return was_silent

    def is_beyond_repair(self, now_s: float, lost: Sequence[int], limit: int) -> bool:
        """Return whether a request names too many packets in a row.

        Args:
            now_s: monotonic time.
            lost: sequence numbers that the peer asks for, in ascending order.
            limit: packets that may be sent again.
        """
        if now_s - self._began_s < INTERVAL_S or longest_run(lost) <= min(limit, MOST_REPAIRED):
            return False
        self._began_s = now_s
        return True


def longest_run(numbers: Sequence[int]) -> int:
    """Return the length of the longest run of consecutive sequence numbers."""
    longest = run = 0
    last: int | None = None
    for number in numbers:
        run = run + 1 if last is not None and number == (last + 1) & 0xFFFF else 1
        longest, last = max(longest, run), number
    return longest
