"""Pushes a live session to a streaming service by RTMP, RTMPS or SRT."""

import logging
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import numpy as np

from letstalk_rt.errors import ConfigError, EngineError
from letstalk_rt.sinks.av_encoder import EncoderSettings
from letstalk_rt.sinks.base import ThreadedSink
from letstalk_rt.sinks.srt import SrtTarget, load_libsrt
from letstalk_rt.sinks.stream_connection import StreamConnection, StreamTarget
from letstalk_rt.types import SAMPLE_RATE

logger = logging.getLogger(__name__)

SCHEMES = {"rtmp": "flv", "rtmps": "flv", "srt": "mpegts"}
DEFAULT_BIT_RATE = 2_500_000
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 16.0
_GIVE_UP_S = 120.0
STALL_S = 5.0
"""A server that takes nothing for so long is gone."""

_CLOSE_S = 2.0
"""What waits when the session ends is still sent for so long."""

_AT_ONCE = {"flush_packets": "1"}
_KEY_FRAME_S = 2.0
"""What the services ask for."""


class StreamPush(ThreadedSink):
    """Sends H.264 and AAC (48 kHz stereo) to a server, and connects again when the line breaks.

    What falls into a break is lost; the session goes on meanwhile. A server that takes nothing for
    five seconds counts as a break. `close` takes some seconds at most, whatever the server does.

    Args:
        url: `rtmp://`, `rtmps://` or `srt://`, stream key included. It is never logged.
        bit_rate: of the picture, bit/s.
        badge: draw the badge "AI avatar" into the pictures.
        verify: check the certificate of an `rtmps://` server.
        clock: monotonic seconds.
        connect: makes a line; blocking, raises `OSError` where nobody answers.

    Attributes:
        connects: how often the line was made.

    Raises:
        ConfigError: `url` or `bit_rate` cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        bit_rate: int = DEFAULT_BIT_RATE,
        badge: bool = True,
        verify: bool = True,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[StreamTarget], StreamConnection] = StreamConnection,
    ) -> None:
        super().__init__("stream")
        self.connects = 0
        self._scheme = _check(url)
        if not 100_000 <= bit_rate <= 50_000_000:
            raise ConfigError(
                f"The bit rate is {bit_rate}; expected 100000 to 50000000 bit/s (100k to 50M)."
            )
        self._url, self._verify, self._clock = url, verify, clock
        self._make_line = connect
        self._settings = EncoderSettings(
            SAMPLE_RATE,
            badge=badge,
            aac_rate=48_000,
            aac_channels=2,
            x264=_x264(bit_rate),
            bit_rate=bit_rate,
            key_frame_s=_KEY_FRAME_S,
        )
        self._size = (0, 0)
        self._line: StreamConnection | None = None
        self._stale = 0  # items queued while there was no line
        self._broken_s = self._retry_s = 0.0
        self._pause_s = _FIRST_RETRY_S

    def _open(self, width: int, height: int) -> None:
        self._size = width, height
        try:
            self._connect()
        except OSError as error:
            raise ConfigError(
                f"Cannot connect to {self._where()}: {_reason(error)}. Check the address, the "
                "stream key and that the server listens."
            ) from error

    def _write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        if self._ended_s is not None and time.monotonic() - self._ended_s > _CLOSE_S:
            return
        if self._line is None and not self._connected_again():
            return
        if self._stale:
            self._stale -= 1
            return
        assert self._line is not None
        try:
            self._line.write(rgb, pcm)
        except OSError as error:
            logger.warning("the line broke", extra={"error": type(error).__name__})
            self._line.hang_up()
            self._line = None
            self._broken_s, self._pause_s = self._clock(), _FIRST_RETRY_S
            self._retry_s = self._broken_s + self._pause_s

    def _close(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            with suppress(OSError):
                line.finish()

    def _connected_again(self) -> bool:
        if self._ended_s is not None or self._clock() < self._retry_s:
            return False
        try:
            self._connect()
        except OSError as error:
            if self._clock() - self._broken_s > _GIVE_UP_S:
                raise EngineError(
                    f"The line to {self._where()} broke and could not be made again within "
                    f"{_GIVE_UP_S:.0f} s: {_reason(error)}"
                ) from error
            self._pause_s = min(2 * self._pause_s, _LAST_RETRY_S)
            self._retry_s = self._clock() + self._pause_s
            return False
        self._stale = self._items.qsize()
        return True

    def _connect(self) -> None:
        if self._scheme == "srt":
            load_libsrt()  # says what to install
        options = dict(_AT_ONCE)
        if self._scheme != "srt":
            options["flvflags"] = "no_duration_filesize"
        if self._scheme == "rtmps":
            options |= _certificates() if self._verify else {"tls_verify": "0"}
        form = SCHEMES[self._scheme]
        target = StreamTarget(self._url, form, options, self._size, self._settings, STALL_S)
        self._line = self._make_line(target)
        self.connects += 1

    def _where(self) -> str:
        """Name the server without path and key, which are secrets."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _check(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ConfigError(
            "The address must begin with rtmp://, rtmps:// or srt:// and name a server, as in "
            "rtmp://HOST/APP/KEY or srt://HOST:PORT?streamid=NAME."
        )
    if parts.scheme == "srt":
        SrtTarget.parse(url)
    return parts.scheme


def _x264(bit_rate: int) -> dict[str, str]:
    return {
        "preset": "superfast",
        "tune": "zerolatency",
        "profile": "main",
        "maxrate": str(bit_rate),
        "bufsize": str(bit_rate),
    }


def _certificates() -> dict[str, str]:
    paths = ssl.get_default_verify_paths()
    return {"tls_verify": "1"} | ({"ca_file": paths.cafile} if paths.cafile else {})


def _reason(error: OSError) -> str:
    return str(error.strerror or error)
