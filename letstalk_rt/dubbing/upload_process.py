"""A process that decodes one uploaded image or film, and then ends; see `media_process`.

It reads a line of JSON (`Job`) and the upload from standard input, and writes a line of JSON and
then the decoded bytes to standard output.
"""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

# PyAV would import it when it opens a film, when no file can be opened any more.
import av.subtitles.stream  # noqa: F401

from letstalk_rt.dubbing.footage_reader import is_film, read_footage
from letstalk_rt.errors import FilmError, PortraitError
from letstalk_rt.inference.media_process import begin, give_way, limit_resources
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
    requests, replies = begin()
    give_way()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    load_plugins()
    line = requests.readline()
    if not line:  # the parent needs no more
        return 0
    job = Job(**json.loads(line))
    limit_resources(job.memory_mb, job.cpu_s)
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


if __name__ == "__main__":
    sys.exit(main())
