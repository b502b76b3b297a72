"""Directing a performance: moods, gestures, tags in text, and how the avatar listens.

All of it is arithmetic on a few numbers for each frame, which the model adds to what it samples.
Nothing here imports torch.
"""

from letstalk_rt.performance.gestures import GESTURES, Gesture
from letstalk_rt.performance.listening import LISTENING, Listening
from letstalk_rt.performance.moods import MOODS, Mood, Style, mood
from letstalk_rt.performance.performer import Performer
from letstalk_rt.performance.tags import Cue, TaggedText, parse_tags

__all__ = [
    "GESTURES",
    "LISTENING",
    "MOODS",
    "Cue",
    "Gesture",
    "Listening",
    "Mood",
    "Performer",
    "Style",
    "TaggedText",
    "mood",
    "parse_tags",
]
