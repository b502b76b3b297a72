"""`compose.yaml`, by starting its processes without Docker: HAProxy, two workers, coturn."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cluster_stage.cluster import wait_for

from letstalk_server.cluster.haproxy import Frontend, WorkerAddress, configuration
from letstalk_server.main import parse
from letstalk_server.settings import AGENT_PORT

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "deploy" / "run_compose.py"
WORKER = ROOT / "benchmarks" / "cluster_worker.py"
TEXT = (ROOT / "compose.yaml").read_text("utf-8")
API_KEY = "an-api-key-of-thirty-two-characters"
VARIABLES = {
    "LETSTALK_SECRET": "s" * 32,
    "LETSTALK_API_KEY": API_KEY,
    "TURN_SECRET": "t" * 32,
    "TURN_HOST": "127.0.0.1",
    "PUBLIC_IP": "127.0.0.1",
}
FIXED_PORTS = (8091, 8092, 8191, 8192, 3478)


def load_script():
    spec = importlib.util.spec_from_file_location("run_compose", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_compose"] = module
    spec.loader.exec_module(module)
    return module


script = load_script()


def test_the_file_names_haproxy_two_workers_and_coturn():
    wanted = script.processes(TEXT, VARIABLES)
    assert [process.name for process in wanted] == ["proxy", "w1", "w2", "turn"]
    proxy, first, second, turn = (process.command for process in wanted)
    assert proxy[-1] == str(ROOT / "./deploy/compose/haproxy.cfg") and Path(proxy[-1]).exists()
    assert first == second == ("letstalk", "serve") == tuple(script.image_command())
    assert turn[0] == "turnserver" and f"--static-auth-secret={'t' * 32}" in turn


def test_a_variable_without_a_value_is_named():
    with pytest.raises(SystemExit, match="TURN_SECRET is not set: see .env.example"):
        script.processes(TEXT, VARIABLES | {"TURN_SECRET": ""})


def test_the_example_of_the_environment_names_each_variable():
    example = (ROOT / ".env.example").read_text("utf-8")
    for name in re.findall(r"\$\{(\w+):\?", TEXT):
        assert re.search(rf"^{name}=", example, re.MULTILINE), name


def test_the_configuration_is_of_these_workers(monkeypatch):
    addresses = []
    for process in script.processes(TEXT, VARIABLES)[1:3]:
        for name, value in process.environment.items():
            monkeypatch.setenv(name, value)
        settings = parse([])
        assert settings.auth_required and settings.public_address == VARIABLES["PUBLIC_IP"]
        name, port, agent = settings.worker_name, settings.port, settings.agent_port
        addresses.append(f"{name}={settings.host}:{port},agent={agent}")
    bind = '"${LETSTALK_HOST}:${LETSTALK_PORT}"'
    made = configuration(
        [WorkerAddress.parse(text, AGENT_PORT) for text in addresses], Frontend(bind)
    )
    assert (ROOT / "deploy" / "compose" / "haproxy.cfg").read_text("utf-8") == made


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.skipif(
    None in (shutil.which("haproxy"), shutil.which("turnserver")),
    reason="haproxy or coturn missing",
)
def test_its_processes_serve_place_and_relay(unused_port):
    if taken := [port for port in FIXED_PORTS if not is_free(port)]:
        pytest.skip(f"ports of compose.yaml are taken: {taken}")
    worker = shlex.join([sys.executable, str(WORKER), "--size", "256", "--max-sessions", "1"])
    environment = os.environ | VARIABLES | {"LETSTALK_PORT": str(unused_port)}
    command = [sys.executable, str(SCRIPT), "--worker", worker]
    url, headers = f"http://127.0.0.1:{unused_port}", {"authorization": f"Bearer {API_KEY}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as running:
        try:
            with httpx.Client(base_url=url, headers=headers) as client:
                found = set()

                def both_placed():
                    response = try_post(client)
                    if response is not None and response.status_code == 201:
                        session = response.json()
                        found.add(session["session"].partition(".")[0])
                        assert session["ice_servers"][0]["urls"] == [TURN_URL]
                    return found == {"w1", "w2"}

                wait_for(both_placed, 60)
                assert "<html" in client.get("/").text
            assert stun_answer(3478)[:2] == b"\x01\x01", "coturn answers a binding request"
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(60)
    assert running.returncode == 0


TURN_URL = "turn:127.0.0.1:3478?transport=udp"


def try_post(client):
    try:
        return client.post("/v1/sessions")
    except httpx.TransportError:  # the proxy is being started
        return None


def stun_answer(port):
    """Return the answer to a binding request of STUN (RFC 8489)."""
    request = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + os.urandom(12)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(5)
        peer.sendto(request, ("127.0.0.1", port))
        return peer.recv(2048)


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
