"""Follows a peer whose address changes without its knowledge.

A router with network address translation may give a client another outer address, after a restart
or a pause. Browsers check the connection every few seconds and so announce the new address; until
then, and with other clients for good, aioice would send to the old one. Here the first packet from
a new address causes a connectivity check of our own to it (RFC 8445, 7.2), and its answer, which
only the peer can sign, moves the connection.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

from aioice.candidate import Candidate
from aioice.ice import CandidatePair
from aioice.stun import TransactionError
from aioice.utils import random_string

from letstalk_server.webrtc.hardening import harden_socket

SILENCE_S = 0.25
"""The old address must have been silent for this long: packets of one that was left may be late."""

CHECK_INTERVAL_S = 0.2
"""Minimum time between two checks: packets with forged addresses must not cause a flood."""

RETRANSMISSIONS = 2
_STUN_TYPES = 4
"""First bytes below this are STUN (RFC 7983): a check alone does not say that a peer has moved."""


class MovingPeer:
    """Follows the peer of one ICE connection; `watch` it once candidates were gathered.

    Args:
        connection: aioice's connection.
        monotonic: monotonic time, s.
    """

    def __init__(self, connection: Any, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._monotonic = monotonic
        self._heard_s = 0.0
        self._checked_s = 0.0
        self._check: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Look at each packet that arrives from now on, and drop malformed ones; call it once."""
        for protocol in self._connection._protocols:
            harden_socket(
                protocol, self._connection._queue.qsize, functools.partial(self._note, protocol)
            )

    async def aclose(self) -> None:
        """Stop a check. Safe to call twice."""
        task, self._check = self._check, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _note(self, protocol: Any, data: bytes, address: tuple[str, int]) -> None:
        active = self._connection._nominated.get(1)
        if active is None or data[0] < _STUN_TYPES:
            return
        now_s = self._monotonic()
        if active.remote_addr == address and active.protocol is protocol:
            self._heard_s = now_s
        elif (
            now_s - self._heard_s > SILENCE_S
            and now_s - self._checked_s > CHECK_INTERVAL_S
            and (self._check is None or self._check.done())
        ):
            self._checked_s = now_s
            self._check = asyncio.create_task(self._move(protocol, address), name="check-address")

    async def _move(self, protocol: Any, address: tuple[str, int]) -> None:
        """Send to another address, if the peer answers a check there."""
        connection = self._connection
        pair = CandidatePair(protocol, _peer_reflexive(address))
        request = connection.build_request(pair, nominate=False)
        try:
            _, answered = await protocol.request(
                request,
                address,
                integrity_key=connection.remote_password.encode(),
                retransmissions=RETRANSMISSIONS,
            )
        except TransactionError:
            return
        if answered == address and connection._nominated:
            pair.nominated, pair.state = True, CandidatePair.State.SUCCEEDED
            known = connection._find_remote_candidate(pair.remote_candidate)
            if known is None:
                connection._remote_candidates.append(pair.remote_candidate)
            else:
                pair.remote_candidate = known
            connection._nominated[1] = pair


def _peer_reflexive(address: tuple[str, int]) -> Candidate:
    candidate = Candidate(
        foundation=random_string(10),
        component=1,
        transport="udp",
        priority=1,
        host=address[0],
        port=address[1],
        type="prflx",
    )
    candidate._network_host = address[0]
    return candidate
