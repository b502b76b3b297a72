"""The top-level boxes of MP4 and QuickTime files, as far as signatures need them.

Source: ISO/IEC 14496-12, section 4.2; the identifier of C2PA's box is from its specification.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_HEADER, _LONG_HEADER = 8, 16


@dataclass(frozen=True, slots=True)
class Box:
    """A box at the top of a file.

    Attributes:
        kind: its four letters.
        start: where it begins, bytes.
        end: where it ends by its own account, bytes; the file may end before.
        identifier: the 16 bytes that identify a box of kind `uuid`; otherwise arbitrary.
    """

    kind: bytes
    start: int
    end: int
    identifier: bytes


def read_boxes(file: BinaryIO) -> Iterator[Box]:
    """Yield the boxes at the top of a file, up to the first that makes no sense."""
    total = file.seek(0, io.SEEK_END)
    start = 0
    while start + _HEADER <= total:
        file.seek(start)
        head = file.read(_LONG_HEADER + len(C2PA_BOX))
        size, kind = struct.unpack(">I4s", head[:_HEADER])
        if size == 1 and len(head) >= _LONG_HEADER:
            size = struct.unpack(">Q", head[_HEADER:_LONG_HEADER])[0]
        elif size == 0:
            size = total - start
        if size < _HEADER:
            return
        yield Box(kind, start, start + size, head[_HEADER : _HEADER + len(C2PA_BOX)])
        start += size


def has_manifest(path: Path) -> bool:
    """Return whether a file has a box for a C2PA manifest, damaged or not."""
    with open(path, "rb") as file:
        return any(box.kind == b"uuid" and box.identifier == C2PA_BOX for box in read_boxes(file))


class PlayablePart(io.RawIOBase):
    """A file that is read without what a crash left after its last complete fragment.

    A box that is cut off is left out unless it holds media (`mdat`), of which players use the part
    that is there. Parsers refuse a file that ends within any other box.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)
        total = self._file.seek(0, io.SEEK_END)
        self._length = 0
        for box in read_boxes(cast(BinaryIO, self._file)):
            if box.end <= total or box.kind == b"mdat":
                self._length = min(box.end, total)
        self._file.seek(0)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into the buffer and return how many bytes, 0 at the end."""
        left = max(0, self._length - self._file.tell())
        return self._file.readinto(memoryview(buffer)[:left]) or 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        if whence == io.SEEK_END:
            offset, whence = self._length + offset, io.SEEK_SET
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file; it may be called twice."""
        self._file.close()
        super().close()
