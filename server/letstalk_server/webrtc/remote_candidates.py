"""Which addresses a peer may make this server send connectivity checks to, and how many.

A candidate of a peer names any address, and checks are sent there before anybody has agreed to
receive them (RFC 8445, 19.5.1). So only addresses of the internet are checked that the peer names,
unless the operator allows more, and only so many. Peers in a local network connect nevertheless:
their own checks tell where they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Self

from aioice.stun import Class

from letstalk_server.session.limits import TokenBucket
from letstalk_server.settings import Settings, is_loopback

MAX_USED = 32
"""Candidates of a peer that are used at once; browsers name one or two for each interface."""

CANDIDATES_PER_S = 0.1
"""How fast more are, for phones that change their network during a long session."""

MAX_LEARNED = 16
"""Addresses from which a peer may check this server at once; more come at the same rate."""

CHECKS_PER_S, CHECK_BURST = 5.0, 50.0
"""Rate of checks of all addresses that the peer has not nominated."""

_GLOBAL_IPV6 = IPv6Network("2000::/3")
_EVERYWHERE = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class CandidatePolicy:
    """Which addresses are checked when a peer names them.

    Attributes:
        networks: networks that are checked beside the internet, such as `192.168.0.0/16`.
    """

    networks: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the policy of a server; one for this machine's own users checks everything."""
        is_own = is_loopback(settings.host) and not settings.auth_required
        return cls(_EVERYWHERE if is_own else settings.ice_networks)

    def permits(self, address: str) -> bool:
        """Return whether an address may be checked; a host name may not."""
        try:
            found = ip_address(address)
        except ValueError:
            return False
        if found.is_multicast or found.is_unspecified:
            return False
        return _is_of_internet(found) or any(found in ip_network(each) for each in self.networks)


def _is_of_internet(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is global, and none that embeds an IPv4 address."""
    if isinstance(address, IPv4Address):
        return address.is_global
    return address in _GLOBAL_IPV6 and address.is_global and address.sixtofour is None


class RemoteCandidates:
    """Decides for one peer which of its candidates are used.

    Args:
        policy: addresses that may be checked.
    """

    def __init__(self, policy: CandidatePolicy) -> None:
        self._policy = policy
        self._budget = TokenBucket(CANDIDATES_PER_S, burst=MAX_USED)

    def take(self, candidate: str) -> bool:
        """Return whether a candidate is used, and count it.

        Args:
            candidate: the text after `candidate:`; one that is malformed is left to the parser.
        """
        parts = candidate.split()
        if len(parts) < 6:
            return True
        is_udp = parts[2].lower() == "udp"
        return is_udp and self._policy.permits(parts[4]) and self._budget.take()


def limit_checks(connection: Any) -> None:
    """Limit the checks that an aioice connection sends; call it once candidates were gathered.

    What is not sent counts as lost, and is tried again. Answers and what goes to the nominated
    address are not limited. Forged source addresses are not learned without end.
    """
    checks = TokenBucket(CHECKS_PER_S, burst=CHECK_BURST)
    for protocol in connection._protocols:
        protocol.send_stun = _limited(protocol.send_stun, connection, checks)
    learned = TokenBucket(CANDIDATES_PER_S, burst=MAX_LEARNED)
    check_incoming = connection.check_incoming

    def check_known(message: Any, address: tuple[str, int], protocol: Any) -> None:
        known = {(each._network_host, each.port) for each in connection._remote_candidates}
        if address[:2] in known or learned.take():
            check_incoming(message, address, protocol)

    connection.check_incoming = check_known


def _limited(
    send: Callable[[Any, tuple[str, int]], None], connection: Any, checks: TokenBucket
) -> Callable[[Any, tuple[str, int]], None]:
    def send_or_drop(message: Any, address: tuple[str, int]) -> None:
        nominated = {pair.remote_addr for pair in connection._nominated.values()}
        is_check = message.message_class == Class.REQUEST and address not in nominated
        if not is_check or checks.take():
            send(message, address)

    return send_or_drop
