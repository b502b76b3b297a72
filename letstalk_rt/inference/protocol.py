"""What the engine needs of a model, and what a session may ask of it."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.types import MotionOptions, Portrait

DEFAULT_MOTION = MotionOptions()
Deliver = Callable[[np.ndarray], None]
"""Takes a part of a window, uint8, in the thread of the model."""

State = TypeVar("State")
"""All that a model remembers of one session; opaque to the engine."""


@dataclass(frozen=True, slots=True)
class StateOptions:
    """What a session may ask of a model.

    Attributes:
        seed: of everything random in the frames; the same seed and audio give the same video.
        steps: sampler steps per window, at least 1; the model's own when None.
        lookahead_frames: how much of the coming audio the frames wait for, from 0 to the model's
            own, which None stands for. Less is sooner, and the lips follow less well: what is
            missing of the audio is guessed.
        motion: how the face moves.

    Raises:
        ConfigError: `steps` is below 1.
    """

    seed: int = 0
    steps: int | None = None
    lookahead_frames: int | None = None
    motion: MotionOptions = DEFAULT_MOTION

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}")


DEFAULT_OPTIONS = StateOptions()


class Pipeline(Protocol[State]):
    """What the engine needs of a model: plain blocking calls, made from one thread at a time.

    Attributes:
        frames_per_window: N, how many frames one step makes.
        hop: how many samples one step takes, at 16 kHz.
        lookahead_frames: how far the frames are behind the audio.
        parts: numbers of frames in which a window is handed over; their sum is N.
    """

    frames_per_window: int
    hop: int
    lookahead_frames: int
    parts: Sequence[int]

    @property
    def device(self) -> object:
        """Where the model runs; `str` names it."""
        ...

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> State:
        """Make the state of a new session.

        Raises:
            PortraitError: `portrait` is not prepared for this model.
            ConfigError: an option is out of this model's range.
        """
        ...

    def step(
        self, pcm: np.ndarray, states: Sequence[State], deliver: Deliver | None = None
    ) -> np.ndarray:
        """Hear one hop and make one window, in each of B sessions.

        Args:
            pcm: `(B, hop)` float32 in [-1, 1].
            states: of B sessions that have one `batch_key`; updated in place.
            deliver: is called with each of the `parts` of the window in order, `(B, n, H, W, 3)`,
                as soon as it is made.

        Returns:
            `(B, N, H, W, 3)` uint8.
        """
        ...

    def interrupt(self, state: State, *, unseen: int = 0) -> None:
        """Forget the speech heard so far, but keep the face where it is.

        Nobody saw the last `unseen` frames: the movement goes on from the frame before them.
        """
        ...

    def change_portrait(self, state: State, portrait: Portrait) -> None:
        """Go on with another face, from the next window on.

        Raises:
            PortraitError: `portrait` is not prepared for this model; nothing has changed.
            ConfigError: this model cannot change faces.
        """
        ...

    def batch_key(self, state: State) -> Hashable:
        """Return what sessions must have in common to run in one step; from any thread, at once."""
        ...
