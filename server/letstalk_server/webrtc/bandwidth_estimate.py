"""How much video a receiver can take: its own estimate (REMB), and what it says it lost."""

from letstalk_server.settings import Bitrates

MUCH_LOSS = 0.1
LITTLE_LOSS = 0.02
SMOOTHING = 0.85
HEADROOM = 1.1
"""A receiver's estimate beyond this times what was sent is no limit of the path: browsers say 1.5
times what comes in, however wide the path is."""


class BandwidthEstimate:
    """One receiver's bandwidth.

    Loss above 10 % lowers it by half the loss, loss below 2 % raises it by 5 % a report: the bounds
    of Google congestion control. The receiver's own estimate is the ceiling, unless it only says
    that little was sent: a face at rest must not cost the sharpness of the next word.

    Args:
        bitrates: what the video may use.
    """

    def __init__(self, bitrates: Bitrates) -> None:
        self._bitrates = bitrates
        self._by_loss = float(bitrates.start)
        self._ceiling: int | None = None
        self.lost_ratio = 0.0
        self.round_trip_s: float | None = None

    @property
    def bitrate(self) -> int:
        """What to send now, bit/s."""
        wanted = self._by_loss if self._ceiling is None else min(self._by_loss, self._ceiling)
        return round(self._bound(wanted))

    def update_remb(self, bitrate: int, sent: float) -> None:
        """Take the receiver's estimate, bit/s, and how much was sent of late."""
        # At less than the minimum, what is sent cannot be lowered anyhow.
        if sent > self._bitrates.minimum and bitrate < HEADROOM * sent:
            self._ceiling = bitrate
        elif self._ceiling is not None:
            self._ceiling = max(self._ceiling, bitrate)

    def update_loss(self, ratio: float) -> None:
        """Take the share of packets, 0 to 1, that were lost since the last report."""
        self.lost_ratio = SMOOTHING * self.lost_ratio + (1 - SMOOTHING) * ratio
        if ratio > MUCH_LOSS:
            self._by_loss *= 1 - 0.5 * ratio
        elif ratio < LITTLE_LOSS:
            self._by_loss *= 1.05
        self._by_loss = self._bound(self._by_loss)

    def note_round_trip(self, seconds: float) -> None:
        """Take a measured time to the peer and back."""
        old = seconds if self.round_trip_s is None else self.round_trip_s
        self.round_trip_s = SMOOTHING * old + (1 - SMOOTHING) * seconds

    def _bound(self, wanted: float) -> float:
        return min(max(wanted, self._bitrates.minimum), self._bitrates.maximum)
