"""A sending SRT socket by the system's libsrt, for FFmpeg in PyAV's wheels speaks no SRT."""

import ctypes
import ctypes.util
import socket
import struct
import sys
import time
from dataclasses import dataclass
from functools import cache
from urllib.parse import parse_qsl, urlsplit

from letstalk_rt.errors import ConfigError, DependencyError

PAYLOAD_BYTES = 1316
"""Seven packets of MPEG-TS: what live mode sends in one datagram."""

_DEFAULT_LATENCY_MS = 120
_SEND_TIMEOUT_MS = 5000
_LINGER_S = 2
"""On closing, what is not sent yet is waited for so long."""

_LINGER, _SNDTIMEO, _LATENCY, _PASSPHRASE, _PBKEYLEN, _CONNTIMEO, _STREAMID = (
    7,
    13,
    23,
    26,
    27,
    36,
    46,
)
_NAMES = ("srt", "srt-openssl", "srt-gnutls")
_FILES = (
    "libsrt.so.1.5", "libsrt-openssl.so.1.5", "libsrt-gnutls.so.1.5", "libsrt.so.1.4",
    "libsrt-gnutls.so.1.4", "libsrt.dylib", "/opt/homebrew/lib/libsrt.dylib", "srt.dll",
)  # fmt: skip


@dataclass(frozen=True)
class SrtTarget:
    """Where to send, as an SRT address says it.

    Attributes:
        host: name or address of the listener.
        port: of it.
        stream_id: what the listener knows this stream by.
        passphrase: 10 to 79 characters, or empty for no encryption.
        key_bytes: 16, 24 or 32.
        latency_ms: how long the listener waits for packets that were lost.
        connect_timeout_ms: for the first answer.
    """

    host: str
    port: int
    stream_id: str = ""
    passphrase: str = ""
    key_bytes: int = 16
    latency_ms: int = _DEFAULT_LATENCY_MS
    connect_timeout_ms: int = 5000

    @classmethod
    def parse(cls, url: str) -> "SrtTarget":
        """Read `srt://HOST:PORT?streamid=..&passphrase=..&latency=MS&pbkeylen=..`.

        Raises:
            ConfigError: it is no such address.
        """
        parts = urlsplit(url)
        given = dict(parse_qsl(parts.query))
        if given.pop("mode", "caller") != "caller":
            raise ConfigError("SRT is sent in mode 'caller' only; leave mode out of the address.")
        try:
            host, port = parts.hostname, parts.port
            latency_ms = int(given.pop("latency", _DEFAULT_LATENCY_MS))
            key_bytes = int(given.pop("pbkeylen", 16))
        except ValueError as error:
            raise ConfigError(f"The SRT address holds a number that is none: {error}.") from error
        if not host or not port:
            raise ConfigError("An SRT address looks like srt://HOST:PORT?streamid=NAME.")
        names = given.pop("streamid", ""), given.pop("passphrase", "")
        if names[1] and not 10 <= len(names[1]) <= 79:
            raise ConfigError("An SRT passphrase has 10 to 79 characters.")
        if key_bytes not in (16, 24, 32):
            raise ConfigError(f"pbkeylen is {key_bytes}; expected 16, 24 or 32 (bytes).")
        if given:
            raise ConfigError(
                f"The SRT address has the unknown option {next(iter(given))!r}; known: streamid, "
                "passphrase, pbkeylen, latency (milliseconds)."
            )
        return cls(host, port, *names, key_bytes=key_bytes, latency_ms=latency_ms)


class SrtSocket:
    """A connected caller; a file to PyAV. Errors while sending are `OSError`s.

    Args:
        target: where to connect to. Blocking.

    Raises:
        DependencyError: libsrt is not installed.
        OSError: nobody listens there, or it refuses.
    """

    def __init__(self, target: SrtTarget) -> None:
        self._library = load_libsrt()
        self._written = False
        self._latency_s = target.latency_ms / 1000
        self._socket = self._library.srt_create_socket()
        try:
            self._set(_CONNTIMEO, target.connect_timeout_ms)
            linger = struct.pack("2H" if sys.platform == "win32" else "2i", 1, _LINGER_S)
            self._set(_LINGER, linger)
            self._set(_SNDTIMEO, _SEND_TIMEOUT_MS)
            self._set(_LATENCY, target.latency_ms)
            if target.stream_id:
                self._set(_STREAMID, target.stream_id.encode())
            if target.passphrase:
                self._set(_PBKEYLEN, target.key_bytes)
                self._set(_PASSPHRASE, target.passphrase.encode())
            address = _address(target.host, target.port)
            self._check(self._library.srt_connect(self._socket, address, len(address)))
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes) -> int:
        """Send; blocks while the send buffer is full."""
        for start in range(0, len(data), PAYLOAD_BYTES):
            part = bytes(data[start : start + PAYLOAD_BYTES])
            self._check(self._library.srt_send(self._socket, part, len(part)))
            self._written = True
        return len(data)

    def close(self) -> None:
        """Hang up once all is delivered, or after some seconds. Safe to call twice."""
        if self._socket >= 0:
            self._deliver()
            self._library.srt_close(self._socket)
            self._socket = -1

    def _deliver(self) -> None:
        """Wait for the last packets: a receiver drops what it holds back when one hangs up."""
        blocks, size = ctypes.c_size_t(), ctypes.c_size_t()
        until_s = time.monotonic() + _LINGER_S
        while time.monotonic() < until_s:
            waiting = (ctypes.byref(blocks), ctypes.byref(size))
            if self._library.srt_getsndbuffer(self._socket, *waiting) < 0:
                return  # not connected, or the line is dead
            if not blocks.value:
                break
            time.sleep(0.01)
        if self._written:
            time.sleep(self._latency_s)

    def _set(self, option: int, value: int | bytes) -> None:
        data = value if isinstance(value, bytes) else ctypes.c_int(value)
        size = len(value) if isinstance(value, bytes) else ctypes.sizeof(ctypes.c_int)
        pointer = data if isinstance(data, bytes) else ctypes.byref(data)
        self._check(self._library.srt_setsockflag(self._socket, option, pointer, size))

    def _check(self, result: int) -> None:
        if result < 0:
            raise ConnectionError(self._library.srt_getlasterror_str().decode(errors="replace"))


@cache
def load_libsrt() -> ctypes.CDLL:
    """Find the system's libsrt and start it.

    Raises:
        DependencyError: there is none.
    """
    found = [ctypes.util.find_library(name) for name in _NAMES]
    for name in (*filter(None, found), *_FILES):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.srt_getlasterror_str.restype = ctypes.c_char_p
        library.srt_startup()
        library.srt_setloglevel(0)  # its own lines on stderr say less than our errors
        return library
    raise DependencyError(
        "SRT needs the library libsrt, which is not installed. "
        f"Install it with: {_how_to_install()}."
    )


def _how_to_install() -> str:
    if sys.platform == "darwin":
        return "brew install srt"
    if sys.platform == "win32":
        return "the libsrt installer of the Haivision SRT project, and put srt.dll on PATH"
    return "apt install libsrt1.5-openssl (Debian, Ubuntu) or dnf install srt-libs (Fedora)"


def _address(host: str, port: int) -> bytes:
    """Resolve to a `sockaddr` as C lays it out."""
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    head = int(family).to_bytes(2, sys.byteorder)
    if sys.platform == "darwin":
        head = bytes([28 if family == socket.AF_INET6 else 16, family])
    packed = socket.inet_pton(family, str(where[0]).partition("%")[0])
    if family == socket.AF_INET6:
        return head + port.to_bytes(2, "big") + bytes(4) + packed + bytes(4)
    return head + port.to_bytes(2, "big") + packed + bytes(8)
