"""A pipeline whose model runs in a process of its own, and is started again when that dies.

    pipeline = IsolatedPipeline("letstalk_rt.inference.pipeline:AvatarPipeline.load", {})
    worker = ModelWorker(pipeline)

Steps that hang are ended by a watchdog, memory is limited, and the process of the sessions goes on
whatever happens to the model. Session states live in the model's process and are lost with it:
calls then raise `StateLost`, and the session creates another state. Frames come through shared
memory. Nothing here imports torch.
"""

import statistics
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from letstalk_rt.errors import ConfigError, ModelLost, is_callers_mistake
from letstalk_rt.inference.camera_process import LOAD_CAMERAS, CameraProcess, IsolatedCamera
from letstalk_rt.inference.child_process import ChildProcess
from letstalk_rt.inference.model_messages import (
    AskMotion,
    Attached,
    Done,
    Failed,
    Motion,
    NeedSpace,
    Part,
    Request,
    Space,
)
from letstalk_rt.inference.protocol import (
    DEFAULT_OPTIONS,
    NOT_DIRECTABLE,
    Deliver,
    Fault,
    Pipeline,
    StateLost,
    StateOptions,
    Steering,
)
from letstalk_rt.inference.quality import Quality
from letstalk_rt.inference.shared_frames import FrameReader
from letstalk_rt.inference.supervisor import (
    DEFAULT_LIMITS,
    IsolationLimits,
    ModelHealth,
    ModelSupervisor,
)
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.types import Face, FaceTrack, MotionOptions, Portrait

SLOWER = 8.0
"""A step may take so many times as long as others, so that a slow machine is not taken for a model
that hangs."""

FIRST_STEP = 4.0
"""The first step of a frame size may take so many times as long as others."""

COMPILE_S = 300.0
"""Limit for the first step of a shape in a compiled model."""

MAX_RAISED = 2
"""After so many unexpected errors in a row the process is replaced: a failed GPU stays failed."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class IsolatedState:
    """The handle of a session state in the model's process.

    Attributes:
        number: its number there.
        generation: how many processes were lost before that one.
        key: its batch key, as text.
        size: height and width of its frames in pixels.
        steering: moves the face in the next window; None without a camera.
        direction: changes the motion of the next window; None if nothing does.
    """

    number: int
    generation: int
    key: str
    size: tuple[int, int]
    steering: Steering | None = None
    direction: DirectedWindow | None = None


class IsolatedPipeline(Pipeline[IsolatedState]):
    """The `Pipeline` of a model in a process of its own.

    Like every pipeline it is called from one thread at a time; `close`, `is_process_due`,
    `is_running` and `health` may be used from others. Blocks until the model is loaded.

    Args:
        load: the function that loads the pipeline in that process, as `module:name`.
        options: its keyword arguments.
        limits: what the process may take.
        clock: returns monotonic seconds.
        cameras: the function that loads what reads cameras, as `module:name`.

    Attributes:
        finder: the face finder of the model.

    Raises:
        LetsTalkError: the model cannot be loaded.
    """

    def __init__(
        self,
        load: str,
        options: Mapping[str, Any],
        *,
        limits: IsolationLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
        cameras: str = LOAD_CAMERAS,
    ) -> None:
        which = {key: options[key] for key in ("preset", "weights") if key in options}
        self._cameras = CameraProcess(cameras, which, limits)
        self._limits, self._clock = limits, clock
        self._supervisor = ModelSupervisor(load, options, limits, clock)
        self._frames = FrameReader()
        self._numbers = count()
        self._dropped: deque[int] = deque()
        self._steps_s: deque[float] = deque(maxlen=32)  # durations
        self._warm: set[Hashable] = set()  # what was computed before
        self._raised = 0  # in a row
        loaded = self._supervisor.loaded
        self._compiled, self._device = loaded.compiled, loaded.device
        self._camera_refusal = loaded.camera_refusal
        self.frames_per_window, self.hop = loaded.frames_per_window, loaded.hop
        self.lookahead_frames = loaded.lookahead_frames
        self.partial_sizes: Sequence[int] = loaded.partial_sizes
        self.quality_levels: Sequence[Quality] = loaded.quality_levels
        self.machine, self.is_directable = loaded.machine, loaded.is_directable
        self.finder = IsolatedFinder(self._find_faces, loaded.crop_px, loaded.fingerprint)

    @property
    def device(self) -> str:
        """The name of the model's device."""
        return self._device

    @property
    def pid(self) -> int | None:
        """The id of the model's process; None while there is none."""
        return self._supervisor.pid

    @property
    def health(self) -> ModelHealth:
        """What happened to the model."""
        return self._supervisor.health

    @property
    def is_running(self) -> bool:
        """Whether the model runs."""
        return self._supervisor.is_running

    @property
    def is_process_due(self) -> bool:
        """Whether `start_due` would start a process."""
        return self._supervisor.is_process_due

    def start_due(self) -> None:
        """Start the model if it does not run, or else a spare process if one is due.

        Raises:
            ModelLost: the model could not be started.
        """
        self._supervisor.start_due()

    def close(self) -> None:
        """End the processes; a running call raises `ModelLost`. May be called twice."""
        self._cameras.close()
        self._supervisor.close()
        with self._supervisor.exchange:
            self._frames.close()

    # The calls of a pipeline

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> IsolatedState:
        """Create the state of a session in the model's process, which is started if it is lost.

        Raises:
            PortraitError: `portrait` is not prepared for this model.
            ConfigError: an option is out of range.
            ModelLost: the model could not be started, or died of this call.
        """
        process, number = self._supervisor.running(), next(self._numbers)
        arguments = (number, portrait, options)
        key = self._call(process, "init_state", arguments, self._limits.call_s)
        state = IsolatedState(number, self._supervisor.generation, key, _size(portrait))
        weakref.finalize(state, self._dropped.append, number).atexit = False
        return state

    def step(
        self, pcm: np.ndarray, states: Sequence[IsolatedState], deliver: Deliver | None = None
    ) -> list[np.ndarray]:
        """Take one hop and return one window for each of B sessions; see `Pipeline.step`.

        Raises:
            StateLost: the model was started again since a state was created.
            ModelLost: the model died of this step, or it hung.
            EngineError: the step raised an exception, which the message describes.
        """
        process = self._process_of(states)
        began_s, kinds = self._clock(), self._kinds(states)
        limit_s = self._step_limit_s(kinds)
        windows: list[np.ndarray] = []

        def take(part: Part) -> None:
            if part.first == 0:
                shapes = [(self.frames_per_window, *size, 3) for size in part.sizes]
                windows.extend(np.empty(shape, np.uint8) for shape in shapes)
            self._frames.copy(windows, part.first, part.count)
            if deliver is not None:
                deliver([window[part.first : part.first + part.count] for window in windows])

        steerings = {index: s.steering for index, s in enumerate(states) if s.steering is not None}
        directions = {n: s.direction for n, s in enumerate(states) if s.direction is not None}
        for state in states:
            state.steering = state.direction = None

        def answer(ask: AskMotion) -> Motion:
            return Motion(steerings[ask.index](ask.first, ask.count))

        numbers = tuple(state.number for state in states)
        arguments = (pcm, numbers, deliver is not None, tuple(steerings), directions)
        self._call(process, "step", arguments, limit_s, take, answer)
        if kinds <= self._warm or not self._compiled:
            self._steps_s.append(self._clock() - began_s)
        self._warm |= kinds
        self._supervisor.note_step()
        return windows

    def interrupt(self, state: IsolatedState, *, unseen: int = 0) -> None:
        """Forget all past speech; see `Pipeline.interrupt`.

        Raises:
            ModelLost: the state or the model is lost.
        """
        process = self._process_of([state])
        self._call(process, "interrupt", (state.number, unseen), self._limits.call_s)

    def open_camera(self) -> IsolatedCamera:
        """Return a reader for the camera of one session; its process starts with a frame.

        Raises:
            ConfigError: no camera can drive this model.
        """
        if self._camera_refusal is not None:
            raise ConfigError(self._camera_refusal)
        return self._cameras.open()

    def steer(self, state: IsolatedState, steering: Steering) -> None:
        """Let a camera move the face in the next window; see `DrivablePipeline.steer`.

        If no camera can drive the model, the step raises `ConfigError`.
        """
        state.steering = steering

    def direct(self, state: IsolatedState, window: DirectedWindow) -> None:
        """Change the motion of the next window; see `Pipeline.direct`.

        Raises:
            ConfigError: the model cannot be directed.
        """
        if not self.is_directable:
            raise ConfigError(NOT_DIRECTABLE)
        state.direction = window

    def change_portrait(self, state: IsolatedState, portrait: Portrait) -> None:
        """Change the portrait from the next window on.

        Raises:
            PortraitError: `portrait` is not prepared for this model; nothing has changed.
            ConfigError: this model cannot change portraits.
            ModelLost: the state or the model is lost.
        """
        process = self._process_of([state])
        arguments = (state.number, portrait)
        state.key = self._call(process, "change_portrait", arguments, self._limits.call_s)
        state.size = _size(portrait)

    def set_motion(self, state: IsolatedState, motion: MotionOptions) -> None:
        """Change how the face of a session moves, from the next window on.

        Raises:
            ConfigError: this model cannot do that; nothing has changed.
            ModelLost: the state or the model is lost.
        """
        process = self._process_of([state])
        self._call(process, "set_motion", (state.number, motion), self._limits.call_s)

    def set_quality(self, state: IsolatedState, quality: Quality) -> None:
        """Change what is computed for a session from the next window on.

        Raises:
            ConfigError: this model has no such quality.
            ModelLost: the state or the model is lost.
        """
        process = self._process_of([state])
        self._call(process, "set_quality", (state.number, quality), self._limits.call_s)

    def batch_key(self, state: IsolatedState) -> Hashable:
        """Return what sessions must have in common to run in one step."""
        return state.generation, state.key

    def track_faces(self, frames: np.ndarray, last: FaceTrack | None) -> list[FaceTrack | None]:
        """Return the face in each of consecutive frames; see `AvatarPipeline.track_faces`.

        Raises:
            ConfigError: the model cannot follow faces.
            ModelLost: the model could not be started, or died of this call.
        """
        process, arguments = self._supervisor.running(), (frames, last)
        found: list[FaceTrack | None] = self._call(
            process, "track_faces", arguments, self._limits.portrait_s
        )
        return found

    def _find_faces(self, rgb: np.ndarray) -> list[Face]:
        found: list[Face] = self._call(
            self._supervisor.running(), "find_faces", (rgb,), self._limits.portrait_s
        )
        return found

    # The exchange with the process

    def _call(
        self,
        process: ChildProcess,
        name: str,
        arguments: tuple[Any, ...],
        limit_s: float,
        take: Callable[[Part], None] | None = None,
        answer: Callable[[AskMotion], Motion] | None = None,
    ) -> Any:
        """Run a call in the model's process and return its result."""
        began_s = self._clock()
        dropped = tuple(self._dropped.popleft() for _ in range(len(self._dropped)))
        with self._supervisor.exchange:
            try:
                with process.limit(limit_s):
                    process.send(Request(name, arguments, dropped))
                    reply = self._await_reply(process, take, answer)
            except ModelLost as error:
                self._lose(error, began_s)
                raise
            except BaseException as error:  # the exchange is cut off: it cannot go on
                self._lose(ModelLost(str(error), Fault.DIED), began_s)
                raise
        if isinstance(reply, Failed):
            self._note_error(reply.error, began_s)
            raise reply.error
        if name == "step":
            self._raised = 0
        return reply.result

    def _await_reply(
        self,
        process: ChildProcess,
        take: Callable[[Part], None] | None,
        answer: Callable[[AskMotion], Motion] | None,
    ) -> Done | Failed:
        while True:
            match process.receive():
                case Part() as part:
                    assert take is not None, "only steps have partial windows"
                    take(part)
                case AskMotion() as ask:
                    assert answer is not None, "only steps ask for motion"
                    with process.limit_held():
                        process.send(answer(ask))
                case NeedSpace(nbytes):
                    process.send(Space(self._allocate(nbytes)))
                case Attached():
                    self._frames.remove_name()
                case Done() | Failed() as reply:
                    return reply
                case other:
                    raise AssertionError(other)

    def _allocate(self, nbytes: int) -> str:
        try:
            return self._frames.allocate(nbytes)
        except OSError as error:
            raise ModelLost(
                f"no shared memory for frames of {nbytes / 2**20:.0f} MB ({error.strerror}); give "
                "the system more, in a container with --shm-size",
                Fault.MEMORY,
            ) from error

    def _kinds(self, states: Sequence[IsolatedState]) -> set[Hashable]:
        """Return all that must have been computed once before a step is fast."""
        kinds: set[Hashable] = {(state.generation, state.key, state.size) for state in states}
        if self._compiled:
            kinds.add((states[0].generation, states[0].key, len(states)))
        return kinds

    def _step_limit_s(self, kinds: set[Hashable]) -> float:
        usual_s = statistics.median(self._steps_s) if self._steps_s else 0.0
        limit_s = max(self._limits.step_s, SLOWER * usual_s)
        if kinds <= self._warm:
            return limit_s
        return COMPILE_S if self._compiled else FIRST_STEP * limit_s

    # Loss

    def _process_of(self, states: Sequence[IsolatedState]) -> ChildProcess:
        """Return the process that has these states."""
        process = self._supervisor.current()
        is_current = all(state.generation == self._supervisor.generation for state in states)
        if process is None or not is_current:
            raise StateLost("the model was started again; the state is gone", Fault.DIED)
        return process

    def _lose(self, error: ModelLost, began_s: float) -> None:
        self._supervisor.lose(error, began_s)
        self._frames.close()
        self._warm.clear()
        self._raised = 0

    def _note_error(self, error: Exception, began_s: float) -> None:
        """Count an unexpected error of a call, and replace the process after several in a row."""
        if is_callers_mistake(error):
            return
        self.health.faults[Fault.RAISED] += 1
        self._raised += 1
        if self._raised >= MAX_RAISED:
            self._lose(ModelLost(str(error), Fault.RAISED), began_s)


def _size(portrait: Portrait) -> tuple[int, int]:
    return portrait.canvas.shape[0], portrait.canvas.shape[1]


class IsolatedFinder:
    """The face finder of an isolated model.

    Args:
        find: finds faces in the model's process.
        crop_px: side in pixels of the crops that the model animates.
        fingerprint: differs between finders with different weights.
    """

    def __init__(
        self, find: Callable[[np.ndarray], list[Face]], crop_px: int, fingerprint: str
    ) -> None:
        self.crop_px = crop_px
        self._find, self._fingerprint = find, fingerprint

    def fingerprint(self) -> str:
        """Return a string that differs between finders with different weights."""
        return self._fingerprint

    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces in `(H, W, 3)` uint8, largest first.

        Raises:
            ModelLost: the model could not be started, or died of this call.
        """
        return self._find(rgb)
