"""Choosing a speech engine by what is wanted and what is installed."""

import os
from typing import Literal, get_args

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.speech.interface import TextToSpeech
from letstalk_rt.speech.openai import OpenAISpeech
from letstalk_rt.speech.piper import PiperSpeech
from letstalk_rt.speech.system import SystemSpeech

Engine = Literal["auto", "system", "openai", "piper"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


def open_speech(
    engine: Engine = "auto",
    voice: str | None = None,
    *,
    base_url: str | None = None,
    model: str | None = None,
) -> TextToSpeech:
    """Return a speech engine. It may block for some milliseconds.

    Args:
        engine: `system` (espeak-ng or flite, `say`, SAPI), `openai` (an HTTP endpoint, to which the
            text is sent), `piper`, or `auto`: Piper if `voice` is an .onnx file, the endpoint if
            `base_url` is given, else that of the system and, without one, the endpoint that the
            environment names.
        voice: name or file of the voice; None for the engine's default.
        base_url: address of the endpoint; see `OpenAISpeech`.
        model: model of the endpoint.

    Raises:
        ConfigError: the engine or the voice is unknown.
        DependencyError: nothing that can speak is installed; the message says what to install.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "auto":
        engine = _choose(voice, base_url)
    if engine == "piper":
        return PiperSpeech(voice)
    if engine == "openai":
        return OpenAISpeech(voice, base_url=base_url, model=model)
    try:
        return SystemSpeech(voice)
    except DependencyError as error:
        raise DependencyError(
            f"{error} Or use {pip_install('piper')} with a voice file, or an HTTP "
            "endpoint (OPENAI_BASE_URL)."
        ) from error


def _choose(voice: str | None, base_url: str | None) -> Engine:
    if voice is not None and voice.endswith(".onnx"):
        return "piper"
    if base_url is not None:
        return "openai"
    from letstalk_rt.speech.system import find_program

    named = os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")
    return "openai" if named and find_program() is None else "system"
