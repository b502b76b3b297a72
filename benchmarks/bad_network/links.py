"""The link between two hosts, and what is wrong with it.

`NetemLink` is the kernel's own emulation. `TunLink` does the same in this process, where the kernel
has no netem: both hosts have a TUN interface, and a thread passes packets from one to the other. It
can also translate the client's address, as a router does that gives it a new one.
"""

import errno
import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from bad_network.hosts import Host, address, ip, tc
from bad_network.nat import Nat

SERVER, CLIENT, MOVED = address(1), address(2), address(3)
"""The server's address, the client's, and the client's after it has changed."""

MTU = 1500
QUEUE_S = 0.3
"""What a router queues before it drops packets."""

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass(frozen=True, slots=True)
class Impairment:
    """What is wrong with a link, in both directions.

    Attributes:
        loss: share of packets that are lost, 0 to 1.
        jitter_ms: each packet is delayed by 0 to this time, so that packets overtake each other.
        rate_kbit: bandwidth, kbit/s; 0 is no limit. What exceeds the queue is dropped.
        is_down: nothing passes.
    """

    loss: float = 0.0
    jitter_ms: float = 0.0
    rate_kbit: int = 0
    is_down: bool = False


class Link(Protocol):
    """A link between the server's and the client's host."""

    def impair(self, impairment: Impairment) -> None:
        """Change what is wrong with the link, from the next packet on."""
        ...

    def move(self) -> None:
        """Change the address of the client's host, as a phone does that changes its network."""
        ...


@contextmanager
def linked(server: Host, client: Host, *, seed: int = 0, netem: bool) -> Iterator[Link]:
    """Connect two hosts for the time of the context.

    Args:
        server: gets the address `SERVER`.
        client: gets the address `CLIENT`.
        seed: of the losses and delays of a `TunLink`.
        netem: use a `NetemLink`.
    """
    if netem:
        yield NetemLink(server, client)
        return
    link = TunLink(server, client, seed)
    try:
        yield link
    finally:
        link.close()


def why_no_netem() -> str | None:
    """Return why the kernel cannot emulate networks, or None if it can."""
    try:
        with Host("netem") as host:
            tc(*"qdisc add dev lo root netem loss 1%".split(), host=host)
        return None
    except (RuntimeError, OSError) as error:
        return f"this kernel has no netem: {error}"


class NetemLink:
    """A pair of virtual Ethernet interfaces with netem at both ends."""

    def __init__(self, server: Host, client: Host) -> None:
        self._ends = ((server, "lt0", SERVER), (client, "lt0", CLIENT))
        ip("link", "add", "lt0", "netns", server.name, *"type veth peer name lt0".split(),
           "netns", client.name)  # fmt: skip
        for host, device, own in self._ends:
            _set_up(host, device, own)
        self.impair(Impairment())

    def impair(self, impairment: Impairment) -> None:
        """Change what is wrong with the link, from the next packet on."""
        for host, device, _ in self._ends:
            half = impairment.jitter_ms / 2
            loss = 100.0 if impairment.is_down else 100 * impairment.loss
            wanted = ["loss", f"{loss}%", "limit", "1000"]
            if half:
                wanted += ["delay", f"{half}ms", f"{half}ms"]
            if impairment.rate_kbit:
                packets = int(QUEUE_S * impairment.rate_kbit * 1000 / 8 / MTU) + 8
                wanted += ["rate", f"{impairment.rate_kbit}kbit", "limit", str(packets)]
            tc("qdisc", "replace", "dev", device, "root", "netem", *wanted, host=host)

    def move(self) -> None:
        """Change the address of the client's host, as a phone does that changes its network."""
        _change_address(self._ends[1][0], self._ends[1][1])


class TunLink:
    """Two TUN interfaces and a thread between them; `close` it.

    Args:
        server: the server's host.
        client: the client's host.
        seed: of losses and delays.
    """

    def __init__(self, server: Host, client: Host, seed: int = 0) -> None:
        self._client = client
        self._random = random.Random(seed)
        self._impairment = Impairment()
        self._nat = Nat(CLIENT)
        self._files = [_open_tun(server, f"lts{os.getpid()}"), _open_tun(client, self._client_tun)]
        _set_up(server, f"lts{os.getpid()}", SERVER)
        _set_up(client, self._client_tun, CLIENT)
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._free_s = [0.0, 0.0]
        self._count = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._forward, name="bad-link")
        self._thread.start()

    @property
    def _client_tun(self) -> str:
        return f"ltc{os.getpid()}"

    def impair(self, impairment: Impairment) -> None:
        """Change what is wrong with the link, from the next packet on."""
        self._impairment = impairment

    def move(self) -> None:
        """Change the address of the client's host, as a phone does that changes its network."""
        _change_address(self._client, self._client_tun)

    def rebind(self) -> None:
        """Change the address of the client outside, of which it learns nothing itself.

        That is what a router with network address translation does after it was restarted.
        """
        self._nat.rebind()

    def close(self) -> None:
        """Stop the thread, and remove both interfaces."""
        self._closing.set()
        self._thread.join()
        for file in self._files:
            os.close(file)

    def _forward(self) -> None:
        while not self._closing.is_set():
            due_s = self._waiting[0][0] - time.monotonic() if self._waiting else 0.05
            ready, _, _ = select.select(self._files, [], [], min(max(due_s, 0), 0.05))
            for file in ready:
                self._read(self._files.index(file))
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(self._waiting)
                self._write(end, packet)

    def _read(self, end: int) -> None:
        """Take a packet from one end, and put it where it waits for its time."""
        packet = self._nat.translate(os.read(self._files[end], 2 * MTU), outwards=end == 1)
        bad, now_s = self._impairment, time.monotonic()
        if packet is None or bad.is_down or self._random.random() < bad.loss:
            return
        if bad.rate_kbit:
            start_s = max(now_s, self._free_s[end])
            if start_s - now_s > QUEUE_S:
                return
            now_s = self._free_s[end] = start_s + len(packet) * 8 / (1000 * bad.rate_kbit)
        now_s += self._random.random() * bad.jitter_ms / 1000
        self._count += 1
        heapq.heappush(self._waiting, (now_s, self._count, 1 - end, packet))

    def _write(self, end: int, packet: bytes) -> None:
        if self._impairment.is_down:
            return
        try:
            os.write(self._files[end], packet)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EINVAL):  # the interface is down
                raise


def _open_tun(host: Host, device: str) -> int:
    """Create a TUN interface, and move it into a host; the file stays here."""
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TUN | _IFF_NO_PI))
    ip("link", "set", device, "netns", host.name)
    return file


def _set_up(host: Host, device: str, own: str) -> None:
    ip("address", "add", f"{own}/24", "dev", device, host=host)
    ip("link", "set", device, "mtu", str(MTU), "up", host=host)
    ip("route", "add", "default", "dev", device, host=host)


def _change_address(client: Host, device: str) -> None:
    ip("address", "delete", f"{CLIENT}/24", "dev", device, host=client)
    ip("address", "add", f"{MOVED}/24", "dev", device, host=client)
    ip("route", "replace", "default", "dev", device, host=client)
