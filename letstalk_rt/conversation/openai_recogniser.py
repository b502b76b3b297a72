"""A recogniser at an endpoint with OpenAI's interface: `POST /v1/audio/transcriptions`."""

import io
import wave
from collections.abc import AsyncIterator

import numpy as np

from letstalk_rt.conversation.http import Endpoint
from letstalk_rt.errors import RecognitionError
from letstalk_rt.types import SAMPLE_RATE

DEFAULT_MODEL = "whisper-1"


class OpenAIRecogniser:
    """A recogniser of OpenAI, speaches, vLLM, whisper.cpp or any other with this interface.

    Args:
        url: address of the API up to and including `/v1`.
        model: name of the model.
        language: ISO 639 code such as `en`; None lets the model find out.
        api_key: None reads `OPENAI_API_KEY`; local servers often need none.

    Raises:
        ConfigError: the URL is not an HTTP address.
        DependencyError: the package httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        language: str | None = None,
        api_key: str | None = None,
    ) -> None:
        self.name = model or DEFAULT_MODEL
        self._endpoint = Endpoint(url, api_key, "the recogniser")
        self._fields = {"model": self.name, "response_format": "json"}
        if language is not None:
            self._fields["language"] = language

    async def start(self) -> None:
        """See `Recogniser.start`."""

    async def transcribe(self, audio: AsyncIterator[np.ndarray]) -> AsyncIterator[str]:
        """Yield the words when the utterance is over; see `Recogniser.transcribe`."""
        file = wav_of([chunk async for chunk in audio])
        endpoint = self._endpoint
        try:
            async with endpoint.client() as client:
                response = await client.post(
                    "audio/transcriptions",
                    data=self._fields,
                    files={"file": ("speech.wav", file, "audio/wav")},
                )
            if response.status_code != 200:
                raise RecognitionError(endpoint.refusal(response.status_code))
            text = response.json()["text"]
        except (endpoint.httpx.HTTPError, endpoint.httpx.InvalidURL) as error:
            raise RecognitionError(endpoint.failure(error)) from None
        except (ValueError, KeyError, TypeError):
            raise RecognitionError(endpoint.nonsense()) from None
        yield str(text)

    async def aclose(self) -> None:
        """See `Recogniser.aclose`."""


def wav_of(chunks: list[np.ndarray]) -> bytes:
    """Return chunks of int16 at 16 kHz as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        for chunk in chunks:
            file.writeframes(chunk.astype("<i2").tobytes())
    return buffer.getvalue()
