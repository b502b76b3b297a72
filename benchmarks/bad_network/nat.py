"""Network address translation of IPv4 packets with UDP or TCP, for one client."""

import socket
import struct

from bad_network.hosts import address

FIRST_OUTSIDE = 100
_CHECKSUM_AT = {17: 6, 6: 16}
"""Where UDP and TCP have their checksum, after the IP header."""


class Nat:
    """Translates the address of one client; before the first `rebind` it changes nothing.

    Args:
        inside: the client's address.
    """

    def __init__(self, inside: str) -> None:
        self._inside = socket.inet_aton(inside)
        self._outside = self._inside
        self._count = 0

    def rebind(self) -> None:
        """Change the address of the client outside; packets to the old one are lost."""
        self._outside = socket.inet_aton(address(FIRST_OUTSIDE + self._count))
        self._count += 1

    def translate(self, packet: bytes, *, outwards: bool) -> bytes | None:
        """Return the translated packet, or None if nobody has its address.

        Args:
            packet: an IP packet.
            outwards: whether it comes from the client.
        """
        if self._outside == self._inside or packet[0] >> 4 != 4:
            return packet
        place, old, new = (12, self._inside, self._outside)
        if not outwards:
            place, old, new = 16, self._outside, self._inside
        if packet[place : place + 4] != old:
            return None if not outwards else packet
        return _replace(packet, place, old, new)


def _replace(packet: bytes, place: int, old: bytes, new: bytes) -> bytes:
    """Replace an address, and correct the checksums of IP and of UDP or TCP."""
    changed = bytearray(packet)
    changed[place : place + 4] = new
    sums = [10]
    header, protocol = (packet[0] & 15) * 4, packet[9]
    if protocol in _CHECKSUM_AT:
        sums.append(header + _CHECKSUM_AT[protocol])
    for at in sums:
        (before,) = struct.unpack_from("!H", packet, at)
        if before:
            struct.pack_into("!H", changed, at, _corrected(before, old, new))
    return bytes(changed)


def _corrected(checksum: int, old: bytes, new: bytes) -> int:
    """Return a checksum after a change of data. Source: RFC 1624."""
    total = ~checksum & 0xFFFF
    for before, after in zip(struct.unpack("!2H", old), struct.unpack("!2H", new), strict=True):
        total += (~before & 0xFFFF) + after
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
