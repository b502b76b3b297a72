"""A local chat model for tests and benchmarks: OpenAI's interface, canned answers, any speed.

    python benchmarks/chat_stub.py --port 11434 --tokens-per-s 40

It streams 40 tokens a second, as a small model on a graphics card does.
"""

import argparse
import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TOKENS_PER_S = 40.0
ANSWERS = (
    "I cannot look outside, but I hope that the sun is shining. Where are you today?",
    "That is a good question. Let me think about it for a moment, and then tell you more.",
    "Of course. I would be happy to help you with that. What would you like to know first?",
    "It was nice to talk to you. Take care, and come back soon.",
)


class ChatStub:
    """Answers `POST /v1/chat/completions`.

    Args:
        answers: given in turn, again and again; a dict is sent as the message's `delta` at once.
        tokens_per_s: speed.
        status: status of each answer.
        refuses_tools: answer requests with tools with status 400, as servers do whose model takes
            none.

    Attributes:
        requests: bodies that it received.
        keys: their authorisations.
        aborted: how often the reader left before the end of an answer.
    """

    def __init__(
        self,
        answers: Sequence[str | dict[str, Any]] = ANSWERS,
        tokens_per_s: float = TOKENS_PER_S,
        status: int = 200,
        refuses_tools: bool = False,
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.aborted = 0
        self._answers, self._pause_s, self._status = answers, 1 / tokens_per_s, status
        self._refuses_tools = refuses_tools
        self.app = Starlette(
            routes=[Route("/v1/chat/completions", self._complete, methods=["POST"])]
        )

    async def _complete(self, request: Request) -> Response:
        answer = self._answers[len(self.requests) % len(self._answers)]
        self.requests.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        status = 400 if self._refuses_tools and "tools" in self.requests[-1] else self._status
        if status != 200:
            return JSONResponse({"error": {"message": "no"}}, status)
        return StreamingResponse(self._stream(answer), media_type="text/event-stream")

    async def _stream(self, answer: str | dict[str, Any]) -> AsyncIterator[str]:
        try:
            if isinstance(answer, dict):
                yield _event(answer)
            else:
                for number, token in enumerate(answer.split(" ")):
                    await asyncio.sleep(self._pause_s)
                    yield _event({"content": token if number == 0 else f" {token}"})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted += 1
            raise


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    """Serve an application on a free port of loopback; yield its address up to `/v1`."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serve = asyncio.create_task(server.serve(), name="serve")
    while not server.started:
        assert not serve.done(), "it cannot be served"
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await serve


def _event(delta: dict[str, Any]) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=11434, help="0 takes a free one")
    parser.add_argument("--tokens-per-s", type=float, default=TOKENS_PER_S)
    options = parser.parse_args()
    stub = ChatStub(tokens_per_s=options.tokens_per_s)
    listener = socket.create_server(("127.0.0.1", options.port))
    print(f"a chat model: http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    config = uvicorn.Config(stub.app, log_level="warning")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
