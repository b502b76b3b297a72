"""A chat model at an endpoint with OpenAI's interface: `POST /v1/chat/completions`, streamed."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from letstalk_rt.conversation.http import Endpoint
from letstalk_rt.conversation.interface import Message, ToolCallback
from letstalk_rt.errors import ChatError, ConfigError

MAX_TOOL_ROUNDS = 5
"""Calls of tools in a row before a model must answer."""


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
        if tools:
            self._body["tools"] = list(tools)
        self._on_tool_call = on_tool_call

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
        assert self._on_tool_call is not None, "a model calls only tools that it was given"
        try:
            return await self._on_tool_call(call.name, json.loads(call.arguments or "{}"))
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"

    async def _stream(self, messages: list[Message]) -> AsyncIterator[Any]:
        """Yield the `delta` of each event."""
        endpoint, body = self._endpoint, {**self._body, "messages": messages}
        try:
            async with (
                endpoint.client() as client,
                client.stream("POST", "chat/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    raise ChatError(endpoint.refusal(response.status_code))
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
