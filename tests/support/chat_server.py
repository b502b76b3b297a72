"""The stub of a chat model, over real HTTP on a free port."""

from contextlib import asynccontextmanager

from chat_stub import ChatStub, serving


@asynccontextmanager
async def chat_model(*answers, **options):
    """Serve a stub of a chat model; yield it and its address."""
    stub = ChatStub(answers or ("Hello.",), **{"tokens_per_s": 1000} | options)
    async with serving(stub.app) as url:
        yield stub, url
