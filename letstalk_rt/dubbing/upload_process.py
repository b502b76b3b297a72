"""A process that decodes one uploaded image or film, and then ends.

Uploads come from strangers, and what decodes them has had holes. So this process holds no secrets
and nobody else's data, opens no file and no socket once it has begun, and has limits of processor
time and memory. Its parent gets plain bytes of it: unpickling them could run code.

It reads a line of JSON (`Job`) and the upload from standard input, and writes a line of JSON and
then the decoded bytes to standard output.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# PyAV would import it when it opens a film, when no file can be opened any more.
import av.subtitles.stream  # noqa: F401

from letstalk_rt.dubbing.footage_reader import is_film, read_footage
from letstalk_rt.errors import FilmError, PortraitError
from letstalk_rt.inference.child_main import offer_to_oom_killer
from letstalk_rt.portrait.image import UPLOAD_FORMATS, load_plugins, read_image

NICENESS = 5
"""Frames of sessions come first."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be decoded, and what that may take.

    Attributes:
        length: of the upload in bytes.
        size: longer side of the frames of a film in pixels.
        max_pixels: the largest width times height.
        cpu_s: processor time of all threads.
        memory_mb: memory beyond that of the idle process.
    """

    length: int
    size: int
    max_pixels: int
    cpu_s: int
    memory_mb: int


def main() -> int:
    """Decode one upload; return the exit status."""
    requests, replies = sys.stdin.buffer, _take_stdout()
    offer_to_oom_killer()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    load_plugins()
    line = requests.readline()
    if not line:  # the parent needs no more
        return 0
    job = Job(**json.loads(line))
    limit_resources(job.cpu_s, job.memory_mb)
    try:
        head, parts = decode(requests.read(job.length), job)
    except (PortraitError, FilmError) as error:
        head, parts = {"error": type(error).__name__, "message": str(error)}, []
    head["length"] = sum(map(len, parts))
    replies.write(json.dumps(head).encode() + b"\n")
    for part in parts:
        replies.write(part)
    replies.flush()
    return 0


def decode(data: bytes, job: Job) -> tuple[dict[str, Any], list[bytes]]:
    """Return what tells the parent how to read the reply, and the reply.

    Raises:
        PortraitError: the upload cannot be used.
        FilmError: likewise.
    """
    if is_film(data):
        frames, warnings = read_footage(data, job.size, max_pixels=job.max_pixels, is_upload=True)
        return {"frames": list(map(len, frames)), "warnings": warnings}, frames
    rgb = read_image(data, max_pixels=job.max_pixels, formats=UPLOAD_FORMATS)
    return {"shape": rgb.shape}, [rgb.tobytes()]


def limit_resources(cpu_s: int, memory_mb: int) -> None:
    """Limit this process for good; the system ends it when it needs more.

    No file can be opened and none can be written, nor can a socket be made. Without POSIX limits,
    only the parent's clock limits it.
    """
    if sys.platform == "win32":
        return
    import resource

    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: _mapped_bytes() + memory_mb * 2**20,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        with suppress(OSError, ValueError):  # macOS refuses some
            resource.setrlimit(kind, (limit, limit))


def _mapped_bytes() -> int:
    """Return the size of the address space of this process; 0 where unknown."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _take_stdout() -> BinaryIO:
    """Return standard output, and lead what libraries print elsewhere."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


if __name__ == "__main__":
    sys.exit(main())
