"""The stub of a chat model and any other application, over real HTTP on a free port."""

import asyncio
from contextlib import asynccontextmanager

import uvicorn
from chat_stub import ChatStub


@asynccontextmanager
async def serving(app):
    """Serve an ASGI application on loopback; yield its address up to `/v1`."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serve = asyncio.create_task(server.serve())
    while not server.started:
        assert not serve.done()
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        await serve


@asynccontextmanager
async def chat_model(*answers, **options):
    """Serve a stub of a chat model; yield it and its address."""
    stub = ChatStub(answers or ("Hello.",), **{"tokens_per_s": 1000} | options)
    async with serving(stub.app) as url:
        yield stub, url
