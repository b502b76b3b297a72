"""The bandwidth estimate of one receiver, from its REMB messages and the loss it reports."""

from letstalk_server.settings import Bitrates

MUCH_LOSS = 0.1
LITTLE_LOSS = 0.02
SMOOTHING = 0.85
HEADROOM = 1.1
"""A REMB above this times the sent bitrate is no limit of the network: browsers report at most
1.5 times what they receive."""


class BandwidthEstimate:
    """The bandwidth estimate of one receiver.

    Loss above 10 % lowers it by half the loss, loss below 2 % raises it by 5 % per report: the
    thresholds of Google congestion control. The receiver's REMB is the ceiling, unless it is low
    only because little was sent: a face at rest must not lower the quality of what follows.

    Args:
        bitrates: bounds of the video bitrate.
    """

    def __init__(self, bitrates: Bitrates) -> None:
        self._bitrates = bitrates
        self._by_loss = float(bitrates.start)
        self._ceiling: int | None = None
        self.lost_ratio = 0.0

    @property
    def bitrate(self) -> int:
        """Target bitrate, bit/s."""
        wanted = self._by_loss if self._ceiling is None else min(self._by_loss, self._ceiling)
        return round(self._bound(wanted))

    def update_remb(self, bitrate: int, sent: float) -> None:
        """Update from a REMB message.

        Args:
            bitrate: the receiver's estimate, bit/s.
            sent: recently sent, bit/s.
        """
        # The bitrate cannot be lowered below the minimum anyway.
        if sent > self._bitrates.minimum and bitrate < HEADROOM * sent:
            self._ceiling = bitrate
        elif self._ceiling is not None:
            self._ceiling = max(self._ceiling, bitrate)

    def update_loss(self, ratio: float) -> None:
        """Update from a receiver report with the share of lost packets, 0 to 1."""
        self.lost_ratio = SMOOTHING * self.lost_ratio + (1 - SMOOTHING) * ratio
        if ratio > MUCH_LOSS:
            self._by_loss *= 1 - 0.5 * ratio
        elif ratio < LITTLE_LOSS:
            self._by_loss *= 1.05
        self._by_loss = self._bound(self._by_loss)

    def _bound(self, wanted: float) -> float:
        return min(max(wanted, self._bitrates.minimum), self._bitrates.maximum)
