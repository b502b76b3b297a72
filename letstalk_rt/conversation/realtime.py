"""A conversation through one WebSocket with OpenAI's Realtime interface: hearing, answer and voice.

    async with RealtimeConversation(session, "ws://localhost:8000/v1/realtime") as conversation:
        await conversation.listen(microphone)

The server finds whose turn it is, so the microphone is sent without a pause. Its speech is pushed
into the avatar as it comes; when the user speaks, the avatar falls silent, and the server is told
how much of its answer was heard.

Source: https://platform.openai.com/docs/guides/realtime; both the released events
(`response.output_audio.delta`) and those of the beta (`response.audio.delta`), which most other
servers speak.
"""

import asyncio
import base64
import binascii
import json
import logging
import os
from collections.abc import AsyncIterable, Callable, Coroutine, Sequence
from typing import Any, NoReturn, Self
from urllib.parse import urlencode, urlsplit

import numpy as np

from letstalk_rt.audio.resample import Resampler, check_pcm
from letstalk_rt.conversation.conversation import DEFAULT_PROMPT, hear_all
from letstalk_rt.conversation.interface import (
    Caption,
    ConversationEvent,
    ConversationListener,
    ConversingAvatar,
    Failure,
    State,
    StateChange,
    ToolCallback,
)
from letstalk_rt.conversation.sentences import SentenceCutter
from letstalk_rt.errors import ChatError, ConfigError, DependencyError, LetsTalkError
from letstalk_rt.extras import pip_install
from letstalk_rt.session.events import Event
from letstalk_rt.session.user_voice import UserVoice

Json = dict[str, Any]

RATE_HZ = 24_000
"""Sample rate of the interface, both ways."""

CONNECT_S = 10.0
RETRY_S = 2.0
"""Time after which a lost connection is opened again."""

MAX_AHEAD_S = 300.0
"""Speech that may wait to be spoken; servers send an answer faster than it is spoken."""

_MAX_MESSAGE_BYTES = 2**24
_MAX_OUTGOING = 500  # messages; a microphone's pieces have 10 to 40 ms
_PIECE = RATE_HZ // 10
_TRAILING_S = 1.5  # of silence after a source has ended, so that the server notices
_REFUSALS = {
    401: "refused the key; check OPENAI_API_KEY",
    403: "refused the key; check OPENAI_API_KEY and what it permits",
    404: "has no such address or model; check the URL and the model",
}

# Messages and headers hold speech and the key, which debug logs of the package would contain.
_SILENT = logging.Logger("letstalk-realtime", logging.CRITICAL + 1)


class RealtimeConversation:
    """A conversation with one avatar through a Realtime server; open it with `async with`.

    Args:
        avatar: speaks the answers, such as an open `AvatarSession`.
        url: address of the WebSocket, such as `wss://api.openai.com/v1/realtime`.
        model: name of the model; None for the server's own.
        voice: name of the voice; None for the server's own.
        transcriber: model that writes down what the user says.
        prompt: what the model is told first; may be set while it runs.
        api_key: None reads `OPENAI_API_KEY`; local servers often need none.
        tools: functions that it may call, as in OpenAI's interface.
        on_tool_call: runs a tool; needed if there are tools. What it raises is told to the model.
        on_event: called on the event loop with captions, states and failures.

    Attributes:
        state: what it does now.

    Raises:
        ConfigError: the URL is no address of a WebSocket, or there are tools and no callback.
        DependencyError: the package websockets is not installed.
    """

    def __init__(
        self,
        avatar: ConversingAvatar,
        url: str,
        *,
        model: str | None = None,
        voice: str | None = None,
        transcriber: str = "whisper-1",
        prompt: str = DEFAULT_PROMPT,
        api_key: str | None = None,
        tools: Sequence[Json] = (),
        on_tool_call: ToolCallback | None = None,
        on_event: ConversationListener = lambda event: None,
    ) -> None:
        if tools and on_tool_call is None:
            raise ConfigError("tools need a callback that runs them: pass on_tool_call")
        self._websockets = check_address(url)
        self._url, self._name = _address(url, model)
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._options = _Options(voice, transcriber, tuple(tools))
        self._prompt, self._avatar, self._on_event = prompt, avatar, on_event
        self._on_tool_call = on_tool_call
        self._user_voice = UserVoice(avatar)
        self.state: State = "listening"
        self._is_released = True  # whether the server has the released interface, or the beta's
        self._is_connected = False
        self._outgoing: asyncio.Queue[Json] = asyncio.Queue(_MAX_OUTGOING)
        self._speech: asyncio.Queue[np.ndarray | None] = asyncio.Queue()  # see MAX_AHEAD_S
        self._resampler = Resampler(RATE_HZ, RATE_HZ)
        self._response: _Response | None = None
        self._item = ""  # whose speech the avatar has
        self._words = ""  # of the user, while they are written down
        self._changed = asyncio.Event()
        self._group, self._tasks = asyncio.TaskGroup(), set[asyncio.Task[None]]()
        self._playing: asyncio.Task[None] | None = None
        self._stop_events: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._stop_events = self._avatar.on_event(self._follow)
        self._playing = self._start(self._play(None), "speak")
        self._start(self._stay_connected(), "connection")
        return self

    async def __aexit__(self, *exc: Any) -> None:
        """End the conversation. What the avatar says is not interrupted."""
        self._stop_events()
        self._user_voice.close()
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(*exc)

    @property
    def prompt(self) -> str:
        """What the model is told first."""
        return self._prompt

    @prompt.setter
    def prompt(self, prompt: str) -> None:
        self._prompt = prompt
        if self._is_connected:
            self._send(type="session.update", session=self._configuration())

    async def listen(
        self, source: AsyncIterable[np.ndarray], sample_rate: int | None = None
    ) -> None:
        """Hear a live source until it ends, and then the last answer; see `Conversation.listen`."""
        await hear_all(self.hear, source, sample_rate)
        self.hear(np.zeros(round(_TRAILING_S * RATE_HZ), np.float32), RATE_HZ)
        await self.finish()

    async def finish(self) -> None:
        """Wait until the server has answered, and the answer was played."""
        while not self._is_idle:
            self._changed.clear()
            await self._changed.wait()

    def hear(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Send the next audio of the microphone; while there is no connection, it is dropped.

        Args:
            pcm: int16 or float32, as for `AvatarSession.push_audio`.
            sample_rate: in Hz.

        Raises:
            AudioFormatError: it is no audio, or the rate is not supported.
        """
        check_pcm(pcm)
        if sample_rate != self._resampler.sample_rate:
            self._resampler = Resampler(sample_rate, RATE_HZ)
        audio = (self._resampler.push(pcm) * 32_767).astype("<i2").tobytes()
        if self._is_connected and audio:
            text = base64.b64encode(audio).decode()
            self._send(type="input_audio_buffer.append", audio=text)

    def say(self, text: str) -> None:
        """Take a text as if the user had said it; the avatar stops and answers it."""
        if words := text.strip():
            self._silence()
            self._emit(Caption("user", words, True))
            self._set_state("thinking")
            self._add_item(
                type="message", role="user", content=[{"type": "input_text", "text": words}]
            )
            self._send(type="response.create")

    def interrupt(self) -> None:
        """Stop the avatar; its answer is dropped."""
        self._silence()
        self._set_state("listening")

    # The connection

    async def _stay_connected(self) -> None:
        """Keep a connection open; one that is lost is opened again, one that is refused is not."""
        while True:
            try:
                await self._connect()
            except _Refused as error:
                return self._fail(str(error))
            except ChatError as error:
                self._fail(str(error))
            await asyncio.sleep(RETRY_S)

    async def _connect(self) -> NoReturn:
        """Converse through one connection until it is lost.

        Raises:
            ChatError: it was lost, or could not be opened.
            _Refused: the server refuses, and would do so again.
        """
        errors = self._websockets.exceptions
        connection = self._websockets.asyncio.client.connect(
            self._url,
            additional_headers=self._headers,
            open_timeout=CONNECT_S,
            max_size=_MAX_MESSAGE_BYTES,
            logger=_SILENT,
        )
        try:
            async with connection as socket:
                sending = asyncio.create_task(self._send_all(socket), name="realtime-send")
                try:
                    async for text in socket:
                        self._take(json.loads(text))
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
                    self._is_connected, self._response = False, None
                    self._user_voice.set_speaking(False)
                    self._outgoing = asyncio.Queue(_MAX_OUTGOING)
        except errors.InvalidStatus as error:
            status = error.response.status_code
            refusal = _REFUSALS.get(status)
            if refusal is not None:
                raise _Refused(f"{self._name} {refusal}") from None
            raise ChatError(f"{self._name} answered {status}; check the server") from None
        except (OSError, errors.WebSocketException) as error:
            reason = type(error).__name__
            raise ChatError(f"{self._name} cannot be reached ({reason}); check the URL") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ChatError(
                f"{self._name} sent something that is not the Realtime interface; check the URL"
            ) from None
        raise ChatError(f"{self._name} has closed the connection; it is opened again")

    async def _send_all(self, socket: Any) -> None:
        while True:
            await socket.send(json.dumps(await self._outgoing.get()))
            self._changed.set()

    def _send(self, **message: Any) -> None:
        if self._outgoing.full():
            self._outgoing.get_nowait()  # the oldest: the connection does not keep up
        self._outgoing.put_nowait(message)

    def _add_item(self, **item: Any) -> None:
        self._send(type="conversation.item.create", item=item)

    def _configuration(self) -> Json:
        return self._options.session(self._prompt, self._is_released)

    # What the server says

    def _take(self, event: Json) -> None:
        kind = event["type"].replace("response.audio", "response.output_audio")
        match kind:
            case "session.created":
                self._is_released = "modalities" not in event["session"]
                self._is_connected = True
                self._send(type="session.update", session=self._configuration())
            case "input_audio_buffer.speech_started":
                self._silence()
                self._user_voice.set_speaking(True)
                self._set_state("hearing")
            case "input_audio_buffer.speech_stopped":
                self._user_voice.set_speaking(False)
                self._set_state("thinking")
            case "conversation.item.input_audio_transcription.delta":
                self._words += event["delta"]
                self._emit(Caption("user", self._words.strip(), False))
            case "conversation.item.input_audio_transcription.completed":
                self._words = ""
                if words := event["transcript"].strip():
                    self._emit(Caption("user", words, True))
            case "response.created":
                self._response = _Response(event["response"]["id"])
            case "error":
                self._take_error(event["error"])
            case _ if self._response is not None and self._response.owns(event):
                self._take_answer(kind, event, self._response)

    def _take_answer(self, kind: str, event: Json, response: "_Response") -> None:
        """Take an event of the answer that is being made; those of cancelled ones are dropped."""
        match kind:
            case "response.output_audio.delta":
                self._item = event["item_id"]
                self._take_speech(_pcm_of(event["delta"]))
            case "response.output_audio_transcript.delta":
                self._show(response.cutter.push(event["delta"]))
            case "response.function_call_arguments.done":
                response.calls += 1
                self._start(self._call(event, response), "tool")
            case "response.done":
                self._show(response.cutter.flush())
                self._response = None
                if response.has_speech:
                    self._speech.put_nowait(None)
                elif not response.calls:
                    self._set_state("listening")
                if event["response"].get("status") == "failed":
                    self._fail(f"{self._name} failed to answer; its log has the reason")

    def _take_speech(self, pcm: np.ndarray) -> None:
        assert self._response is not None
        self._response.has_speech = True
        if self._speech.qsize() * _PIECE > MAX_AHEAD_S * RATE_HZ:
            self._silence()
            return self._fail(f"{self._name} gave an answer of more than {MAX_AHEAD_S:.0f} s")
        for start in range(0, len(pcm), _PIECE):
            self._speech.put_nowait(pcm[start : start + _PIECE])

    def _take_error(self, error: Json) -> None:
        """Report an error. Its message may hold what was said, so only its code is told."""
        code = str(error.get("code") or error.get("type"))
        if code != "response_cancel_not_active":  # it had just ended
            self._fail(f"{self._name} reports {code[:80]}")

    def _show(self, sentences: list[str]) -> None:
        for sentence in sentences:
            self._emit(Caption("avatar", sentence, True))

    async def _call(self, event: Json, response: "_Response") -> None:
        """Run a tool, and have the model go on; a failure is a result, too."""
        assert self._on_tool_call is not None, "a model calls only tools that it was given"
        try:
            result = await self._on_tool_call(event["name"], json.loads(event["arguments"] or "{}"))
        except Exception as error:
            result = f"error: {type(error).__name__}: {error}"
        self._add_item(type="function_call_output", call_id=event["call_id"], output=result)
        response.calls -= 1
        if not response.calls:
            self._send(type="response.create")

    # What the avatar does

    async def _play(self, before: asyncio.Task[None] | None) -> None:
        """Push the speech of the answers into the avatar."""
        if before is not None:
            await asyncio.wait([before])
        while True:
            pcm = await self._speech.get()
            try:
                if pcm is None:
                    await self._avatar.end_segment()
                else:
                    await self._avatar.push_audio(pcm, RATE_HZ)
            except LetsTalkError as error:
                self._emit(Failure("voice", str(error)))

    def _silence(self) -> None:
        """Stop the avatar, cancel the answer that is made, and tell how much of it was heard."""
        response, self._response = self._response, None
        if response is not None:
            self._send(type="response.cancel")
        item, self._item = self._item, ""
        if not item:
            return
        assert self._playing is not None
        self._playing.cancel()
        self._speech = asyncio.Queue()
        self._playing = self._start(self._play(self._playing), "speak")
        heard_ms = self._avatar.interrupt().played_ms
        self._send(
            type="conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=heard_ms
        )

    def _follow(self, event: Event) -> None:
        """Follow what of the answer is played."""
        if event.type == "segment.started" and self._item:
            self._set_state("speaking")
        elif event.type == "segment.finished" and self._item:
            if self._response is None and self._speech.empty():
                self._item = ""
                self._set_state("listening")

    @property
    def _is_idle(self) -> bool:
        return self.state == "listening" and self._response is None and self._outgoing.empty()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=f"realtime-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _fail(self, message: str) -> None:
        self._set_state("listening")
        self._emit(Failure("chat", message))

    def _set_state(self, state: State) -> None:
        self._changed.set()
        if state != self.state:
            self.state = state
            self._emit(StateChange(state))

    def _emit(self, event: ConversationEvent) -> None:
        self._on_event(event)


class _Refused(ChatError):
    """The server refuses the connection, and would do so again."""


class _Response:
    """An answer that is being made.

    Args:
        number: its id.

    Attributes:
        cutter: cuts what it says into sentences.
        has_speech: whether any of it has come.
        calls: tools that run.
    """

    def __init__(self, number: str) -> None:
        self._id = number
        self.cutter = SentenceCutter()
        self.has_speech, self.calls = False, 0

    def owns(self, event: Json) -> bool:
        """Return whether an event belongs to it."""
        number = event.get("response_id") or (event.get("response") or {}).get("id")
        return bool(number == self._id)


class _Options:
    """What a session of the server is configured with, in the words of either interface.

    Args:
        voice: name of the voice; None for the server's own.
        transcriber: model that writes down what the user says.
        tools: functions that the model may call.
    """

    def __init__(self, voice: str | None, transcriber: str, tools: tuple[Json, ...]) -> None:
        self._voice = {} if voice is None else {"voice": voice}
        self._common: Json = {"tools": list(tools)} if tools else {}
        self._transcription = {"model": transcriber}

    def session(self, prompt: str, is_released: bool) -> Json:
        """Return the `session` of `session.update`."""
        turns = {"type": "server_vad", "create_response": True, "interrupt_response": True}
        fields = self._common | {"instructions": prompt}
        if not is_released:
            return (
                fields
                | self._voice
                | {
                    "modalities": ["audio", "text"],
                    "input_audio_format": "pcm16",
                    "output_audio_format": "pcm16",
                    "input_audio_transcription": self._transcription,
                    "turn_detection": turns,
                }
            )
        form = {"type": "audio/pcm", "rate": RATE_HZ}
        heard = {"format": form, "transcription": self._transcription, "turn_detection": turns}
        audio = {"input": heard, "output": {"format": form} | self._voice}
        return fields | {"type": "realtime", "output_modalities": ["audio"], "audio": audio}


def _pcm_of(text: str) -> np.ndarray:
    """Return base64 of PCM16 as `(n,)` int16.

    Raises:
        ValueError: it is something else.
    """
    data = base64.b64decode(text, validate=True)
    if len(data) % 2:
        raise binascii.Error("half a sample")
    return np.frombuffer(data, "<i2").astype(np.int16)


def _address(url: str, model: str | None) -> tuple[str, str]:
    """Return the address to connect to, and the name of the server for messages."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.netloc:
        raise ConfigError(
            f"the Realtime server: {url!r} is not an address like ws://localhost:8000/v1/realtime"
        )
    query = "&".join(filter(None, (parts.query, model and urlencode({"model": model}))))
    return parts._replace(scheme=scheme, query=query).geturl(), (
        f"the Realtime server at {parts.hostname}"
    )


def check_address(url: str) -> Any:
    """Return the package websockets, if it is there and a URL is the address of a WebSocket.

    Raises:
        ConfigError: the URL is none.
        DependencyError: the package is not installed.
    """
    _address(url, None)
    try:
        import websockets.asyncio.client
        import websockets.exceptions
    except ImportError as error:
        raise DependencyError(
            "A Realtime server needs the package 'websockets'; install it with: "
            f"{pip_install('talk')}"
        ) from error
    return websockets
