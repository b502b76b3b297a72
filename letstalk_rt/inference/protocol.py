"""The `Pipeline` protocol: what the engine requires of a model, and the options of a session."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import numpy as np

from letstalk_rt.errors import ConfigError, ModelLost
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.types import MotionOptions, Portrait

DEFAULT_MOTION = MotionOptions()

MAX_STEPS = 50
MAX_SEED = 2**63 - 1

Windows = Sequence[np.ndarray] | np.ndarray
"""One window or partial window of each session of a batch: B arrays `(n, H, W, 3)` uint8 whose
sizes may differ, or one array `(B, n, H, W, 3)`."""

Deliver = Callable[[Windows], None]
"""Receives the partial windows of a batch, in the model thread."""

DeliverFrames = Callable[[np.ndarray], None]
"""Receives a partial window of one session, `(n, H, W, 3)` uint8, in the model thread."""

Steering = Callable[[int, int], DriveWindow | None]
"""Returns how a camera moves the face in some frames of a window: their first number and their
count are given. None leaves the face alone. Called in the model thread, for all frames in order,
just before these are rendered; it may wait for motion that is still to come."""

State = TypeVar("State")
"""Everything that a model remembers of one session; opaque to the engine."""


@dataclass(frozen=True, slots=True)
class StateOptions:
    """Options of a session that its model applies.

    Attributes:
        seed: seed of all randomness, from 0 to `MAX_SEED`; the same seed and audio give the same
            video.
        steps: sampling steps per window, from 1 to `MAX_STEPS`; None for the model's default.
        lookahead_frames: frames of following audio that each frame waits for, from 0 to the model's
            own look-ahead, which is the default. A lower value reduces latency and lip-sync
            accuracy, because the missing audio is guessed.
        motion: how the face moves.

    Raises:
        ConfigError: `seed` or `steps` is out of range.
    """

    seed: int = 0
    steps: int | None = None
    lookahead_frames: int | None = None
    motion: MotionOptions = DEFAULT_MOTION

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.steps is not None:
            check_steps(self.steps)


def check_seed(seed: int) -> None:
    """Check a seed, so that no random number generator fails later.

    Raises:
        ConfigError: it is not an integer from 0 to `MAX_SEED`.
    """
    if not (isinstance(seed, int | np.integer) and 0 <= seed <= MAX_SEED):
        raise ConfigError(f"seed must be an integer from 0 to {MAX_SEED}, got {seed!r}")


def check_steps(steps: int) -> None:
    """Check a number of sampling steps.

    Raises:
        ConfigError: it is not an integer from 1 to `MAX_STEPS`.
    """
    if not (isinstance(steps, int | np.integer) and 1 <= steps <= MAX_STEPS):
        raise ConfigError(f"steps must be an integer from 1 to {MAX_STEPS}, got {steps!r}")


DEFAULT_OPTIONS = StateOptions()


class Fault(StrEnum):
    """What went wrong with a model: the `fault` of a `ModelLost`, and a label of metrics."""

    RAISED = "raised"
    HUNG = "hung"
    MEMORY = "memory"
    DIED = "died"
    START = "start"


class StateLost(ModelLost):
    """A state is gone, or none can be created now, because the model is started again.

    It is no fault of the call that raises it: create another state, and call again.
    """


class CameraStatus(StrEnum):
    """What a camera sees."""

    FACE = "face"
    NO_FACE = "no-face"
    SEVERAL = "several-faces"
    LEARNING = "learning"


@dataclass(frozen=True, slots=True)
class CameraReading:
    """What was read in one frame of a camera.

    Attributes:
        status: what it shows; `LEARNING` while the neutral look of the driver is being learnt.
        motion: face motion, `(NUM_MOTION,)` float32; None unless the status is `FACE`.
    """

    status: CameraStatus
    motion: np.ndarray | None = None


class CameraReader(Protocol):
    """Reads the camera of one session. Its calls block, and come from one thread at a time."""

    def read(self, rgb: np.ndarray, captured_s: float, *, absolute: bool) -> CameraReading:
        """Read a frame.

        Args:
            rgb: `(H, W, 3)` uint8.
            captured_s: when it was captured, increasing.
            absolute: whether the head pose is absolute, or relative to the neutral look.

        Raises:
            ModelLost: the reader's process has ended; the next call starts another.
        """
        ...

    def take_neutral(self) -> None:
        """Take the look of the next frames as the neutral one."""
        ...

    def close(self) -> None:
        """Release what the reader holds. May be called twice."""
        ...


NOT_DRIVABLE = "no camera can drive this model; use the embedded one, 'tiny'"
"""What callers are told of a pipeline that is no `DrivablePipeline`."""

NOT_DIRECTABLE = (
    "this model has no motion denoiser, which moods, gestures and listening need; use the embedded "
    "one, 'tiny'"
)
"""What callers are told of a pipeline that cannot be directed."""


class DrivablePipeline(Protocol):
    """What a pipeline offers whose faces a camera can move, beside a `Pipeline`."""

    def open_camera(self) -> CameraReader:
        """Return a reader for the camera of one session. May be called from any thread.

        Raises:
            ConfigError: no camera can drive this model.
        """
        ...

    def steer(self, state: Any, steering: Steering) -> None:
        """Let a camera move the face in the next window.

        A step of this session alone that delivers partial windows asks for the motion of a few
        frames at a time, so that later ones can show newer motion; others ask once, for all.

        Args:
            state: state of the session; updated in place.
            steering: called by the next step. `DriveWindow.part` is one, of a known window.
        """
        ...


class Pipeline(Protocol[State]):
    """What the engine requires of a model: blocking calls, made from one thread at a time.

    A call that raises anything but an `InputError` or a `ConfigError` leaves its states undefined.

    Attributes:
        frames_per_window: N, the number of frames that one step generates.
        hop: the number of samples at 16 kHz that one step consumes.
        lookahead_frames: how many frames the video is behind the audio.
        partial_sizes: number of frames in each partial window; their sum is N.
        quality_levels: what `set_quality` accepts, from full quality down.
        machine: the hash of this machine, and what else the duration of a step depends on, but for
            the portrait; empty if it is not worth keeping.
        is_directable: whether `direct` changes the motion.
    """

    frames_per_window: int
    hop: int
    lookahead_frames: int
    partial_sizes: Sequence[int]
    quality_levels: Sequence[Quality] = (FULL_QUALITY,)
    machine: str = ""
    is_directable: bool = False

    @property
    def device(self) -> object:
        """The device that the model runs on; `str` returns its name."""
        ...

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> State:
        """Create the state of a new session.

        Raises:
            PortraitError: `portrait` is not prepared for this model.
            ConfigError: an option is out of range for this model.
        """
        ...

    def step(
        self, pcm: np.ndarray, states: Sequence[State], deliver: Deliver | None = None
    ) -> Windows:
        """Take one hop and return one window for each of B sessions.

        Args:
            pcm: `(B, hop)` float32 in [-1, 1].
            states: states of B sessions with the same `batch_key`; updated in place.
            deliver: called with the partial windows in order, as soon as they are ready.

        Returns:
            One window of each session.
        """
        ...

    def interrupt(self, state: State, *, unseen: int = 0) -> None:
        """Forget all past speech; the motion continues from the present position of the face.

        Args:
            state: state of the session; updated in place.
            unseen: how many of the last frames were never shown; the motion continues from the
                frame before them.
        """
        ...

    def change_portrait(self, state: State, portrait: Portrait) -> None:
        """Change the portrait from the next window on, whose first image is a new one.

        Raises:
            PortraitError: `portrait` is not prepared for this model; nothing has changed.
            ConfigError: this model cannot change portraits.
        """
        ...

    def set_motion(self, state: State, motion: MotionOptions) -> None:
        """Change how the face of a session moves, from the next window on.

        Raises:
            ConfigError: this model cannot do that; nothing has changed.
        """
        raise ConfigError("this model moves in one way only")

    def set_quality(self, state: State, quality: Quality) -> None:
        """Change what is computed for a session from the next window on.

        A state has full quality at first. Models with one quality need not implement this.

        Raises:
            ConfigError: this model has no such quality.
        """
        raise ConfigError("this model has one quality only")

    def direct(self, state: State, window: DirectedWindow) -> None:
        """Change the motion of the next window; returns at once.

        May be called from any thread while no step of this state runs. Models that are not
        directable need not implement this.

        Raises:
            ConfigError: this model cannot be directed.
        """
        raise ConfigError(NOT_DIRECTABLE)

    def batch_key(self, state: State) -> Hashable:
        """Return the key that sessions of one batch share; may be called from any thread."""
        ...
