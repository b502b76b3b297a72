"""Bounds of the video's bit rate."""

from dataclasses import dataclass

from letstalk_rt.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bitrates:
    """Bounds of the video, bit/s; within them it follows what the receivers can take.

    Attributes:
        start: until the first estimate of a receiver comes.
        minimum: never less, however bad the path; 512x512 smears below 0.25 Mbit/s.
        maximum: never more; talking heads of 512x512 look clean at 1 Mbit/s.
    """

    start: int = 1_000_000
    minimum: int = 250_000
    maximum: int = 2_000_000

    def __post_init__(self) -> None:
        if not 50_000 <= self.minimum <= self.start <= self.maximum <= 50_000_000:
            raise ConfigError(
                "video bitrates must be in bit/s with 50000 <= minimum <= start <= maximum <= "
                f"50000000, got minimum {self.minimum}, start {self.start}, "
                f"maximum {self.maximum}"
            )
