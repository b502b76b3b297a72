"""Sources of speech: a microphone, an audio file, text, any iterator of PCM; and cameras."""

from letstalk_rt.sources.camera import Camera, watch
from letstalk_rt.sources.feed import feed
from letstalk_rt.sources.file import FileSource
from letstalk_rt.sources.microphone import Microphone
from letstalk_rt.sources.text import say

__all__ = ["Camera", "FileSource", "Microphone", "feed", "say", "watch"]
