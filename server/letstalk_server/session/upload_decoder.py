"""Decodes uploads in processes of their own: one for each, which holds no secrets.

A hostile file takes a process and its limits with it, nobody else's time and nothing of the server.
"""

import json
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from letstalk_rt import errors
from letstalk_rt.dubbing.footage_reader import MOST_SECONDS
from letstalk_rt.dubbing.upload_process import Job
from letstalk_rt.errors import PortraitError
from letstalk_rt.inference.media_process import command, popen_options
from letstalk_rt.types import FPS

SPARES = 2
"""Processes that have started and wait, so that an upload does not wait for a start."""

MOST_AT_ONCE = 3
"""Uploads decoded at once; further ones wait."""

_ERRORS = ("NotAnImageError", "ImageDamagedError", "TooManyPixelsError", "PortraitError")
_MOST_HEAD, _MOST_BODY = 2**16, 2**27
_MOST_WORDS = 500
_TOO_MUCH = (
    "The file takes too much time or memory to decode. Use a JPEG or PNG image, or a film with 25 "
    "frames per second that is no larger than 1920x1080 pixels."
)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What decoding one upload may take.

    Attributes:
        cpu_s: processor time of all threads, s.
        wall_s: time, s, on a machine that has something else to do.
        memory_mb: memory beyond that of the idle process; `None`: 32 bytes for each allowed
            pixel, and 512 MB.
    """

    cpu_s: int = 40
    wall_s: float = 120.0
    memory_mb: int | None = None


DEFAULT_LIMITS = DecodeLimits()


class UploadDecoder:
    """Decodes each upload in a process that does nothing else. May be used from any thread.

    Args:
        size: longer side of the frames of a film in pixels.
        max_pixels: the largest width times height.
        limits: what one upload may take.
    """

    def __init__(self, size: int, max_pixels: int, limits: DecodeLimits = DEFAULT_LIMITS) -> None:
        self._size, self._max_pixels, self._limits = size, max_pixels, limits
        self._memory_mb = limits.memory_mb or 512 + 32 * max_pixels // 2**20
        self._lock = threading.Lock()  # of all below
        self._spares: list[subprocess.Popen[bytes]] = []
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False

    def image(self, data: bytes) -> np.ndarray:
        """Return an image, `(H, W, 3)` uint8; see `read_image`. Blocks.

        Raises:
            PortraitError: It cannot be used, or needs more than the limits allow.
        """
        head, body = self._decode(data)
        rgb: np.ndarray = np.frombuffer(body, np.uint8).reshape(*map(int, head["shape"][:2]), 3)
        return rgb

    def film(self, data: bytes) -> tuple[list[bytes], list[str]]:
        """Return the frames of a film as JPEG, and warnings; see `read_footage`. Blocks.

        Raises:
            PortraitError: It cannot be used, or needs more than the limits allow.
        """
        head, body = self._decode(data)
        if len(head["frames"]) > MOST_SECONDS * FPS:
            raise PortraitError(_TOO_MUCH)
        ends = np.cumsum([int(length) for length in head["frames"]]).tolist()
        frames = [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return frames, [str(text)[:_MOST_WORDS] for text in head["warnings"]]

    def start_spares(self) -> None:
        """Start the processes that the next uploads will need."""
        with self._lock:
            while len(self._spares) < SPARES and not self._is_closed:
                self._spares.append(_started())

    def close(self) -> None:
        """End all processes; uploads that are being decoded fail. May be called twice."""
        with self._lock:
            self._is_closed = True
            for process in (*self._spares, *self._running):
                process.kill()
            spares, self._spares = self._spares, []
        for process in spares:
            _end(process)

    def _decode(self, data: bytes) -> tuple[Mapping[str, Any], bytes]:
        with self._lock:
            process = self._spares.pop(0) if self._spares else _started()
            self._running.add(process)
            if self._is_closed:
                process.kill()
        self.start_spares()
        clock = threading.Timer(self._limits.wall_s, process.kill)
        clock.start()
        try:
            return self._exchange(process, data)
        finally:
            clock.cancel()
            with self._lock:
                self._running.discard(process)
            _end(process)

    def _exchange(
        self, process: subprocess.Popen[bytes], data: bytes
    ) -> tuple[Mapping[str, Any], bytes]:
        job = Job(len(data), self._size, self._max_pixels, self._limits.cpu_s, self._memory_mb)
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):  # it has ended: its reply tells, or there is none
            process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            process.stdin.write(data)
            process.stdin.flush()
        head = json.loads(process.stdout.readline(_MOST_HEAD) or "{}")
        if "error" in head:
            name = head["error"] if head["error"] in _ERRORS else "PortraitError"
            raise getattr(errors, name)(str(head["message"])[:_MOST_WORDS])
        length = int(head.get("length", -1))
        body = process.stdout.read(length) if 0 <= length <= _MOST_BODY else b""
        if len(body) != length:
            raise PortraitError(_TOO_MUCH)
        return head, body


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(command("letstalk_rt.dubbing.upload_process"), **popen_options())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with process:  # closes the pipes and waits
        pass
