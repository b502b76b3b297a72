"""Hosts of a cluster on one machine: network namespaces, or else addresses of loopback."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

NETWORK = "198.18.77"
"""Of the range for measurements between networks (RFC 2544)."""


class Hosts(Protocol):
    """Hosts that reach each other; the caller reaches all of them.

    Attributes:
        reason: why the hosts are no namespaces; `None` if they are.
    """

    reason: str | None

    def address(self, host: str) -> str:
        """Return the address of a host; a new name makes a new one."""
        ...

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one on a host."""
        ...


@dataclass(slots=True)
class LoopbackHosts:
    """Hosts that are addresses of loopback.

    Attributes:
        reason: why the hosts are no namespaces.
        names: the hosts so far.
    """

    reason: str | None
    names: list[str]

    def address(self, host: str) -> str:
        """Return the address of a host."""
        if host not in self.names:
            self.names.append(host)
        return f"127.0.77.{10 + self.names.index(host)}"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command itself."""
        return list(command)


class NamespaceHosts:
    """Hosts in network namespaces on a bridge, which has the caller's address."""

    reason: str | None = None

    def __init__(self) -> None:
        self._prefix = f"lt{os.getpid() % 100_000}"
        self._names: list[str] = []
        _ip("link", "add", self._prefix, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", self._prefix)
        _ip("link", "set", self._prefix, "up")

    def address(self, host: str) -> str:
        """Return the address of a host."""
        if host not in self._names:
            self._names.append(host)
            self._add(f"{self._prefix}-{host}", self._names.index(host))
        return f"{NETWORK}.{10 + self._names.index(host)}"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs in the namespace of the host."""
        self.address(host)
        return ["ip", "netns", "exec", f"{self._prefix}-{host}", *command]

    def close(self) -> None:
        """Remove all namespaces and the bridge."""
        for host in self._names:
            _ip("netns", "del", f"{self._prefix}-{host}")
        _ip("link", "del", self._prefix)

    def _add(self, space: str, number: int) -> None:
        outside = f"{self._prefix}v{number}"
        _ip("netns", "add", space)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", outside, "master", self._prefix, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")


@contextmanager
def open_hosts() -> Iterator[Hosts]:
    """Yield namespaces where this machine allows them, else addresses of loopback."""
    if shutil.which("ip") is None:
        yield LoopbackHosts("the command ip is missing (iproute2)", [])
        return
    try:
        hosts = NamespaceHosts()
    except subprocess.CalledProcessError as error:
        yield LoopbackHosts(f"network namespaces are not allowed: {error.stderr.strip()}", [])
        return
    try:
        yield hosts
    finally:
        hosts.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
