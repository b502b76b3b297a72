"""Protects a connection from malformed packets of hostile or broken peers."""

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger(__name__)


def harden(transport: Any) -> None:
    """Make an aiortc DTLS transport drop packets that it cannot parse.

    Without this, a malformed bandwidth estimate raises in the receiving task and ends the
    connection. Safe to call twice.
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
