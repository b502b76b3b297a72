"""Requests to endpoints with OpenAI's interface: addresses, keys, and errors that say what to do.

No message of an error holds the key, the request or what was said.
"""

import os
from typing import Any
from urllib.parse import urlsplit

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.extras import pip_install

CONNECT_S, READ_S = 5.0, 60.0
_REASONS = {
    401: "refused the key; check OPENAI_API_KEY",
    403: "refused the key; check OPENAI_API_KEY and what it permits",
    404: "has no such address or model; check the URL and the model",
    429: "has had too many requests; try again later",
}


class Endpoint:
    """An endpoint with OpenAI's interface.

    Args:
        url: address of the API up to and including `/v1`.
        api_key: None reads `OPENAI_API_KEY`; local servers often need none.
        what: what it is, for messages, such as "the chat model".

    Attributes:
        httpx: the package.

    Raises:
        ConfigError: the URL is not an HTTP address.
        DependencyError: the package httpx is not installed.
    """

    def __init__(self, url: str, api_key: str | None, what: str) -> None:
        self.httpx = _load_httpx()
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"{what}: {url!r} is not an address like http://localhost:11434/v1")
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        # Made once: it reads the certificates of this machine, which takes tens of milliseconds.
        self._verify = self.httpx.create_ssl_context() if parts.scheme == "https" else False
        self._url, self._name = url.rstrip("/"), f"{what} at {parts.hostname}"

    def client(self) -> Any:
        """Return a new `httpx.AsyncClient`, whose addresses begin after `/v1`."""
        timeout = self.httpx.Timeout(READ_S, connect=CONNECT_S)
        return self.httpx.AsyncClient(
            base_url=f"{self._url}/", headers=self._headers, timeout=timeout, verify=self._verify
        )

    def failure(self, error: BaseException) -> str:
        """Return the message for an error of httpx."""
        if isinstance(error, self.httpx.TimeoutException):
            return f"{self._name} did not answer in time; check that the server is running"
        return (
            f"{self._name} cannot be reached ({type(error).__name__}); check the URL, and that the "
            "server is running"
        )

    def refusal(self, status: int) -> str:
        """Return the message for a status that is not 200."""
        reason = _REASONS.get(status, f"answered {status}; check the model and its server")
        return f"{self._name} {reason}"

    def nonsense(self) -> str:
        """Return the message for an answer that cannot be read."""
        return f"{self._name} sent something that is not OpenAI's interface; check the URL"


def _load_httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise DependencyError(
            "A chat model or a recogniser at a URL needs the package 'httpx'; install it with: "
            f"{pip_install('talk')}"
        ) from error
    return httpx
