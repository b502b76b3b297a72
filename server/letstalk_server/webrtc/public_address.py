"""The address that visitors reach, where NAT maps it to one of this machine."""

import socket
from dataclasses import dataclass
from typing import Self

from letstalk_rt.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """A public address, which NAT maps port by port, as that of cloud providers does.

    Attributes:
        public: the address that peers reach.
        local: the machine's own address to which it is mapped.
    """

    public: str
    local: str

    @classmethod
    def find(cls, public: str) -> Self:
        """Return a public address with the local one from which it would be reached; send nothing.

        Raises:
            ConfigError: This machine has no way to it.
        """
        family = socket.AF_INET6 if ":" in public else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((public, 9))
                return cls(public, str(probe.getsockname()[0]))
        except OSError as error:
            raise ConfigError(
                f"public_address {public} cannot be reached from here ({error.strerror}); name the "
                "address at which visitors reach this machine"
            ) from error

    def put_into(self, answer: str) -> str:
        """Return an SDP answer that names the public address and no other of this machine.

        Candidates with its other addresses are removed: peers that need the public address do not
        reach them. Those of STUN and TURN servers stay.
        """
        return "\r\n".join(
            self._translated(line)
            for line in answer.replace("\r\n", "\n").split("\n")
            if not self._is_other_host(line)
        )

    def _is_other_host(self, line: str) -> bool:
        parts = line.split(" ")
        is_host = line.startswith("a=candidate:") and parts[6:8] == ["typ", "host"]
        return is_host and parts[4] not in (self.local, self.public)

    def _translated(self, line: str) -> str:
        if not line.startswith(("a=candidate:", "c=")):
            return line
        return " ".join(self.public if part == self.local else part for part in line.split(" "))
