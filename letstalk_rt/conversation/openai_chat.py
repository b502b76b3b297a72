"""A chat model at an endpoint with OpenAI's interface: `POST /v1/chat/completions`, streamed."""

import copy
import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from letstalk_rt.conversation.http import Endpoint
from letstalk_rt.conversation.interface import Message, ToolCallback
from letstalk_rt.errors import ChatError, ConfigError

logger = logging.getLogger(__name__)

MAX_TOOL_ROUNDS = 5
"""Calls of tools in a row before a model must answer."""


_REFUSES_TOOLS = (400, 422, 500, 501)
"""What servers answer to a request with tools if their model takes none."""


@dataclass(slots=True)
class _OptionalTools:
    """Tools that the model may do without.

    Attributes:
        tools: as in OpenAI's interface.
        on_call: runs one of them.
    """

    tools: tuple[dict[str, Any], ...] = ()
    on_call: ToolCallback | None = None

    def has(self, name: str) -> bool:
        return any(tool["function"]["name"] == name for tool in self.tools)


@dataclass(slots=True)
class _Model:
    """What is known of a model, in all conversations with it."""

    refuses_tools: bool = False


class _RefusedError(ChatError):
    """A request was refused with an HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class _ToolCall:
    """A call of a tool, whose arguments come in pieces."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def add(self, delta: Any) -> None:
        function = delta.get("function") or {}
        self.id = delta.get("id") or self.id
        self.name += function.get("name") or ""
        self.arguments += function.get("arguments") or ""

    def as_json(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class OpenAIChat:
    """A chat model of Ollama, llama.cpp, vLLM, OpenAI or any other with this interface.

    Args:
        url: address of the API up to and including `/v1`.
        model: name of the model.
        api_key: None reads `OPENAI_API_KEY`; local servers often need none.
        tools: tools that it may call, as in OpenAI's interface.
        on_tool_call: runs a tool; needed if there are tools. What it raises is told to the model.
        options: further fields of each request, such as `{"temperature": 0.5}`.

    Raises:
        ConfigError: the URL is not an HTTP address, or there are tools and no callback.
        DependencyError: the package httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        tools: Sequence[dict[str, Any]] = (),
        on_tool_call: ToolCallback | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if tools and on_tool_call is None:
            raise ConfigError("tools need a callback that runs them: pass on_tool_call")
        self.name = model
        self._endpoint = Endpoint(url, api_key, "the chat model")
        self._body = {"model": model, "stream": True, **(options or {})}
        self._tools, self._on_tool_call = tuple(tools), on_tool_call
        self._optional, self._model = _OptionalTools(), _Model()

    def with_tools(self, tools: Sequence[dict[str, Any]], on_tool_call: ToolCallback) -> Self:
        """Return the same chat model with more tools; see `ToolChat`.

        A server whose model takes no tools refuses a request that has them. It is then made
        without these, and so are all later ones; the log says so.
        """
        chat = copy.copy(self)
        chat._optional = _OptionalTools(tuple(tools), on_tool_call)
        return chat

    async def answer(self, messages: list[Message]) -> AsyncIterator[str]:
        """Yield the answer piece by piece; see `Chat.answer`."""
        for _ in range(MAX_TOOL_ROUNDS):
            calls: dict[int, _ToolCall] = {}
            async for delta in self._stream(messages):
                for call in delta.get("tool_calls") or ():
                    calls.setdefault(call.get("index", 0), _ToolCall()).add(call)
                if text := delta.get("content"):
                    yield text
            if not calls:
                return
            called = [call.as_json() for call in calls.values()]
            messages.append({"role": "assistant", "content": None, "tool_calls": called})
            for tool in calls.values():
                result = await self._run(tool)
                messages.append({"role": "tool", "tool_call_id": tool.id, "content": result})
        raise ChatError(f"the chat model called tools {MAX_TOOL_ROUNDS} times without an answer")

    async def _run(self, call: _ToolCall) -> str:
        """Run a tool; a failure is a result, too, so that the model can say so."""
        optional = self._optional
        run = optional.on_call if optional.has(call.name) else self._on_tool_call
        if run is None:
            return f"error: there is no tool {call.name[:40]!r}"
        try:
            return await run(call.name, json.loads(call.arguments or "{}"))
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"

    async def _stream(self, messages: list[Message]) -> AsyncIterator[Any]:
        """Yield the `delta` of each event."""
        optional = () if self._model.refuses_tools else self._optional.tools
        try:
            async for delta in self._request(messages, [*self._tools, *optional]):
                yield delta
            return
        except _RefusedError as refused:
            if not optional or refused.status not in _REFUSES_TOOLS:
                raise
        async for delta in self._request(messages, self._tools):
            self._note_refusal()
            yield delta

    def _note_refusal(self) -> None:
        """Note that the model answers without tools what it has refused with them."""
        if not self._model.refuses_tools:
            self._model.refuses_tools = True
            logger.warning("the chat model takes no tools; tags in its answers direct the avatar")

    async def _request(
        self, messages: list[Message], tools: Sequence[dict[str, Any]]
    ) -> AsyncIterator[Any]:
        """Yield the `delta` of each event of one request."""
        endpoint, body = self._endpoint, {**self._body, "messages": messages}
        if tools:
            body["tools"] = list(tools)
        try:
            async with (
                endpoint.client() as client,
                client.stream("POST", "chat/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    status = response.status_code
                    raise _RefusedError(endpoint.refusal(status), status)
                if "event-stream" not in response.headers.get("content-type", ""):
                    raise ChatError(endpoint.nonsense())
                async for line in response.aiter_lines():
                    if line.startswith("data:") and line[5:].strip() not in ("", "[DONE]"):
                        for choice in json.loads(line[5:])["choices"]:
                            yield choice.get("delta") or {}
        except (endpoint.httpx.HTTPError, endpoint.httpx.InvalidURL) as error:
            raise ChatError(endpoint.failure(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ChatError(endpoint.nonsense()) from None
