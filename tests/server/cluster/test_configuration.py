"""`letstalk cluster haproxy`: what it writes, and what HAProxy says about it."""

import socket
import subprocess
import time
from contextlib import ExitStack, suppress

import pytest
from support.packages import needs

from letstalk_rt.cli import main as command
from letstalk_rt.errors import ConfigError
from letstalk_server.cluster.haproxy import DnsWorkers, Frontend, WorkerAddress, configuration
from letstalk_server.cluster.main import main

needs_haproxy = needs("haproxy")
WORKERS = ["--worker", "w1=10.0.0.1:8080", "--worker", "w2=10.0.0.2:8080,agent=9000,weight=200"]


def accepted(path):
    done = subprocess.run(["haproxy", "-c", "-f", path], capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr + done.stdout, done.stderr
    return path.read_text()


@needs_haproxy
def test_haproxy_accepts_named_workers(tmp_path, capsys):
    path = tmp_path / "haproxy.cfg"
    options = [*WORKERS, "--stats", "127.0.0.1:8404", "-o", str(path)]
    assert command.main(["cluster", "haproxy", *options]) == 0
    text = accepted(path)
    assert "server w1 10.0.0.1:8080 weight 100" in text and "agent-port 8081" in text
    assert "server w2 10.0.0.2:8080 weight 200" in text and "agent-port 9000" in text
    assert main(["haproxy", *WORKERS]) == 0
    assert capsys.readouterr().out == configuration(
        [WorkerAddress.parse(text, 8081) for text in WORKERS[1::2]]
    )


@needs_haproxy
def test_haproxy_accepts_workers_that_dns_lists(tmp_path):
    for number, nameserver in enumerate(([], ["--nameserver", "10.96.0.10:53"])):
        path = tmp_path / f"{number}.cfg"
        options = ["--dns", "letstalk.default.svc.cluster.local:8080", "--count", "7"]
        assert main(["haproxy", *options, *nameserver, "-o", str(path)]) == 0
        assert "server-template w 1-7 letstalk.default.svc.cluster.local:8080" in accepted(path)


@needs_haproxy
def test_one_address_has_a_limit_of_connections_and_a_private_one_has_none(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    text = configuration(
        [WorkerAddress.parse(WORKERS[1], 8081)],
        Frontend(f"127.0.0.1:{port}", max_sockets_per_address=5),
    )
    strict = tmp_path / "strict.cfg"
    strict.write_text(text.replace("127.0.0.0/8", "192.0.2.0/24"))
    usual = tmp_path / "usual.cfg"
    usual.write_text(text)
    for path, kept in ((strict, 5), (usual, 9)):
        process = subprocess.Popen(["haproxy", "-db", "-f", path], stderr=subprocess.DEVNULL)
        try:
            assert is_kept(port)
            assert kept_of(port, 9) == kept
        finally:
            process.kill()
            process.wait()
    with pytest.raises(ConfigError, match="max_sockets_per_address"):
        Frontend(max_sockets_per_address=-1)
    assert "stick-table" not in configuration(
        [WorkerAddress.parse(WORKERS[1], 8081)], Frontend(max_sockets_per_address=0)
    )


def kept_of(port, count):
    """Return how many of so many connections at once are not closed by the proxy."""
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            with suppress(ConnectionError):
                opened.append(stack.enter_context(connected(port)))
        return sum(is_open(each) for each in opened)


def is_kept(port):
    """Return whether a connection is kept, once the proxy has started."""
    for _ in range(100):
        if kept_of(port, 1):
            return True
        time.sleep(0.1)
    return False


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=0.3)


def is_open(opened):
    try:
        return opened.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    "worker",
    ["w1", "w1=10.0.0.1", "W1=10.0.0.1:8080", "w.1=10.0.0.1:8080", "=10.0.0.1:8080"]
    + ["w1=:8080", "w1=10.0.0.1:99999", "w1=10.0.0.1:80,weight=0", "w1=10.0.0.1:80,size=2"],
)
def test_a_worker_that_cannot_be_read_is_refused(worker):
    with pytest.raises(ConfigError, match="expected"):
        WorkerAddress.parse(worker, 8081)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "--worker or by --dns"),
        ([*WORKERS, "--dns", "a.b:80"], "not both"),
        (WORKERS[:2] * 2, "each once"),
        (["--dns", "a.b"], "SERVICE:PORT"),
        (["--dns", "a.b:80", "--count", "0"], "1 to 4096"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        main(["haproxy", *options])


def test_no_workers_make_no_configuration():
    with pytest.raises(ConfigError, match="at least one"):
        configuration([])
    assert "1-3 a.b:80" in configuration(DnsWorkers("a.b", 80, 81, 3))
