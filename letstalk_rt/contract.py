"""What the engine needs of a model, and what a session may ask of one."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np

from letstalk_rt.audio.activity import VoiceActivity
from letstalk_rt.audio.segmenter import Segmenter
from letstalk_rt.errors import ConfigError
from letstalk_rt.playback import PlaybackMode
from letstalk_rt.types import FPS, MotionOptions, Portrait

AS_MADE = MotionOptions()
Deliver = Callable[[np.ndarray], None]
"""Takes a part of a window, `(B, n, H, W, 3)` uint8, in the thread of the model."""
_FRAME_MS = 1000 // FPS


class Pipeline(Protocol):
    """What the engine needs of a model: plain blocking calls, made from one thread."""

    frames_per_window: int
    hop: int
    lookahead_frames: int

    def init_state(self, portrait: Portrait, *, seed: int = 0) -> Any:
        """Make the state of a new session.

        A model that can be told more also takes `steps`, `lookahead_frames` and `motion`; they are
        given only where a session asks for them. One that has `change_portrait(state, portrait)`
        can go on with another face.
        """
        ...

    def step(self, pcm: np.ndarray, states: Sequence[Any]) -> np.ndarray:
        """Turn `(B, hop)` float32 into `(B, N, H, W, 3)` uint8; states are updated in place.

        A model that has `parts`, the numbers of frames in which it can hand a window over, also
        takes a third argument, `deliver`, and calls it with each part as soon as it is made.
        """
        ...

    def interrupt(self, state: Any, *, unseen: int = 0) -> None:
        """Forget the speech heard so far, but keep the face where it is.

        Nobody saw the last `unseen` frames: the movement goes on from the frame before them.
        """
        ...


class SessionOptions(TypedDict, total=False):
    """The options of a session; `AvatarSession` explains them."""

    idle: bool
    seed: int
    max_hops: int
    steps: int | None
    lookahead_ms: int | None
    motion: MotionOptions
    voice_activity: VoiceActivity
    playback: PlaybackMode


def segmenter_for(pipeline: Pipeline, lookahead_frames: int | None = None) -> Segmenter:
    """Make the segmenter that fits a model, at its own look-ahead or at less."""
    ahead = pipeline.lookahead_frames if lookahead_frames is None else lookahead_frames
    return Segmenter(pipeline.hop, pipeline.frames_per_window, ahead)


def frames_ahead(pipeline: Pipeline, lookahead_ms: int | None) -> int:
    """Give the look-ahead in frames.

    Raises:
        ConfigError: not a multiple of a frame from 0 to the model's own look-ahead.
    """
    most = pipeline.lookahead_frames
    if lookahead_ms is None:
        return most
    if lookahead_ms not in range(0, most * _FRAME_MS + 1, _FRAME_MS):
        raise ConfigError(
            f"lookahead_ms must be a multiple of {_FRAME_MS} from 0 to {most * _FRAME_MS}, "
            f"got {lookahead_ms!r}"
        )
    return lookahead_ms // _FRAME_MS


def wishes(
    pipeline: Pipeline, seed: int, steps: int | None, lookahead_frames: int, motion: MotionOptions
) -> dict[str, Any]:
    """Give the options of `init_state`; only what differs from what every model does.

    Raises:
        ConfigError: `steps` is below 1.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    wanted: dict[str, Any] = {"seed": seed}
    if steps is not None:
        wanted["steps"] = steps
    if lookahead_frames != pipeline.lookahead_frames:
        wanted["lookahead_frames"] = lookahead_frames
    if motion != AS_MADE:
        wanted["motion"] = motion
    return wanted
