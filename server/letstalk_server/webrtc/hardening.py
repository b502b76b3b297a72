"""Protects a connection from malformed packets of hostile or broken peers.

An exception in aiortc's receiving task closes the connection, and one in a callback of the socket
is logged by asyncio with what caused it. Neither aiortc nor aioice catches all of them: an empty
datagram of anybody, a STUN attribute that is too short, or an SCTP fragment that comes twice.
"""

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiortc.exceptions import InvalidStateError

log = logging.getLogger(__name__)

MAX_QUEUED_DATAGRAMS = 2000
"""Datagrams that wait to be read; more are dropped. At 1500 bytes each they take 3 MB."""

_MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)
"""What aiortc and aioice raise for packets that they do not expect."""


def harden(transport: Any) -> None:
    """Make an aiortc DTLS transport drop packets that it cannot process.

    Without this, a datagram of anybody that is longer than a packet, or a malformed bandwidth
    estimate of the peer, raises in the receiving task and ends the connection. Safe to call twice.
    """
    _wrap(transport, "_recv_next", "_handle_rtcp_data", "_handle_rtp_data")


def harden_connection(pc: Any) -> None:
    """Make an aiortc peer connection fail in silence if it is closed while it is set up.

    Its task for that has no owner: asyncio would log the exception. Such a connection never gets
    connected, and is lost after the usual time. Call it once, before the offer is applied.
    """
    name = "_RTCPeerConnection__connect"
    assert hasattr(pc, name), f"this version of aiortc has no attribute {name}"
    connect = getattr(pc, name)

    async def connect_or_give_up() -> None:
        try:
            await connect()
        except (InvalidStateError, ConnectionError, *_MALFORMED) as error:
            log.debug("a connection was not set up (%s)", type(error).__name__)

    setattr(pc, name, connect_or_give_up)


def harden_channel(sctp: Any) -> None:
    """Make an aiortc SCTP transport drop packets that it cannot process. Safe to call twice."""
    _wrap(sctp, "_handle_data")


def harden_socket(
    protocol: Any, queued: Callable[[], int], note: Callable[[bytes, tuple[str, int]], None]
) -> None:
    """Make an aioice socket drop datagrams that it cannot process, or that nobody reads.

    Args:
        protocol: aioice's protocol.
        queued: returns the number of datagrams that wait to be read.
        note: called with each datagram that is passed on, and where it came from.
    """
    receive = protocol.datagram_received

    def receive_or_drop(data: bytes, address: tuple[Any, ...]) -> None:
        if not data or queued() >= MAX_QUEUED_DATAGRAMS:
            return
        try:
            note(data, (address[0], address[1]))
            receive(data, address)
        except _MALFORMED as error:
            log.debug("a datagram was dropped (%s)", type(error).__name__)

    protocol.datagram_received = receive_or_drop


def _wrap(owner: Any, *names: str) -> None:
    for name in names:
        if name not in vars(owner):
            setattr(owner, name, _dropping(getattr(owner, name)))


def _dropping(handle: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def handle_or_drop(*args: Any, **options: Any) -> None:
        try:
            await handle(*args, **options)
        except _MALFORMED as error:
            log.debug("a packet was dropped (%s)", type(error).__name__)

    return handle_or_drop
