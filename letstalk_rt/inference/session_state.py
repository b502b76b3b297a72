"""The state of a session: a table with one typed state of each streaming part of the pipeline.

A part of the pipeline that remembers something of a session makes its own state and says here what
can be done with it. Nothing else has to know: `AvatarPipeline` lists its parts, and creates,
interrupts, resets and changes portraits of them all in one way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch

from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.inference.protocol import StateOptions, Steering
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.sampler import timesteps
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.types import Portrait


class BatchKey(NamedTuple):
    """The properties that all sessions of one batch must share.

    Attributes:
        steps: sampling steps per window.
        lookahead_frames: how many frames the video is behind the audio.
        parts: names of the states that they have; those of films are others than of pictures.
    """

    steps: int
    lookahead_frames: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class ShownPortrait:
    """A portrait, and what the model has made of it once.

    Attributes:
        portrait: the portrait.
        features: portrait features of the autoencoder, of one item.
    """

    portrait: Portrait
    features: Any

    @classmethod
    def of(cls, model: AvatarModel, portrait: Portrait) -> "ShownPortrait":
        """Encode a portrait.

        Raises:
            PortraitError: it is not prepared for this model.
        """
        crop, size = portrait.crop, model.autoencoder.image_size
        if crop.shape != (size, size, 3) or crop.dtype != np.uint8:
            raise PortraitError(
                f"the face crop must be ({size}, {size}, 3) uint8, "
                f"got {crop.shape} {crop.dtype}; make it with prepare_portrait"
            )
        device = model.motion_scale.device
        image = torch.from_numpy(crop.copy()).to(device).permute(2, 0, 1)[None]
        return cls(portrait, model.encode_portrait(image.float() / 127.5 - 1))


class PartState(Protocol):
    """What one part of the pipeline remembers of one session; tensors are written in place."""

    def interrupt(self, unseen: int) -> None:
        """Forget all past speech, and go on before the last `unseen` frames."""
        ...

    def reset(self) -> None:
        """Return to the initial state."""
        ...


StateT = TypeVar("StateT", bound=PartState)


class StreamingPart(Protocol):
    """A part of the pipeline that remembers something of each session.

    Attributes:
        kind: the type of its states.
    """

    @property
    def kind(self) -> type[PartState]: ...

    def init_state(self, shown: ShownPortrait, options: StateOptions) -> PartState | None:
        """Create the state of a session; None if the part has nothing to do in it.

        Raises:
            ConfigError: an option is not supported.
            PortraitError: the part cannot show the portrait.
        """
        ...

    def change_portrait(
        self, state: Any, shown: ShownPortrait, options: StateOptions
    ) -> PartState | None:
        """Return the state that goes on with another portrait, as `init_state` returns one.

        A part that may refuse a portrait does so before it changes anything.

        Args:
            state: the state until now, or None.
            shown: the portrait.
            options: those of the session.
        """
        ...


@dataclass
class SessionState:
    """Everything that the pipeline remembers of one session: `state[MotionState]` is one part.

    Attributes:
        options: options of the session.
        times: timesteps of the sampler.
        lookahead_frames: how many frames the video is behind the audio.
        parts: the states of the parts, by type.
        steering: moves the face in the next window; None without a camera.
        direction: changes the motion of the next window; None if nothing does.
    """

    options: StateOptions
    times: list[float]
    lookahead_frames: int
    parts: dict[type, PartState] = field(default_factory=dict)
    steering: Steering | None = None
    direction: DirectedWindow | None = None

    def __getitem__(self, kind: type[StateT]) -> StateT:
        """Return the state of a part, by its type."""
        return cast("StateT", self.parts[kind])

    def __contains__(self, kind: type[PartState]) -> bool:
        """Return whether there is a state of a type."""
        return kind in self.parts

    @property
    def batch_key(self) -> BatchKey:
        """The key that sessions must share to run in one batch."""
        names = tuple(kind.__name__ for kind in self.parts)
        return BatchKey(len(self.times), self.lookahead_frames, names)

    def take_steering(self) -> Steering | None:
        """Return what moves the face in the next window, which holds for that one only."""
        steering, self.steering = self.steering, None
        return steering

    def take_direction(self) -> DirectedWindow | None:
        """Return what changes the motion of the next window, which holds for that one only."""
        direction, self.direction = self.direction, None
        return direction

    def interrupt(self, unseen: int) -> None:
        """Forget all past speech; the motion goes on before the last `unseen` frames."""
        for part in self.parts.values():
            part.interrupt(unseen)

    @torch.inference_mode()
    def reset(self) -> None:
        """Return to the initial state: silence before, the face at rest as in the portrait."""
        for part in self.parts.values():
            part.reset()
        self.steering, self.direction = None, None


class StateFactory:
    """Creates the states of sessions, with all computation that is done once per portrait.

    Args:
        model: in eval mode, on its device and in its number formats.
        parts: what remembers something; those that may refuse a portrait first.
        steps: default number of sampling steps per window.
    """

    def __init__(self, model: AvatarModel, parts: Sequence[StreamingPart], *, steps: int) -> None:
        self._model, self._parts, self._steps = model, parts, steps

    @torch.inference_mode()
    def create(self, portrait: Portrait, options: StateOptions) -> SessionState:
        """Create the state of a session.

        Raises:
            PortraitError: `portrait` is not prepared for this model.
            ConfigError: `lookahead_frames` is out of range.
        """
        shown = ShownPortrait.of(self._model, portrait)
        lookahead = _lookahead(options, self._model.audio.lookahead_frames)
        times = timesteps(self._steps if options.steps is None else options.steps)
        made = [part.init_state(shown, options) for part in self._parts]
        return SessionState(options, times, lookahead, _by_type(made))

    @torch.inference_mode()
    def change_portrait(self, state: SessionState, portrait: Portrait) -> None:
        """Change the portrait from the next window on; the motion continues.

        Raises:
            PortraitError: `portrait` is not prepared for this model; nothing has changed.
        """
        shown = ShownPortrait.of(self._model, portrait)
        state.parts = _by_type(
            [
                part.change_portrait(state.parts.get(part.kind), shown, state.options)
                for part in self._parts
            ]
        )


def _by_type(states: Sequence[PartState | None]) -> dict[type, PartState]:
    return {type(state): state for state in states if state is not None}


def _lookahead(options: StateOptions, most: int) -> int:
    """Return the look-ahead in frames: the one of the options, or the model's own."""
    value = most if options.lookahead_frames is None else options.lookahead_frames
    if not 0 <= value <= most:
        raise ConfigError(f"lookahead_frames must be from 0 to {most}, got {value}")
    return value
