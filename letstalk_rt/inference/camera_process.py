"""One process that reads the cameras of all sessions of an isolated model.

It is not the model's: a step takes up to 160 ms, for which a frame would have to wait, and a frame
must not delay a step. It is not that of the sessions either, which loads no torch and survives
whatever happens to those that do. It is started by the first camera.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from letstalk_rt.errors import ModelLost
from letstalk_rt.inference.child_main import ProcessGuard, load_in, portable, run_child
from letstalk_rt.inference.child_process import ChildProcess
from letstalk_rt.inference.model_messages import Done, Failed, Load, Request
from letstalk_rt.inference.protocol import CameraReader, CameraReading
from letstalk_rt.inference.supervisor import IsolationLimits

LOAD_CAMERAS = "letstalk_rt.inference.driver_camera:load_cameras"
"""Loads what reads cameras: a function that returns a `CameraReader` for each session."""

MOST_PX = 640
"""Larger frames are made smaller before they are sent to the process."""


class CameraProcess:
    """Starts the process when it is needed, again if it has ended, and calls it.

    May be used from any thread.

    Args:
        load: the function that loads what reads cameras, as `module:name`.
        options: its keyword arguments.
        limits: what the process may take.
    """

    def __init__(self, load: str, options: Mapping[str, Any], limits: IsolationLimits) -> None:
        self._load, self._options, self._limits = load, dict(options), limits
        self._numbers = count()
        self._lock = threading.Lock()  # of all below, and of the exchange
        self._process: ChildProcess | None = None
        self._closed = False

    def open(self) -> "IsolatedCamera":
        """Return a reader for the camera of one session."""
        return IsolatedCamera(self, next(self._numbers))

    def forget(self, number: int) -> None:
        """Forget a camera, if the process runs."""
        with self._lock:
            if self._process is None:
                return
        with suppress(ModelLost):
            self.call("close", number)

    def call(self, name: str, *arguments: Any) -> Any:
        """Run a call in the process.

        Raises:
            ModelLost: the process has ended, or was closed; the next call starts another.
            LetsTalkError: what the call has raised.
        """
        with self._lock:
            try:
                process = self._running()
                with process.limit(self._limits.call_s):
                    reply = _exchange(process, Request(name, arguments))
            except BaseException:
                self._end()
                raise
        if isinstance(reply, Failed):
            raise reply.error
        return reply.result

    def close(self) -> None:
        """End the process; a running call raises `ModelLost`. May be called twice."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()  # a call that runs ends at once
        with self._lock:
            self._end()

    def _running(self) -> ChildProcess:
        if self._closed:
            raise ModelLost("the model was closed")
        if self._process is None:
            self._process = ChildProcess(self._load, self._limits.memory_mb, main=run_cameras)
            with self._process.limit(self._limits.start_s):
                reply = _exchange(self._process, Load(self._options))
            if isinstance(reply, Failed):
                raise reply.error
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


def _exchange(process: ChildProcess, message: object) -> Done | Failed:
    process.send(message)
    reply = process.receive()
    assert isinstance(reply, Done | Failed), type(reply)
    return reply


class IsolatedCamera(CameraReader):
    """The `CameraReader` of one session, in the process of all cameras.

    Args:
        process: the process.
        number: of this camera there.
    """

    def __init__(self, process: CameraProcess, number: int) -> None:
        self._process, self._number = process, number

    def read(self, rgb: np.ndarray, captured_s: float, *, absolute: bool) -> CameraReading:
        """Read a frame; see `CameraReader.read`."""
        step = -(-max(rgb.shape[:2]) // MOST_PX)
        small = np.ascontiguousarray(rgb[::step, ::step])
        arguments = (self._number, small, captured_s, absolute)
        reading: CameraReading = self._process.call("read", *arguments)
        return reading

    def take_neutral(self) -> None:
        """Take the look of the next frames as the neutral one."""
        self._process.call("take_neutral", self._number)

    def close(self) -> None:
        """Forget the camera. May be called twice."""
        self._process.forget(self._number)


def run_cameras(connection: "Connection[Any, Any]", load: str, memory_mb: int | None) -> None:
    """Read cameras; the main function of the process.

    Args:
        connection: to the `CameraProcess`.
        load: see `CameraProcess`.
        memory_mb: see `run_child`.
    """
    run_child(partial(_serve, connection, load), memory_mb)


def _serve(connection: "Connection[Any, Any]", load: str, guard: ProcessGuard) -> None:
    open_camera: Callable[[], CameraReader] | None = load_in(connection, load, guard)
    if open_camera is None:
        return
    connection.send(Done())
    cameras: dict[int, CameraReader] = {}
    while True:
        request = connection.recv()
        try:
            connection.send(Done(_run(cameras, open_camera, request)))
        except Exception as error:
            connection.send(Failed(portable(error)))


def _run(
    cameras: dict[int, CameraReader], open_camera: Callable[[], CameraReader], request: Request
) -> Any:
    number, *arguments = request.arguments
    if request.call == "close":
        cameras.pop(number, None)
        return None
    camera = cameras.get(number) or cameras.setdefault(number, open_camera())
    if request.call == "take_neutral":
        return camera.take_neutral()
    rgb, captured_s, absolute = arguments
    return camera.read(rgb, captured_s, absolute=absolute)
