"""Sources of speech: a microphone, an audio file, any iterator of PCM."""

from letstalk_rt.sources.feed import feed
from letstalk_rt.sources.file import FileSource
from letstalk_rt.sources.microphone import Microphone

__all__ = ["FileSource", "Microphone", "feed"]
