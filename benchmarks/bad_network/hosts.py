"""Hosts of a test network: network namespaces of Linux, each with an address of its own.

They need root, or the right to create namespaces; `why_not` tells what is missing.
"""

import os
import subprocess
from collections.abc import Sequence
from typing import Self

NETWORK = "10.77.0"
"""The first three bytes of all addresses; nothing routes to it from outside of the namespaces."""


def ip(*arguments: str, host: "Host | None" = None) -> None:
    """Run `ip`, in a host if one is given.

    Raises:
        RuntimeError: It failed; the message is its own.
    """
    inside = ["-n", host.name] if host is not None else []
    _run(["ip", *inside, *arguments])


def tc(*arguments: str, host: "Host") -> None:
    """Run `tc` in a host.

    Raises:
        RuntimeError: It failed; the message is its own.
    """
    _run(["tc", "-n", host.name, *arguments])


def why_not() -> str | None:
    """Return why this machine cannot have namespaces, or None if it can."""
    try:
        with Host("probe"):
            return None
    except (RuntimeError, OSError) as error:
        return f"network namespaces are not allowed here: {error}"


class Host:
    """A network namespace. Use it as a context manager.

    Args:
        label: what it is, for its name.
    """

    def __init__(self, label: str) -> None:
        self.name = f"lt-{label}-{os.getpid()}"

    def __enter__(self) -> Self:
        """Create it, with a loopback interface."""
        ip("netns", "add", self.name)
        ip("link", "set", "lo", "up", host=self)
        return self

    def __exit__(self, *failure: object) -> None:
        """Delete it; processes that still run in it lose their network."""
        ip("netns", "delete", self.name)

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs `command` in the host."""
        return ["ip", "netns", "exec", self.name, *command]


def address(number: int) -> str:
    """Return the address of a number, 1 to 254."""
    assert 0 < number < 255, number
    return f"{NETWORK}.{number}"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise RuntimeError(f"`{' '.join(command)}` failed: {reason}")
