"""Protects a connection from malformed packets of hostile or broken peers.

An exception in aiortc's receiving task closes the connection, and one in a callback of the socket
is logged by asyncio with what caused it. Neither aiortc nor aioice catches all of them: an empty
datagram of anybody, a STUN attribute that is too short, or an SCTP fragment that comes twice. An
SCTP parameter of length 0 is worse: aiortc reads it for ever, and takes more memory each time.
"""

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiortc.exceptions import InvalidStateError

log = logging.getLogger(__name__)

MAX_QUEUED_DATAGRAMS = 2000
"""Datagrams that wait to be read; more are dropped. At 1500 bytes each they take 3 MB."""

MAX_HELD_BYTES = 512 * 1024
"""Data of incomplete messages of a peer; its messages have at most 64 KiB."""

MAX_HELD_FRAGMENTS = 1024
"""Fragments of incomplete messages of a peer, and packets after a gap: aiortc walks through all of
them with each further one."""

MAX_STREAMS = 64

_SCTP_HEADER, _CHUNK_HEADER = 12, 4
_PARAMETERS_AT = {1: 20, 2: 20, 4: 4, 5: 4, 6: 4, 9: 4, 130: 4}
"""Where parameters begin in an SCTP chunk, by its type: INIT, its answer, HEARTBEAT, its answer,
ABORT, ERROR, RE-CONFIG."""

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


def harden_channel(sctp: Any, on_excess: Callable[[], None]) -> None:
    """Make an aiortc SCTP transport drop packets that it cannot process. Safe to call twice.

    Args:
        sctp: aiortc's SCTP transport.
        on_excess: called once, when the peer sends more than is held for it; aiortc announces a
            window, but keeps what exceeds it. All that the peer sends afterwards is dropped.
    """
    if "_handle_data" in vars(sctp):
        return
    handle = _dropping(sctp._handle_data)
    receive = sctp._receive_data_chunk
    window = sctp._advertised_rwnd
    is_dropped = False

    async def handle_or_drop(data: bytes) -> None:
        if is_dropped:
            return
        if has_sound_parameters(data):
            await handle(data)
        else:
            log.debug("a packet was dropped (a parameter that is too short)")

    async def receive_or_end(chunk: Any) -> None:
        nonlocal is_dropped
        if is_dropped:
            return
        await receive(chunk)
        if _is_excessive(sctp, window - sctp._advertised_rwnd):
            is_dropped = True
            log.info("a peer was dropped (incomplete messages beyond the limit)")
            on_excess()

    sctp._handle_data = handle_or_drop
    sctp._receive_data_chunk = receive_or_end


def _is_excessive(sctp: Any, held_bytes: int) -> bool:
    streams = sctp._inbound_streams.values()
    return (
        held_bytes > MAX_HELD_BYTES
        or len(streams) > MAX_STREAMS
        or len(sctp._sack_misordered) > MAX_HELD_FRAGMENTS
        or sum(len(stream.reassembly) for stream in streams) > MAX_HELD_FRAGMENTS
    )


def has_sound_parameters(packet: bytes) -> bool:
    """Return whether each parameter of an SCTP packet is as long as its own header at least.

    Source: RFC 9260, section 3.2.1. Whatever else is wrong with a packet, aiortc finds.
    """
    at = _SCTP_HEADER
    while at + _CHUNK_HEADER <= len(packet):
        kind, length = packet[at], int.from_bytes(packet[at + 2 : at + 4], "big")
        if length < _CHUNK_HEADER:
            return True  # aiortc refuses the packet
        end = min(at + length, len(packet))
        if kind in _PARAMETERS_AT and not _are_sound(packet[at + _PARAMETERS_AT[kind] : end]):
            return False
        at += length + -length % 4
    return True


def _are_sound(parameters: bytes) -> bool:
    at = 0
    while at + _CHUNK_HEADER <= len(parameters):
        length = int.from_bytes(parameters[at + 2 : at + 4], "big")
        if length < _CHUNK_HEADER:
            return False
        at += length + -length % 4
    return True


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
