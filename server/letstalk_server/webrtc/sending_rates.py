"""How much a sender sends: the rate of what it sent, and the limit of what it sends again."""

from collections import deque

RETRANSMISSIONS_PER_S = 200
"""Limit of retransmissions: a flood of NACKs must not cause a flood of packets."""

RETRANSMITTED_SHARE = 0.5
"""Limit of retransmissions as a share of the estimated bandwidth, once that is known to be low."""


class RetransmissionLimit:
    """A sliding window of one second that limits retransmissions."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=RETRANSMISSIONS_PER_S)

    def allow(self, now_s: float, limit: int = RETRANSMISSIONS_PER_S) -> bool:
        """Count a retransmission and return True, or return False if there were too many."""
        if len(self._times_s) >= limit and now_s - self._times_s[-limit] < 1:
            return False
        self._times_s.append(now_s)
        return True


class SentRate:
    """The recently sent bitrate, bit/s."""

    def __init__(self) -> None:
        self.bit_s = 0.0
        self._octets, self._at_s = 0, 0.0

    def update(self, octets: int, now_s: float) -> None:
        """Update from the number of octets sent so far; call about twice a second."""
        if self._at_s:
            latest = (octets - self._octets) * 8 / max(now_s - self._at_s, 0.01)
            self.bit_s = (self.bit_s + latest) / 2 if self.bit_s else latest
        self._octets, self._at_s = octets, now_s
