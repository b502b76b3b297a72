"""One line to a streaming server, kept by a process of its own.

FFmpeg holds Python's interpreter while it connects and hangs up, which takes seconds when the
server does not answer, and the whole session would stand still. A process can also be ended when
nothing else helps. It is given the address through its standard input, for it holds a secret.
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
from letstalk_rt.sinks.av_encoder import AVEncoder, EncoderSettings
from letstalk_rt.sinks.srt import SrtSocket, SrtTarget

_HANG_UP_S = 8.0


@dataclass(frozen=True)
class StreamTarget:
    """Where to send, and how.

    Attributes:
        url: of the server.
        form: FFmpeg's name of the container.
        options: of the line, in FFmpeg's words.
        size: width and height of the pictures.
        settings: of the encoders.
        stall_s: a server that takes nothing for so long is gone.
    """

    url: str
    form: str
    options: dict[str, str]
    size: tuple[int, int]
    settings: EncoderSettings
    stall_s: float


class StreamConnection:
    """A line that is up; `write` and `finish` raise `OSError` when it breaks.

    Args:
        target: where to. Blocking until the server has answered.

    Raises:
        LetsTalkError: something is missing to send at all.
        OSError: nobody listens there, or it refuses.
    """

    def __init__(self, target: StreamTarget) -> None:
        words = [sys.executable, "-m", "letstalk_rt.sinks.stream_connection"]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            self._send(target)
            self._check_answer()
        except BaseException:
            self.hang_up()
            raise

    def write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        """Send one frame; see `AVEncoder.write`."""
        self._send((rgb, pcm))

    def finish(self) -> None:
        """Send what the encoders still hold, and hang up; some seconds at most."""
        try:
            self._send(None)
            self._process.wait(_HANG_UP_S)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError("the server does not take the last frames") from error
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """End it at once. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # it writes what the process will not read any more
                pipe.close()

    def _send(self, item: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(item, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def _check_answer(self) -> None:
        assert self._process.stdout is not None
        try:
            problem = pickle.load(self._process.stdout)
        except EOFError:
            raise ConnectionError("the process that keeps the line ended") from None
        if problem is not None:
            raise problem


def _keep(source: BinaryIO, answers: BinaryIO) -> None:
    """Connect, then send frames until told to end; the other end of `StreamConnection`."""
    target: StreamTarget = pickle.load(source)
    try:
        container, socket = _open(target)
        encoder = AVEncoder(container, target.settings)
        encoder.start(*target.size)
        container.start_encoding()
    except (OSError, LetsTalkError) as error:
        _answer(answers, _plain(error))
        return
    _answer(answers, None)
    with suppress(EOFError):  # whoever we work for is gone
        while (item := pickle.load(source)) is not None:
            encoder.write(*item)
    encoder.finish()
    container.close()
    if socket is not None:
        socket.close()


def _open(target: StreamTarget) -> tuple[OutputContainer, SrtSocket | None]:
    if target.url.startswith("srt:"):
        socket = SrtSocket(SrtTarget.parse(target.url))
        container = av.open(socket, "w", format=target.form, options=dict(target.options))
    else:
        # FFmpeg's tee hands options on to the line, which PyAV does not (18.1).
        socket = None
        container = av.open(tee_name(target), "w", format="tee")
    container.metadata.update(statement_metadata())
    return container, socket


def tee_name(target: StreamTarget) -> str:
    """Name a server with its options as FFmpeg's tee reads it."""
    given = target.options | {"f": target.form, "rw_timeout": str(int(target.stall_s * 1e6))}
    options = ":".join(f"{name}={_quoted(value, ':]=')}" for name, value in given.items())
    return _quoted(f"[{options}]{target.url}", "|")


def _quoted(text: str, special: str) -> str:
    """Escape what FFmpeg's parsers take for more than itself."""
    return re.sub(rf"([\\' {re.escape(special)}])", r"\\\1", text)


def _plain(error: Exception) -> Exception:
    """Give an error that can be sent: those of PyAV hold more than can be."""
    return (
        OSError(error.errno, error.strerror or str(error)) if isinstance(error, OSError) else error
    )


def _answer(answers: BinaryIO, problem: Exception | None) -> None:
    pickle.dump(problem, answers)
    answers.flush()


def main() -> None:
    """Keep one line, as standard input says; exit with 1 when it breaks."""
    try:
        _keep(sys.stdin.buffer, sys.stdout.buffer)
    except OSError:
        os._exit(1)  # no last words to a line that is gone


if __name__ == "__main__":
    main()
