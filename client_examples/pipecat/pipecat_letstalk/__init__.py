"""A talking avatar in a Pipecat pipeline: speech of any TTS service in, live video out."""

from pipecat_letstalk.performance import (
    AvatarGestureFrame,
    AvatarListeningFrame,
    AvatarMoodFrame,
)
from pipecat_letstalk.transports import output_params
from pipecat_letstalk.video import LetsTalkVideoService

__version__ = "0.1.0"

__all__ = [
    "AvatarGestureFrame",
    "AvatarListeningFrame",
    "AvatarMoodFrame",
    "LetsTalkVideoService",
    "output_params",
]
