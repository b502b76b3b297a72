"""Frames that direct the avatar. Each takes its place among the frames of speech."""

from dataclasses import dataclass
from typing import TypeAlias

from pipecat.frames.frames import DataFrame

from letstalk_rt.performance import Listening, Style


@dataclass
class AvatarMoodFrame(DataFrame):
    """Changes how the avatar feels.

    Attributes:
        mood: a name of `letstalk_rt.performance.MOODS`, or a style.
        strength: how much of it is shown, from 0 to 1.
    """

    mood: str | Style
    strength: float = 1.0


@dataclass
class AvatarGestureFrame(DataFrame):
    """Makes a gesture: within speech, at the end of the speech that came before this frame.

    Attributes:
        gesture: a name of `letstalk_rt.performance.GESTURES`.
        amount: how large it is, from 0.1 to 2.
    """

    gesture: str
    amount: float = 1.0


@dataclass
class AvatarListeningFrame(DataFrame):
    """Changes how the avatar shows its attention while the user speaks.

    Attributes:
        mode: `off`, `calm` or `attentive`.
    """

    mode: Listening


Direction: TypeAlias = AvatarMoodFrame | AvatarGestureFrame | AvatarListeningFrame
