"""The address ranges that coturn refuses, as `compose.yaml` and the docs give them."""

import asyncio
import base64
import hashlib
import hmac
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from aioice import stun, turn
from support.packages import needs

ROOT = Path(__file__).parents[1]
SECRET = "t" * 32
OPTION = re.compile(r"^(?:\s*- --)?((?:denied-peer-ip=|no-tcp-relay|no-multicast-peers)\S*)$", re.M)
DOCUMENTS = ("compose.yaml", "docs/deployment.md")


def options_of(document):
    return OPTION.findall((ROOT / document).read_text("utf-8"))


def test_the_docs_and_compose_refuse_the_same():
    first, second = [options_of(document) for document in DOCUMENTS]
    assert first == second and "no-tcp-relay" in first


def permission_for(address):
    request = stun.Message(
        message_method=stun.Method.CREATE_PERMISSION, message_class=stun.Class.REQUEST
    )
    request.attributes["XOR-PEER-ADDRESS"] = (address, 9)
    return request


async def allocated(port):
    """Return a client with an allocation on a TURN server of 127.0.0.1, which is just starting."""
    user = f"{int(time.time()) + 600}:x"
    digest = hmac.new(SECRET.encode(), user.encode(), hashlib.sha1).digest()
    server = ("127.0.0.1", port)
    _, client = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: turn.TurnClientUdpProtocol(
            server,
            username=user,
            password=base64.b64encode(digest).decode(),
            lifetime=600,
            channel_refresh_time=500,
        ),
        remote_addr=server,
    )
    await client.connect()
    return client


@needs("coturn")
async def test_a_relay_reaches_the_server_and_nobody_else():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = [f"--{option}" for option in options_of("compose.yaml")]
    given += ["--allowed-peer-ip=203.0.113.9"]
    given += ["--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", f"--listening-port={port}"]
    given += ["--use-auth-secret", f"--static-auth-secret={SECRET}", "--realm=letstalk"]
    given += ["--no-tls", "--no-dtls", "--no-cli", "--log-file=stdout", "--pidfile="]
    process = await asyncio.create_subprocess_exec(
        "turnserver", "-n", *given, stdout=subprocess.DEVNULL
    )
    try:
        client = await allocated(port)
        # A permission sends nothing. IPv6 ranges that contain mapped IPv4 would refuse all.
        await client.request_with_retry(permission_for("203.0.113.9"))
        for address in ("198.51.100.7", "8.8.8.8", "0.0.0.1",
                        "10.1.1.1", "100.64.0.1", "127.0.0.1", "169.254.169.254",
                        "172.16.0.1", "192.168.1.1", "198.18.0.1", "240.0.0.1"):  # fmt: skip
            with pytest.raises(stun.TransactionFailed) as refused:
                await client.request_with_retry(permission_for(address))
            assert refused.value.response.attributes["ERROR-CODE"][0] == 403, address
        await client.delete()
    finally:
        process.terminate()
        await process.wait()
