"""The messages between an `IsolatedPipeline` and the process that runs its model.

Each request is answered by one `Done` or `Failed`. Before that, a step may send partial windows,
for which it may first need larger shared memory, and ask how a camera moves the face. All messages
are small, except those with a portrait or an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from letstalk_rt.inference.quality import Quality
from letstalk_rt.models.face.face_motion import DriveWindow


@dataclass(frozen=True, slots=True)
class Load:
    """Load the model; the first message to the process.

    Attributes:
        options: keyword arguments of the function that loads the pipeline.
    """

    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is loaded.

    Attributes:
        frames_per_window: see `Pipeline`.
        hop: see `Pipeline`.
        lookahead_frames: see `Pipeline`.
        partial_sizes: see `Pipeline`.
        device: the name of the model's device.
        crop_px: of the face finder; 0 if the pipeline has none.
        fingerprint: of the face finder.
        compiled: whether new shapes take a minute, because they are compiled.
        quality_levels: see `Pipeline`.
        machine: see `Pipeline`.
        load_again: options that load the same model sooner, because nothing is measured again.
        camera_refusal: why no camera can drive the model; None if one can.
        is_directable: see `Pipeline`.
    """

    frames_per_window: int
    hop: int
    lookahead_frames: int
    partial_sizes: tuple[int, ...]
    device: str
    crop_px: int
    fingerprint: str
    compiled: bool
    quality_levels: tuple[Quality, ...]
    machine: str
    load_again: Mapping[str, Any]
    camera_refusal: str | None
    is_directable: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A call of the pipeline.

    Attributes:
        call: name of the call.
        arguments: its arguments; states are given by their numbers.
        dropped: numbers of states that are no longer needed.
    """

    call: str
    arguments: tuple[Any, ...]
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A partial window of each session lies in the shared memory.

    Attributes:
        first: the number of its first frame in the window.
        count: the number of its frames.
        sizes: height and width of the frames of each session in pixels.
    """

    first: int
    count: int
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class NeedSpace:
    """A window does not fit into the shared memory; answered by `Space`."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Space:
    """New shared memory; answered by `Attached`."""

    name: str


@dataclass(frozen=True, slots=True)
class Attached:
    """The process has opened the shared memory, whose name may now be removed."""


@dataclass(frozen=True, slots=True)
class AskMotion:
    """A step is about to render frames that a camera moves; answered by `Motion`.

    Attributes:
        index: which of the sessions of the step.
        first: the number of the first frame in the window.
        count: the number of frames.
    """

    index: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Motion:
    """How a camera moves the face in the frames that were asked for; None if it does not."""

    window: DriveWindow | None


@dataclass(frozen=True, slots=True)
class Done:
    """A request is complete."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A request has raised an exception."""

    error: Exception


Reply = Loaded | Part | NeedSpace | Attached | AskMotion | Done | Failed
