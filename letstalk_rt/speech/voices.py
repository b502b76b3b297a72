"""The voices that an engine can be asked for by name."""

import subprocess
from functools import cache

from letstalk_rt.speech.interface import TextToSpeech
from letstalk_rt.speech.openai import OpenAISpeech
from letstalk_rt.speech.system import find_program

_OPENAI = ("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer")
_FLITE = ("awb", "kal", "rms", "slt")


def list_voices(speech: TextToSpeech) -> list[str]:
    """Return the names of an engine's voices; none if it does not tell them. It may block."""
    if speech.name == "espeak-ng":
        return list(_espeak_voices())
    if speech.name == "flite":
        return list(_FLITE)
    if isinstance(speech, OpenAISpeech) and speech.is_openais_own:
        return list(_OPENAI)
    return []


@cache
def _espeak_voices() -> tuple[str, ...]:
    program = find_program()
    if program is None:
        return ()
    done = subprocess.run([program, "--voices"], capture_output=True, text=True, check=False)
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    return tuple(sorted({row[1] for row in rows if len(row) > 1}))
