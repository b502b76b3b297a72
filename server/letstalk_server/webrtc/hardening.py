"""What keeps a hostile or broken peer from ending more than the packet it sent."""

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger(__name__)


def harden(transport: Any) -> None:
    """Make a DTLS transport of aiortc drop packets that it cannot read.

    As it is, a damaged bandwidth estimate raises in its receiving task, which ends the connection.
    Safe to call twice.
    """
    for name in ("_handle_rtcp_data", "_handle_rtp_data"):
        if name not in vars(transport):
            setattr(transport, name, _dropping(getattr(transport, name)))


def _dropping(handle: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def handle_or_drop(*args: Any, **options: Any) -> None:
        try:
            await handle(*args, **options)
        except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
            log.debug("a packet was dropped (%s)", type(error).__name__)

    return handle_or_drop
