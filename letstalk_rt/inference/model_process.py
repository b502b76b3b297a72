"""What runs in the process of an isolated model: it loads a pipeline and serves calls of it.

The process ends when its connection is closed or its parent dies, and when it takes more memory
than allowed. It is started with its modules imported and without a model, so that a spare process
is ready within a second.
"""

import gc
import os
import pkgutil
import platform
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from letstalk_rt.errors import EngineError, LetsTalkError
from letstalk_rt.inference.model_messages import (
    Attached,
    Done,
    Failed,
    Load,
    Loaded,
    NeedSpace,
    Part,
    Reply,
    Request,
    Space,
)
from letstalk_rt.inference.protocol import Pipeline
from letstalk_rt.inference.quality import Quality
from letstalk_rt.inference.shared_frames import FrameWriter
from letstalk_rt.threads import shorten_openmp_spin

EXIT_MEMORY = 77
"""Exit status of a process that took too much memory."""

WATCH_S = 0.1
GROWTH_MB, GROWTH = 2048, 2.0
"""Without a limit, a process may grow by so much after loading, or to so many times its size."""


def run_model(connection: "Connection[Any, Any]", load: str, memory_mb: int | None) -> None:
    """Serve one model; the main function of the process.

    Args:
        connection: to the `IsolatedPipeline`.
        load: the function that loads the pipeline, as `module:name`.
        memory_mb: how much memory the process may take; None for a limit relative to its size
            after loading.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    offer_to_oom_killer()
    shorten_openmp_spin()
    guard = ProcessGuard(memory_mb)
    with suppress(EOFError, OSError):  # the parent has closed the connection
        _serve(connection, load, guard)


def _serve(connection: "Connection[Any, Any]", load: str, guard: "ProcessGuard") -> None:
    function: Callable[..., Pipeline[Any]] = pkgutil.resolve_name(load)
    message = connection.recv()
    assert isinstance(message, Load), type(message)
    try:
        pipeline = function(**message.options)
    except Exception as error:
        connection.send(Failed(portable(error)))
        return
    gc.collect()
    gc.freeze()  # scanning what is loaded would delay all sessions
    guard.limit_growth()
    connection.send(_describe(pipeline))
    server = _ModelServer(pipeline, connection)
    while True:
        connection.send(server.reply(connection.recv()))


def _describe(pipeline: Pipeline[Any]) -> Loaded:
    finder = getattr(pipeline, "finder", None)
    variant = getattr(pipeline, "variant", None)
    has_formats = hasattr(variant, "dtype") and hasattr(variant, "compiled")
    names = ("dtype", "compiled") if has_formats else ()
    formats = {name: getattr(variant, name) for name in names}
    return Loaded(
        frames_per_window=pipeline.frames_per_window,
        hop=pipeline.hop,
        lookahead_frames=pipeline.lookahead_frames,
        partial_sizes=tuple(pipeline.partial_sizes),
        device=str(pipeline.device),
        crop_px=finder.crop_px if finder is not None else 0,
        fingerprint=finder.fingerprint() if finder is not None else "",
        compiled=bool(formats.get("compiled")),
        quality_levels=tuple(pipeline.quality_levels),
        load_again=formats,
    )


class _ModelServer:
    """Runs the calls of a pipeline that arrive as requests.

    Args:
        pipeline: the model.
        connection: to the `IsolatedPipeline`.
    """

    def __init__(self, pipeline: Pipeline[Any], connection: "Connection[Any, Any]") -> None:
        self._pipeline, self._connection = pipeline, connection
        self._states: dict[int, Any] = {}
        self._frames = FrameWriter(self._allocate, lambda: self._send(Attached()))
        self._calls: Mapping[str, Callable[..., Any]] = {
            "init_state": self._init_state,
            "step": self._step,
            "interrupt": self._interrupt,
            "change_portrait": self._change_portrait,
            "set_quality": self._set_quality,
            "find_faces": self._find_faces,
            "track_faces": self._track_faces,
            "drive": self._drive,
        }

    def reply(self, request: Request) -> Done | Failed:
        """Run a call and return its reply."""
        for number in request.dropped:
            self._states.pop(number, None)
        try:
            return Done(self._calls[request.call](*request.arguments))
        except MemoryError:
            os._exit(EXIT_MEMORY)
        except Exception as error:
            return Failed(portable(error))

    def _init_state(self, number: int, *arguments: Any) -> str:
        self._states[number] = self._pipeline.init_state(*arguments)
        return self._key(number)

    def _change_portrait(self, number: int, portrait: Any) -> str:
        self._pipeline.change_portrait(self._states[number], portrait)
        return self._key(number)

    def _interrupt(self, number: int, unseen: int) -> None:
        self._pipeline.interrupt(self._states[number], unseen=unseen)

    def _drive(self, number: int, window: Any) -> None:
        getattr(self._pipeline, "drive")(self._states[number], window)  # noqa: B009 (as below)

    def _set_quality(self, number: int, quality: Quality) -> None:
        self._pipeline.set_quality(self._states[number], quality)

    def _find_faces(self, rgb: np.ndarray) -> Any:
        return getattr(self._pipeline, "finder").find_faces(rgb)  # noqa: B009 (not in the protocol)

    def _track_faces(self, *arguments: Any) -> Any:
        return getattr(self._pipeline, "track_faces")(*arguments)  # noqa: B009 (as above)

    def _step(self, pcm: np.ndarray, numbers: Sequence[int], in_parts: bool) -> None:
        sent = 0

        def send(part: np.ndarray) -> None:
            nonlocal sent
            self._send_part(part, sent)
            sent += part.shape[1]

        states = [self._states[number] for number in numbers]
        window = self._pipeline.step(pcm, states, send if in_parts else None)
        if not in_parts:
            send(window)

    def _send_part(self, part: np.ndarray, first: int) -> None:
        assert part.dtype == np.uint8 and part.ndim == 5, (part.dtype, part.shape)
        batch, count, height, width, channels = part.shape
        window = batch, self._pipeline.frames_per_window, height, width, channels
        self._frames.write(part, first, window)
        self._send(Part(first, (batch, count, height, width, channels)))

    def _key(self, number: int) -> str:
        # As text: the key itself may be of a type whose module imports torch.
        return repr(self._pipeline.batch_key(self._states[number]))

    def _allocate(self, nbytes: int) -> str:
        self._send(NeedSpace(nbytes))
        space = self._connection.recv()
        assert isinstance(space, Space), type(space)
        return space.name

    def _send(self, reply: Reply) -> None:
        self._connection.send(reply)


def portable(error: Exception) -> Exception:
    """Return an error that the other process can read, with the traceback as a note."""
    if not isinstance(error, LetsTalkError):
        error_of_step = EngineError(f"{type(error).__name__}: {error}")
        error_of_step.add_note("".join(traceback.format_exception(error)))
        return error_of_step
    return error


class ProcessGuard:
    """A thread that ends the process when its parent has died or it takes too much memory.

    Args:
        memory_mb: how much memory the process may take; None until `limit_growth`.
    """

    def __init__(self, memory_mb: int | None) -> None:
        self._most_bytes = memory_mb * 2**20 if memory_mb is not None else None
        self._has_limit = memory_mb is not None
        threading.Thread(target=self._watch, name="letstalk-guard", daemon=True).start()

    def limit_growth(self) -> None:
        """Set the limit relative to the present size, if none was given."""
        used = resident_bytes()
        if not self._has_limit and used is not None:
            self._most_bytes = int(max(GROWTH * used, used + GROWTH_MB * 2**20))

    def _watch(self) -> None:
        parent = parent_process()
        assert parent is not None, "this runs in a process of its own"
        while not wait([parent.sentinel], WATCH_S):
            used = resident_bytes()
            if self._most_bytes is not None and used is not None and used > self._most_bytes:
                os._exit(EXIT_MEMORY)
        os._exit(0)


def resident_bytes() -> int | None:
    """Return the resident memory of this process; on macOS its maximum; None where unknown."""
    if platform.system() == "Linux":
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    if platform.system() == "Darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def offer_to_oom_killer() -> None:
    """Make the system end this process first when memory runs out, and not the session's."""
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
