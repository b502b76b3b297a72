"""Text to speech: engines that turn text into PCM, piece by piece."""

from letstalk_rt.speech.engines import open_speech
from letstalk_rt.speech.interface import TextToSpeech

__all__ = ["TextToSpeech", "open_speech"]
