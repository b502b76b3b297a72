"""A sending SRT socket by the system's libsrt, because FFmpeg in PyAV's wheels lacks SRT."""

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
"""Seven packets of MPEG-TS, the size of a datagram in live mode."""

_DEFAULT_LATENCY_MS = 120
_SEND_TIMEOUT_MS = 5000
_LINGER_S = 2
"""Longest time that closing waits for unsent data."""

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
    """The destination of an SRT connection.

    Attributes:
        host: host name or address of the listener.
        port: port of the listener.
        stream_id: SRT stream id.
        passphrase: 10 to 79 characters, or empty for no encryption.
        key_bytes: length of the encryption key: 16, 24 or 32.
        latency_ms: how long the listener waits for lost packets.
        connect_timeout_ms: timeout of the connection attempt.
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
        """Parse `srt://HOST:PORT?streamid=..&passphrase=..&latency=MS&pbkeylen=..`.

        Raises:
            ConfigError: `url` is not such an address.
        """
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        if options.pop("mode", "caller") != "caller":
            raise ConfigError(
                "Only the SRT mode 'caller' is supported; remove mode from the address."
            )
        try:
            host, port = parts.hostname, parts.port
            latency_ms = int(options.pop("latency", _DEFAULT_LATENCY_MS))
            key_bytes = int(options.pop("pbkeylen", 16))
        except ValueError as error:
            raise ConfigError(f"The SRT address contains an invalid number: {error}.") from error
        if not host or not port:
            raise ConfigError("The SRT address must be of the form srt://HOST:PORT?streamid=NAME.")
        stream_id, passphrase = options.pop("streamid", ""), options.pop("passphrase", "")
        if passphrase and not 10 <= len(passphrase) <= 79:
            raise ConfigError("The SRT passphrase must have 10 to 79 characters.")
        if key_bytes not in (16, 24, 32):
            raise ConfigError(f"pbkeylen is {key_bytes}; expected 16, 24 or 32 (bytes).")
        if options:
            raise ConfigError(
                f"The SRT address has the unknown option {next(iter(options))!r}; expected "
                "streamid, passphrase, pbkeylen or latency (milliseconds)."
            )
        return cls(host, port, stream_id, passphrase, key_bytes, latency_ms)


class SrtSocket:
    """A connected SRT caller, which PyAV uses as a file. Errors while sending are `OSError`s.

    Args:
        target: the destination. The constructor blocks until it is connected.

    Raises:
        DependencyError: libsrt is not installed.
        OSError: the connection failed or was refused.
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
        """Send `data`, and block while the send buffer is full."""
        for start in range(0, len(data), PAYLOAD_BYTES):
            packet = bytes(data[start : start + PAYLOAD_BYTES])
            self._check(self._library.srt_send(self._socket, packet, len(packet)))
            self._written = True
        return len(data)

    def close(self) -> None:
        """Close once all data is delivered, or after a few seconds. May be called twice."""
        if self._socket >= 0:
            self._drain()
            self._library.srt_close(self._socket)
            self._socket = -1

    def _drain(self) -> None:
        """Wait until the last packets are received; a receiver drops its buffer on close."""
        blocks, size = ctypes.c_size_t(), ctypes.c_size_t()
        until_s = time.monotonic() + _LINGER_S
        while time.monotonic() < until_s:
            counts = ctypes.byref(blocks), ctypes.byref(size)
            if self._library.srt_getsndbuffer(self._socket, *counts) < 0:
                return  # not connected any more
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
    """Load the system's libsrt and start it.

    Raises:
        DependencyError: libsrt is not installed.
    """
    found = [ctypes.util.find_library(name) for name in _NAMES]
    for name in (*filter(None, found), *_FILES):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.srt_getlasterror_str.restype = ctypes.c_char_p
        library.srt_startup()
        library.srt_setloglevel(0)  # its lines on stderr add nothing to our errors
        return library
    raise DependencyError(
        "SRT needs the library libsrt, which is not installed. "
        f"Install it with: {_install_instruction()}."
    )


def _install_instruction() -> str:
    if sys.platform == "darwin":
        return "brew install srt"
    if sys.platform == "win32":
        return "the libsrt installer of the Haivision SRT project, then add srt.dll to PATH"
    return "apt install libsrt1.5-openssl (Debian, Ubuntu) or dnf install srt-libs (Fedora)"


def _address(host: str, port: int) -> bytes:
    """Resolve a host and return it as a C `sockaddr`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    head = int(family).to_bytes(2, sys.byteorder)
    if sys.platform == "darwin":
        head = bytes([28 if family == socket.AF_INET6 else 16, family])
    packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
    if family == socket.AF_INET6:
        return head + port.to_bytes(2, "big") + bytes(4) + packed + bytes(4)
    return head + port.to_bytes(2, "big") + packed + bytes(8)
