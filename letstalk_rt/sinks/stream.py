"""Pushes a live session to a streaming server by RTMP, RTMPS or SRT."""

import logging
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import numpy as np

from letstalk_rt.errors import ConfigError, EngineError
from letstalk_rt.recording.av_encoder import EncoderSettings
from letstalk_rt.recording.threaded_sink import ThreadedSink
from letstalk_rt.sinks.srt import SrtTarget, load_libsrt
from letstalk_rt.sinks.stream_connection import StreamConnection, StreamTarget
from letstalk_rt.types import SAMPLE_RATE

logger = logging.getLogger(__name__)

SCHEMES = {"rtmp": "flv", "rtmps": "flv", "srt": "mpegts"}
DEFAULT_BIT_RATE = 2_500_000
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 16.0
_GIVE_UP_S = 120.0
STALL_S = 5.0
"""A server that accepts no data for this long counts as disconnected."""

_CLOSE_S = 2.0
"""How long queued frames are still sent after the session ended."""

_UNBUFFERED = {"flush_packets": "1"}
_KEY_FRAME_S = 2.0
"""The interval that streaming services require."""


class StreamPush(ThreadedSink):
    """A stream of H.264 and AAC (48 kHz stereo) to a server, which reconnects when it breaks.

    Frames are lost while it is disconnected; the session continues. A server that accepts no data
    for five seconds counts as disconnected. `close` takes a few seconds at most.

    Args:
        url: an `rtmp://`, `rtmps://` or `srt://` address with the stream key. It is never logged.
        bit_rate: bit rate of the video in bit/s.
        badge: draw the badge "AI avatar" into the frames.
        verify: check the certificate of an `rtmps://` server.
        sample_rate: `output_sample_rate` of the session, Hz.
        clock: returns monotonic seconds.
        connect: opens a connection; it blocks, and raises `OSError` on failure.

    Attributes:
        connects: number of connections made so far.

    Raises:
        ConfigError: `url` or `bit_rate` is invalid.
    """

    def __init__(
        self,
        url: str,
        *,
        bit_rate: int = DEFAULT_BIT_RATE,
        badge: bool = True,
        verify: bool = True,
        sample_rate: int = SAMPLE_RATE,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[StreamTarget], StreamConnection] = StreamConnection,
    ) -> None:
        super().__init__("stream", sample_rate=sample_rate)
        self.connects = 0
        self._scheme = _check_url(url)
        if not 100_000 <= bit_rate <= 50_000_000:
            raise ConfigError(
                f"The bit rate is {bit_rate}; expected 100000 to 50000000 bit/s (100k to 50M)."
            )
        self._url, self._verify, self._clock = url, verify, clock
        self._open_connection = connect
        self._settings = EncoderSettings(
            sample_rate,
            badge=badge,
            aac_rate=48_000,
            aac_channels=2,
            x264=_x264_options(bit_rate),
            bit_rate=bit_rate,
            key_frame_s=_KEY_FRAME_S,
        )
        self._size = (0, 0)
        self._connection: StreamConnection | None = None
        self._stale = 0  # frames queued while disconnected
        self._disconnected_s = self._retry_s = 0.0
        self._backoff_s = _FIRST_RETRY_S

    def _open(self, width: int, height: int) -> None:
        self._size = width, height
        try:
            self._connect()
        except OSError as error:
            raise ConfigError(
                f"Cannot connect to {self._server_name()}: {_reason(error)}. Check the address, "
                "the stream key, and that the server is running."
            ) from error

    def _write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        if (
            self._closing_since_s is not None
            and time.monotonic() - self._closing_since_s > _CLOSE_S
        ):
            return
        if self._connection is None and not self._reconnect():
            return
        if self._stale:
            self._stale -= 1
            return
        assert self._connection is not None
        try:
            self._connection.write(rgb, pcm)
        except OSError as error:
            logger.warning("stream connection lost", extra={"error": type(error).__name__})
            self._connection.abort()
            self._connection = None
            self._disconnected_s, self._backoff_s = self._clock(), _FIRST_RETRY_S
            self._retry_s = self._disconnected_s + self._backoff_s

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.finish()

    def _reconnect(self) -> bool:
        if self._closing_since_s is not None or self._clock() < self._retry_s:
            return False
        try:
            self._connect()
        except OSError as error:
            if self._clock() - self._disconnected_s > _GIVE_UP_S:
                raise EngineError(
                    f"The connection to {self._server_name()} was lost and could not be restored "
                    f"within {_GIVE_UP_S:.0f} s: {_reason(error)}"
                ) from error
            self._backoff_s = min(2 * self._backoff_s, _LAST_RETRY_S)
            self._retry_s = self._clock() + self._backoff_s
            return False
        self._stale = self._items.qsize()
        return True

    def _connect(self) -> None:
        if self._scheme == "srt":
            load_libsrt()  # raises with what to install
        options = dict(_UNBUFFERED)
        if self._scheme != "srt":
            options["flvflags"] = "no_duration_filesize"
        if self._scheme == "rtmps":
            options |= _tls_options() if self._verify else {"tls_verify": "0"}
        container = SCHEMES[self._scheme]
        target = StreamTarget(self._url, container, options, self._size, self._settings, STALL_S)
        self._connection = self._open_connection(target)
        self.connects += 1

    def _server_name(self) -> str:
        """Return the address of the server without path and key, which are secret."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ConfigError(
            "The address must begin with rtmp://, rtmps:// or srt:// and name a server, as in "
            "rtmp://HOST/APP/KEY or srt://HOST:PORT?streamid=NAME."
        )
    if parts.scheme == "srt":
        SrtTarget.parse(url)
    return parts.scheme


def _x264_options(bit_rate: int) -> dict[str, str]:
    return {
        "preset": "superfast",
        "tune": "zerolatency",
        "profile": "main",
        "maxrate": str(bit_rate),
        "bufsize": str(bit_rate),
    }


def _tls_options() -> dict[str, str]:
    paths = ssl.get_default_verify_paths()
    return {"tls_verify": "1"} | ({"ca_file": paths.cafile} if paths.cafile else {})


def _reason(error: OSError) -> str:
    return str(error.strerror or error)
