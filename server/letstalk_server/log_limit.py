"""Keeps libraries from filling the log with what strangers send."""

import logging
import time
from collections.abc import Callable

MOST = 20
"""Messages of one logger in a period."""

PERIOD_S = 60.0


class LogLimit(logging.Filter):
    """Lets a logger write `MOST` messages in each period; the last one says so.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._began_s, self._count = clock(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a message is written."""
        if self._clock() - self._began_s >= PERIOD_S:
            self._began_s, self._count = self._clock(), 0
        self._count += 1
        if self._count == MOST:
            record.msg = f"{record.msg} (more of {record.name} is left out for a minute)"
        return self._count <= MOST
