"""How many TCP connections the server holds, and how long one may be without a request.

Anybody may connect, also without a token, and each connection takes a file descriptor, which media,
sessions and the model need as well. So connections take no more than their share of descriptors;
beyond it, those that have waited longest without a request are closed for new ones. This happens
where connections are accepted, because TLS would keep those that say nothing from the protocol.
"""

import asyncio
import os
import socket
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from letstalk_rt.errors import ConfigError
from letstalk_server.settings import Settings

REQUEST_TIMEOUT_S = 10.0
"""How long a connection may be open without a whole header, before each request."""

ACCEPTED_AT_ONCE = 16
"""Connections accepted before the event loop goes on, which closes those they replace."""

QUEUE = 2048
"""Connections that the system holds until they are accepted."""

MAX_SOCKETS = 4096
"""Connections held at once, whatever the number of descriptors: each takes memory, too."""


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """Limits of TCP connections.

    Attributes:
        total: connections in all.
        per_address: connections of one address; `None`: no limit.
        spare_loopback: whether connections from this machine, which may be a reverse proxy, count
            in `total` only.
    """

    total: int
    per_address: int | None = None
    spare_loopback: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "SocketLimits":
        """Return the limits for this process: half of its descriptors, and a quarter of these."""
        total = min(_descriptors() // 2, MAX_SOCKETS)
        if settings.max_sockets_per_address is not None:
            return cls(total, settings.max_sockets_per_address or None)
        in_cluster = settings.worker_name is not None  # all visitors come through its proxies
        return cls(total, None if in_cluster else max(1, total // 4), spare_loopback=True)


class ClientSocket(socket.socket):
    """A connection that was accepted; tells `ClientSockets` when it is closed."""

    owner: "ClientSockets"
    address: str

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self.owner.remove(self)
        super().close()


class ClientSockets:
    """All TCP connections of clients. Used on the event loop only.

    Args:
        limits: how many there may be.
        timeout_s: how long one may be without a request, s.
    """

    def __init__(self, limits: SocketLimits, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._open: dict[int, ClientSocket] = {}  # by file descriptor
        self._per_address: Counter[str] = Counter()
        self._waiting: dict[ClientSocket, asyncio.TimerHandle] = {}  # for a request, oldest first

    def add(self, client: ClientSocket) -> bool:
        """Take a new connection, and end one that waits if that is one too many.

        Returns:
            Whether there is room for it.
        """
        if not self._make_room(client.address):
            return False
        self._open[client.fileno()] = client
        self._per_address[client.address] += 1
        self.expect_request(client.fileno())
        return True

    def remove(self, client: ClientSocket) -> None:
        """Forget a connection that is about to be closed."""
        if self._open.get(client.fileno()) is client:
            self.note_request(client.fileno())
            del self._open[client.fileno()]
            self._per_address[client.address] -= 1
            if not self._per_address[client.address]:
                del self._per_address[client.address]

    def expect_request(self, descriptor: int) -> None:
        """Let a connection wait for a request; what arrives meanwhile gains it no time."""
        client = self._open.get(descriptor)
        if client is not None and client not in self._waiting:
            loop = asyncio.get_running_loop()
            self._waiting[client] = loop.call_later(self._timeout_s, self._end, client)

    def note_request(self, descriptor: int) -> None:
        """Keep a connection that has made a request until that is answered."""
        client = self._open.get(descriptor)
        if client is not None and (timer := self._waiting.pop(client, None)) is not None:
            timer.cancel()

    def _make_room(self, address: str) -> bool:
        limit = self._limit_of(address)
        if limit is not None and self._per_address[address] >= limit:
            return self._end_oldest(address)
        return len(self._open) < self._limits.total or self._end_oldest()

    def _limit_of(self, address: str) -> int | None:
        is_spared = self._limits.spare_loopback and ip_address(address).is_loopback
        return None if is_spared else self._limits.per_address

    def _end_oldest(self, address: str | None = None) -> bool:
        for client in self._waiting:
            if address in (None, client.address):
                self._end(client)
                return True
        return False

    def _end(self, client: ClientSocket) -> None:
        """End a connection as if its client had gone; its transport closes it."""
        self._waiting.pop(client).cancel()
        with suppress(OSError):  # the client has gone just now
            client.shutdown(socket.SHUT_RDWR)


class Listener(socket.socket):
    """A listening socket whose connections are counted."""

    clients: ClientSockets

    def listen(self, backlog: int = QUEUE) -> None:
        """Listen; asyncio's `backlog` also says how many connections are accepted at once."""
        super().listen(QUEUE)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises:
            ConnectionAbortedError: There is no room for it.
        """
        plain, peer = super().accept()
        client = ClientSocket(self.family, self.type, self.proto, fileno=plain.detach())
        client.owner, client.address = self.clients, network_of(peer[0])
        if not self.clients.add(client):
            client.close()
            raise ConnectionAbortedError
        return client, peer


def listen(host: str, port: int, clients: ClientSockets) -> list[socket.socket]:
    """Return sockets bound to all addresses of a host name; they listen when uvicorn starts.

    Raises:
        ConfigError: The address cannot be used.
    """
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = Listener(family, kind, protocol)
            listener.clients = clients
            listeners.append(listener)
            _bind(listener, (address[0], port, *address[2:]))
            port = listener.getsockname()[1]  # 0 took a free one
    except OSError as error:
        for opened in listeners:
            opened.close()
        raise ConfigError(
            f"the server cannot listen on {host} port {port} ({error.strerror or error}); "
            "choose another --host or --port"
        ) from error
    return listeners


def _bind(listener: Listener, address: tuple[Any, ...]) -> None:
    if os.name == "posix":  # elsewhere, others could take the port then
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(address)


def _descriptors() -> int:
    """Return how many file descriptors this process may have."""
    if sys.platform == "win32":
        return 2 * MAX_SOCKETS
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2 * MAX_SOCKETS if limit == resource.RLIM_INFINITY else limit


def network_of(address: str) -> str:
    """Return what counts as one address: of IPv6 the network, whose addresses one client has."""
    ip = ip_address(address.partition("%")[0])
    if not isinstance(ip, IPv6Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip if ip.is_loopback else IPv6Address(int(ip) >> 64 << 64))


def protocol_for(clients: ClientSockets) -> type[H11Protocol]:
    """Return uvicorn's protocol of a connection that tells when it waits for a request."""

    class CountedProtocol(H11Protocol):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._tell()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._tell()

        def _tell(self) -> None:
            descriptor = self.transport.get_extra_info("socket").fileno()
            is_websocket = self.transport.get_protocol() is not self
            if is_websocket or (self.cycle is not None and not self.cycle.response_complete):
                clients.note_request(descriptor)
            else:
                clients.expect_request(descriptor)

    return CountedProtocol
