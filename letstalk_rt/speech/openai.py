"""Speech by an HTTP endpoint with OpenAI's interface: `POST /v1/audio/speech`, streamed."""

import os
from typing import Any
from urllib.parse import urlsplit

from letstalk_rt.errors import ConfigError, DependencyError, SynthesisError
from letstalk_rt.extras import pip_install
from letstalk_rt.speech.interface import Speech, prepare_text
from letstalk_rt.speech.pcm_stream import decode_pcm

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL, DEFAULT_VOICE = "gpt-4o-mini-tts", "alloy"
RATE = 24_000
"""Sample rate of the endpoint's raw PCM, in Hz."""

_CONNECT_S, _READ_S = 5.0, 30.0
_REASONS = {
    401: "refused the key; check OPENAI_API_KEY",
    403: "refused the key; check OPENAI_API_KEY and what it permits",
    404: "has no such address or model; check the base URL and the model",
    429: "has had too many requests; try again later",
}


class OpenAISpeech:
    """An OpenAI-compatible endpoint.

    Args:
        base_url: address of the API up to and including `/v1`; None reads `OPENAI_BASE_URL`, and
            OpenAI's own is the default.
        api_key: None reads `OPENAI_API_KEY`; local servers often need none.
        model: name of the model.
        voice: name of the voice.

    Raises:
        ConfigError: the base URL is not an HTTP address.
        DependencyError: the package httpx is not installed.
    """

    name = "openai"

    def __init__(
        self,
        voice: str | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        model: str | None = None,
    ) -> None:
        self._httpx = _load_httpx()
        url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(
                f"the base URL {url!r} is not an address like http://localhost:8000/v1"
            )
        self._url = f"{url.rstrip('/')}/audio/speech"
        self._host = parts.hostname
        self._key = api_key or os.environ.get("OPENAI_API_KEY")
        self._model, self._voice = model or DEFAULT_MODEL, voice or DEFAULT_VOICE

    @property
    def is_openais_own(self) -> bool:
        """Whether it is OpenAI's, whose voices are known."""
        return self._host == urlsplit(DEFAULT_BASE_URL).hostname

    async def stream(self, text: str) -> Speech:
        """Speak a text; see `TextToSpeech.stream`."""
        body = {
            "model": self._model,
            "voice": self._voice,
            "input": prepare_text(text),
            "response_format": "pcm",
        }
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        httpx, empty = self._httpx, True
        timeout = httpx.Timeout(_READ_S, connect=_CONNECT_S)
        try:
            async with (
                httpx.AsyncClient(timeout=timeout) as client,
                client.stream("POST", self._url, json=body, headers=headers) as response,
            ):
                if response.status_code != 200:
                    raise self._refusal(response.status_code)
                async for chunk in decode_pcm(
                    response.aiter_bytes(), self.name, _rate_of(response)
                ):
                    empty = False
                    yield chunk
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SynthesisError(
                f"the speech endpoint at {self._host} failed ({type(error).__name__}); check the "
                "base URL, and that the server is running"
            ) from None  # the request holds the text and the key
        if empty:
            raise SynthesisError(f"the speech endpoint at {self._host} delivered no audio")

    def _refusal(self, status: int) -> SynthesisError:
        reason = _REASONS.get(status, f"answered {status}; check the voice and the model")
        return SynthesisError(f"the speech endpoint at {self._host} {reason}")


def _rate_of(response: Any) -> int:
    """Return the sample rate of raw PCM: that of the content type, if it names one."""
    for part in response.headers.get("content-type", "").split(";")[1:]:
        key, _, value = part.strip().partition("=")
        if key == "rate" and value.isdigit() and 8_000 <= int(value) <= 192_000:
            return int(value)
    return RATE


def _load_httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise DependencyError(
            f"A speech endpoint needs the package 'httpx'; install it with: {pip_install('speech')}"
        ) from error
    return httpx
