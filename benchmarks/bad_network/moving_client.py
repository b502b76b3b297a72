"""ICE restarts for a client of aiortc, which has none: it gets sockets at its new address.

Browsers do this by themselves. The peer connection stays, with all that DTLS and SRTP agreed on.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from aioice.ice import CandidatePair
from aioice.utils import random_string
from aiortc import RTCPeerConnection


async def restart_ice(
    pc: RTCPeerConnection, exchange: Callable[[str], Awaitable[str]]
) -> list[CandidatePair]:
    """Restart ICE of the end that made the offer, from the addresses that its host has now.

    Args:
        pc: a connected peer connection whose media sections are bundled.
        exchange: sends an SDP fragment to the server, and returns its answer.

    Returns:
        The pairs that are being checked; aioice sends to the first that works.
    """
    connection: Any = pc.getTransceivers()[0].sender.transport.transport._connection
    old = list(connection._protocols)
    connection._local_username, connection._local_password = random_string(8), random_string(22)
    connection._local_candidates, connection._local_candidates_start = [], False
    await connection.gather_candidates()
    credentials = (
        f"a=ice-ufrag:{connection.local_username}\r\na=ice-pwd:{connection.local_password}"
    )
    answer = await exchange(f"{credentials}\r\n")
    connection.remote_username, connection.remote_password = (
        re.search(rf"a=ice-{name}:(\S+)", answer).group(1)  # type: ignore[union-attr]
        for name in ("ufrag", "pwd")
    )
    connection._check_list = [
        CandidatePair(protocol, candidate)
        for protocol in connection._protocols
        if protocol not in old
        for candidate in connection.remote_candidates
        if protocol.local_candidate.can_pair_with(candidate)
    ]
    for pair in connection._check_list:
        connection.check_start_task(pair)
    return list(connection._check_list)
