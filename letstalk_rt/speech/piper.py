"""Speech by Piper, a small neural network, with a voice file that the user names.

The package `piper-tts` is licensed under the GPL, this one is not: Piper runs as a program of its
own.
"""

import importlib.util
import json
import sys
from contextlib import aclosing
from pathlib import Path

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.speech.commands import Command, run_command
from letstalk_rt.speech.interface import Speech, prepare_text


class PiperSpeech:
    """Piper with one voice.

    Args:
        voice: path of a voice, a file that ends in .onnx, with its .onnx.json beside it.

    Raises:
        ConfigError: `voice` is not such a file.
        DependencyError: Piper is not installed.
    """

    name = "piper"

    def __init__(self, voice: str | Path | None) -> None:
        if voice is None or Path(voice).suffix != ".onnx":
            raise ConfigError(
                "piper needs a voice: the path of a file NAME.onnx with NAME.onnx.json beside it"
            )
        self._voice = Path(voice)
        self._rate = _sample_rate_of(self._voice)
        if importlib.util.find_spec("piper") is None:
            raise DependencyError(
                f"Piper is not installed; install it with: {pip_install('piper')}"
            )

    async def stream(self, text: str) -> Speech:
        """Speak a text; see `TextToSpeech.stream`."""
        prepared = prepare_text(text)
        words = [sys.executable, "-m", "piper", "--model", str(self._voice), "--output-raw"]
        command = Command(self.name, words, raw_rate=self._rate)
        async with aclosing(run_command(command, prepared)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk


def _sample_rate_of(voice: Path) -> int:
    """Return the sample rate of a voice, from the description beside it."""
    description = voice.with_name(voice.name + ".json")
    for file in (voice, description):
        if not file.is_file():
            raise ConfigError(
                f"{file} does not exist; a Piper voice is a file NAME.onnx and, beside it, "
                "NAME.onnx.json"
            )
    try:
        rate = json.loads(description.read_bytes())["audio"]["sample_rate"]
    except (ValueError, KeyError, TypeError):
        rate = None
    if not isinstance(rate, int):
        raise ConfigError(f"{description} is not the description of a Piper voice")
    return rate
