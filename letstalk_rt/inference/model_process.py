"""What runs in the process of an isolated model: it loads a pipeline and serves calls of it."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.child_main import EXIT_MEMORY, ProcessGuard, load_in, portable, run_child
from letstalk_rt.inference.model_messages import (
    AskMotion,
    Attached,
    Done,
    Failed,
    Loaded,
    Motion,
    NeedSpace,
    Part,
    Reply,
    Request,
    Space,
)
from letstalk_rt.inference.protocol import NOT_DRIVABLE, Pipeline, Windows
from letstalk_rt.inference.quality import Quality
from letstalk_rt.inference.shared_frames import FrameWriter
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.types import MotionOptions


def run_model(connection: "Connection[Any, Any]", load: str, memory_mb: int | None) -> None:
    """Serve one model; the main function of the process.

    Args:
        connection: to the `IsolatedPipeline`.
        load: the function that loads the pipeline, as `module:name`.
        memory_mb: see `run_child`.
    """
    run_child(partial(_serve, connection, load), memory_mb)


def _serve(connection: "Connection[Any, Any]", load: str, guard: ProcessGuard) -> None:
    pipeline: Pipeline[Any] | None = load_in(connection, load, guard)
    if pipeline is None:
        return
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
        machine=pipeline.machine,
        load_again=formats,
        camera_refusal=_camera_refusal(pipeline),
        is_directable=pipeline.is_directable,
    )


def _camera_refusal(pipeline: Pipeline[Any]) -> str | None:
    """Return why no camera can drive a model; None if one can."""
    if not hasattr(pipeline, "open_camera"):
        return NOT_DRIVABLE
    try:
        pipeline.open_camera().close()
    except ConfigError as error:
        return str(error)
    return None


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
            "set_motion": self._set_motion,
            "set_quality": self._set_quality,
            "find_faces": self._find_faces,
            "track_faces": self._track_faces,
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

    def _set_motion(self, number: int, motion: MotionOptions) -> None:
        self._pipeline.set_motion(self._states[number], motion)

    def _set_quality(self, number: int, quality: Quality) -> None:
        self._pipeline.set_quality(self._states[number], quality)

    def _find_faces(self, rgb: np.ndarray) -> Any:
        return getattr(self._pipeline, "finder").find_faces(rgb)  # noqa: B009 (not in the protocol)

    def _track_faces(self, *arguments: Any) -> Any:
        return getattr(self._pipeline, "track_faces")(*arguments)  # noqa: B009 (as above)

    def _step(
        self,
        pcm: np.ndarray,
        numbers: Sequence[int],
        in_parts: bool,
        steered: Sequence[int],
        directions: Mapping[int, DirectedWindow],
    ) -> None:
        sent = 0

        def send(parts: Windows) -> None:
            nonlocal sent
            self._send_parts(parts, sent)
            sent += len(parts[0])

        states = [self._states[number] for number in numbers]
        for index in steered:
            ask = partial(self._ask_motion, index)
            getattr(self._pipeline, "steer")(states[index], ask)  # noqa: B009 (not in the protocol)
        for index, direction in directions.items():
            self._pipeline.direct(states[index], direction)
        windows = self._pipeline.step(pcm, states, send if in_parts else None)
        if not in_parts:
            send(windows)

    def _ask_motion(self, index: int, first: int, count: int) -> DriveWindow | None:
        self._send(AskMotion(index, first, count))
        motion = self._connection.recv()
        assert isinstance(motion, Motion), type(motion)
        return motion.window

    def _send_parts(self, parts: Windows, first: int) -> None:
        assert all(part.dtype == np.uint8 and part.ndim == 4 for part in parts), "see `Windows`"
        self._frames.write(parts, first, self._pipeline.frames_per_window)
        sizes = tuple((part.shape[1], part.shape[2]) for part in parts)
        self._send(Part(first, len(parts[0]), sizes))

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
