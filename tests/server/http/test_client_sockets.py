"""Whoever connects and says nothing keeps nobody else out: tested with real sockets and limits."""

import asyncio
import resource
import socket
import ssl
import subprocess
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from urllib.request import urlopen

import pytest
import uvicorn
from support.browser_tools import PAINTED, TESTS
from support.certificates import self_signed
from websockets.asyncio.client import connect

from letstalk_rt.errors import ConfigError
from letstalk_server.http.client_sockets import (
    ACCEPTED_AT_ONCE,
    REQUEST_TIMEOUT_S,
    ClientSockets,
    SocketLimits,
    listen,
    network_of,
    protocol_for,
)
from letstalk_server.log_limit import MOST
from letstalk_server.settings import Settings

DESCRIPTORS = 200
SILENT = 230
PATIENCE_S = 20


@contextmanager
def server(tmp_path, *settings, descriptors=DESCRIPTORS):
    """Run a real server with few descriptors; yield its process and port; stop it."""
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (descriptors, descriptors))
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [*PAINTED, *settings],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=TESTS,
            preexec_fn=limit,
        ) as process,
    ):
        try:
            address = process.stdout.readline().split()[-1]
            yield int(address.rstrip("/").rpartition(":")[2])
        finally:
            process.kill()


def silent(stack, port, count):
    """Open connections that send nothing, until the stack is closed."""
    return [
        stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
        for _ in range(count)
    ]


def log_lines(tmp_path):
    return (tmp_path / "log").read_text().splitlines()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_silent_connections_keep_nobody_out(tmp_path, tls):
    context, settings = None, []
    if tls:
        cert, key = self_signed(tmp_path)
        context = ssl.create_default_context(cafile=cert)
        settings = [f"tls_cert={cert}", f"tls_key={key}"]
    address = f"{'https' if tls else 'http'}://localhost"
    with server(tmp_path, *settings) as port, ExitStack() as stack:
        silent(stack, port, SILENT)
        for _ in range(3):
            with urlopen(
                f"{address}:{port}/healthz", timeout=PATIENCE_S, context=context
            ) as answer:
                assert answer.status == 200
    assert len(log_lines(tmp_path)) < 5


def test_nonsense_does_not_flood_the_log(tmp_path):
    with server(tmp_path) as port:
        for _ in range(60):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
                client.sendall(b"nonsense\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 400")
    lines = log_lines(tmp_path)
    assert 0 < len(lines) <= MOST and "left out" in lines[-1]


async def test_a_silent_connection_is_closed_after_a_while():
    async with small_server(timeout_s=0.2) as port, connected(port) as (reader, _):
        assert await answer(reader) == b""


UNWANTED_BODY = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"


@pytest.mark.parametrize("beginning", [b"GET / HTTP/1.1\r\nx: ", UNWANTED_BODY])
async def test_bytes_that_make_no_request_gain_no_time(beginning):
    """A header that never ends, and the body of a request that was answered long ago."""
    async with small_server(timeout_s=0.3) as port, connected(port) as (reader, writer):
        writer.write(beginning)
        ended = asyncio.create_task(answer(reader))
        with suppress(ConnectionError):
            while not ended.done():
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.05)
        with suppress(ConnectionError):
            await ended


async def test_a_request_and_a_websocket_may_take_longer():
    async with small_server(timeout_s=0.2) as port, connected(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        async with connect(f"ws://127.0.0.1:{port}/") as websocket:
            assert b"slow" in await answer(reader)
            await websocket.send("still here")
            assert await websocket.recv() == "still here"


async def test_the_oldest_connection_without_a_request_gives_way():
    async with small_server(SocketLimits(3)) as port, AsyncExitStack() as stack:
        websocket = await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/"))
        silent = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        assert await answer(silent[0][0]) == b""
        reader, writer = silent[2]
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        await websocket.send("still here")
        assert await websocket.recv() == "still here"


async def test_one_address_has_a_limit_of_its_own():
    async with small_server(SocketLimits(100, per_address=1)) as port:
        async with connect(f"ws://127.0.0.1:{port}/"), connected(port) as (reader, _):
            assert await answer(reader) == b""  # nothing waits that could give way
        async with connect(f"ws://127.0.0.1:{port}/") as websocket:
            await websocket.send("the place is free again")
            assert await websocket.recv()


def test_this_machine_and_a_proxy_of_a_cluster_have_no_limit_of_their_own():
    alone, cluster = SocketLimits.of(Settings()), SocketLimits.of(Settings(worker_name="w1"))
    assert alone.spare_loopback and alone.per_address < alone.total
    assert cluster.per_address is None
    given = SocketLimits.of(Settings(max_sockets_per_address=7))
    assert given.per_address == 7 and not given.spare_loopback
    assert SocketLimits.of(Settings(max_sockets_per_address=0)).per_address is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::1"),
    ],
)
def test_the_addresses_of_one_client_count_as_one(address, network):
    assert network_of(address) == network


def test_a_port_that_is_taken_is_one_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* choose another"):
            listen("127.0.0.1", port, ClientSockets(SocketLimits(1)))


@asynccontextmanager
async def connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader):
    """Return what the server sends until it closes the connection."""
    async with asyncio.timeout(PATIENCE_S):
        return await reader.read()


@asynccontextmanager
async def small_server(limits=None, timeout_s=REQUEST_TIMEOUT_S):
    """Run uvicorn on this event loop; yield its port."""
    clients = ClientSockets(limits or SocketLimits(100), timeout_s)
    listeners = listen("127.0.0.1", 0, clients)
    config = uvicorn.Config(
        application,
        http=protocol_for(clients),
        backlog=ACCEPTED_AT_ONCE,
        lifespan="off",
        log_level="error",
        ws="websockets-sansio",
    )
    uvicorn_server = uvicorn.Server(config)
    serving = asyncio.create_task(uvicorn_server.serve(listeners))
    while not uvicorn_server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield listeners[0].getsockname()[1]
    finally:
        uvicorn_server.should_exit = True
        await serving


async def application(scope, receive, send):
    """Answer requests, those for /slow slowly; send back what a WebSocket sends."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"][1:].encode()})
