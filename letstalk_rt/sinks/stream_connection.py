"""One connection to a streaming server, in a process of its own.

FFmpeg holds Python's interpreter lock while it connects and disconnects, which takes seconds if the
server does not respond and would block the session. A process can also be killed. It receives the
address on its standard input, because the address contains a secret.
"""

import os
import pickle
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import OutputContainer

from letstalk_rt.errors import LetsTalkError
from letstalk_rt.portrait.watermark import statement_metadata
from letstalk_rt.recording.av_encoder import AVEncoder, EncoderSettings
from letstalk_rt.sinks.srt import SrtSocket, SrtTarget

_CLOSE_TIMEOUT_S = 8.0


@dataclass(frozen=True)
class StreamTarget:
    """The destination and the settings of a stream.

    Attributes:
        url: address of the server.
        container: FFmpeg's name of the container format.
        options: FFmpeg's options of the connection.
        size: width and height of the frames.
        settings: settings of the encoder.
        stall_s: a server that accepts no data for this long counts as disconnected.
    """

    url: str
    container: str
    options: dict[str, str]
    size: tuple[int, int]
    settings: EncoderSettings
    stall_s: float


class StreamConnection:
    """An open connection; `write` and `finish` raise `OSError` when it is lost.

    Args:
        target: the destination. The constructor blocks until the server has responded.

    Raises:
        LetsTalkError: a dependency is missing.
        OSError: the connection failed or was refused.
    """

    def __init__(self, target: StreamTarget) -> None:
        command = [sys.executable, "-m", "letstalk_rt.sinks.stream_connection"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            self._send(target)
            self._check_reply()
        except BaseException:
            self.abort()
            raise

    def write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        """Send one frame; see `AVEncoder.write`."""
        self._send((rgb, pcm))

    def finish(self) -> None:
        """Send the frames that the encoders still buffer, then close; a few seconds at most."""
        try:
            self._send(None)
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError("the server does not accept the last frames") from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Kill the process. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # flushing to a dead process fails
                pipe.close()

    def _send(self, item: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(item, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def _check_reply(self) -> None:
        assert self._process.stdout is not None
        try:
            error = pickle.load(self._process.stdout)
        except EOFError:
            raise ConnectionError("the streaming process ended") from None
        if error is not None:
            raise error


def _serve(source: BinaryIO, replies: BinaryIO) -> None:
    """Connect, then send frames until the end mark; the process side of `StreamConnection`."""
    target: StreamTarget = pickle.load(source)
    try:
        container, socket = _open(target)
        encoder = AVEncoder(container, target.settings)
        encoder.start(*target.size)
        container.start_encoding()
    except (OSError, LetsTalkError) as error:
        _reply(replies, _picklable(error))
        return
    _reply(replies, None)
    with suppress(EOFError):  # the parent process has ended
        while (item := pickle.load(source)) is not None:
            encoder.write(*item)
    encoder.finish()
    container.close()
    if socket is not None:
        socket.close()


def _open(target: StreamTarget) -> tuple[OutputContainer, SrtSocket | None]:
    if target.url.startswith("srt:"):
        socket = SrtSocket(SrtTarget.parse(target.url))
        container = av.open(socket, "w", format=target.container, options=dict(target.options))
    else:
        # FFmpeg's tee passes options to the protocol, which PyAV does not (18.1).
        socket = None
        container = av.open(tee_name(target), "w", format="tee")
    container.metadata.update(statement_metadata())
    return container, socket


def tee_name(target: StreamTarget) -> str:
    """Return the server with its options in the syntax of FFmpeg's tee."""
    settings = target.options | {
        "f": target.container,
        "rw_timeout": str(int(target.stall_s * 1e6)),
    }
    options = ":".join(f"{name}={_escape(value, ':]=')}" for name, value in settings.items())
    return _escape(f"[{options}]{target.url}", "|")


def _escape(text: str, special: str) -> str:
    """Escape the characters that FFmpeg's parsers treat as special."""
    return re.sub(rf"([\\' {re.escape(special)}])", r"\\\1", text)


def _picklable(error: Exception) -> Exception:
    """Return an error that can be pickled; those of PyAV cannot."""
    return (
        OSError(error.errno, error.strerror or str(error)) if isinstance(error, OSError) else error
    )


def _reply(replies: BinaryIO, error: Exception | None) -> None:
    pickle.dump(error, replies)
    replies.flush()


def main() -> None:
    """Serve the connection described on standard input; exit with status 1 when it is lost."""
    try:
        _serve(sys.stdin.buffer, sys.stdout.buffer)
    except OSError:
        os._exit(1)  # skips the cleanup, which would write to the lost connection


if __name__ == "__main__":
    main()
