"""Choosing the parts of a conversation by URL or by name."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from letstalk_rt.conversation.interface import Chat, Recogniser, ToolCallback
from letstalk_rt.conversation.openai_chat import OpenAIChat
from letstalk_rt.conversation.openai_recogniser import OpenAIRecogniser
from letstalk_rt.conversation.recogniser_process import ProcessRecogniser
from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.extras import pip_install

RecogniserName = Literal["auto", "openai", "whisper", "pocketsphinx"]
RECOGNISERS: tuple[RecogniserName, ...] = get_args(RecogniserName)
LAST_RESORT = "pocketsphinx"
"""It knows English only and mishears much; whoever uses it should be told."""


def open_chat(
    url: str,
    model: str,
    *,
    tools: Sequence[dict[str, Any]] = (),
    on_tool_call: ToolCallback | None = None,
) -> Chat:
    """Return a chat model; see `OpenAIChat`."""
    return OpenAIChat(url, model, tools=tools, on_tool_call=on_tool_call)


def open_recogniser(
    name: RecogniserName = "auto",
    *,
    url: str | None = None,
    model: str | None = None,
    language: str | None = None,
) -> Recogniser:
    """Return a recogniser.

    Args:
        name: `openai` (an endpoint, to which the audio is sent), `whisper` (faster-whisper with a
            model in a local folder), `pocketsphinx` (a last resort), or `auto`: the endpoint if
            `url` is given, faster-whisper if `model` is a folder, else pocketsphinx.
        url: address of the endpoint up to and including `/v1`.
        model: model of the endpoint, or the folder of faster-whisper's model.
        language: ISO 639 code such as `en`; None lets the model find out.

    Raises:
        ConfigError: the name is unknown, or something that it needs was not given.
        DependencyError: the package of the recogniser is not installed; the message says which.
    """
    if name not in RECOGNISERS:
        raise ConfigError(f"the recogniser must be one of {', '.join(RECOGNISERS)}, got {name!r}")
    if name == "auto":
        is_folder = model is not None and Path(model).is_dir()
        name = "openai" if url is not None else "whisper" if is_folder else "pocketsphinx"
    if name == "openai":
        if url is None:
            raise ConfigError("the recogniser openai needs the URL of its endpoint, up to /v1")
        return OpenAIRecogniser(url, model, language=language)
    if name == "whisper":
        return _open_whisper(model, language)
    _require("pocketsphinx", "talk")
    return ProcessRecogniser("pocketsphinx", ["pocketsphinx"])


def _open_whisper(model: str | None, language: str | None) -> Recogniser:
    _require("faster_whisper", "whisper")
    if model is None or not Path(model).is_dir():
        raise ConfigError(
            f"the recogniser whisper needs the folder of a CTranslate2 model, got {model!r}; "
            "download one once, such as Systran/faster-whisper-base"
        )
    words = ["whisper", model] if language is None else ["whisper", model, language]
    return ProcessRecogniser("faster-whisper", words)


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise DependencyError(
            f"Understanding speech needs a recogniser: {pip_install(extra)} for "
            f"{package}, or the URL of an endpoint with OpenAI's interface"
        )
