"""Workers and proxies as processes on the hosts of a stage."""

import csv
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from cluster_stage.hosts import Hosts
from letstalk_server.cluster.haproxy import DnsWorkers, Frontend, WorkerAddress, configuration

WORKER = Path(__file__).parents[1] / "cluster_worker.py"
API_KEY = "an-api-key-for-the-cluster-stage-0123456789"
PORT, AGENT_PORT, STATS_PORT = 8080, 8081, 8404
OPERATOR = {"authorization": f"Bearer {API_KEY}"}
START_S = 60.0


class Cluster:
    """Workers and proxies.

    Args:
        hosts: where they run.
        places: sessions that a worker takes.
        drain_s: `--drain-s` of the workers.
    """

    def __init__(self, hosts: Hosts, places: int, drain_s: float = 30.0) -> None:
        self.hosts, self.places, self._drain_s = hosts, places, drain_s
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._workers: list[str] = []
        self._folder = Path(tempfile.mkdtemp(prefix="cluster-"))

    def start_workers(self, *names: str) -> None:
        """Start workers; `wait_ready` waits for them."""
        for name in names:
            address = self.hosts.address(name)
            options = f"--host {address} --port {PORT} --agent-port {AGENT_PORT} --size 256"
            options += f" --worker-name {name} --max-sessions {self.places} --auth on --badge off"
            options += f" --drain-s {self._drain_s} --speech off"
            self._start(name, [sys.executable, str(WORKER), *options.split()])
            if name not in self._workers:
                self._workers.append(name)

    def start_proxy(self, name: str, dns: DnsWorkers | None = None) -> None:
        """Start a proxy in front of the workers that were started so far, or that DNS lists."""
        address = self.hosts.address(name)
        workers = dns or [
            WorkerAddress(each, self.hosts.address(each), PORT, AGENT_PORT)
            for each in self._workers
        ]
        frontend = Frontend(f"{address}:{PORT}", stats=f"{address}:{STATS_PORT}")
        path = self._folder / f"{name}.cfg"
        path.write_text(configuration(workers, frontend), encoding="utf-8")
        self._start(name, ["haproxy", "-db", "-f", str(path)])

    def url(self, host: str) -> str:
        """Return the address of a worker or a proxy."""
        return f"http://{self.hosts.address(host)}:{PORT}"

    def wait_ready(self, proxy: str, workers: int) -> None:
        """Wait until a proxy has this number of workers that take sessions."""
        wait_for(lambda: list(self.weights(proxy).values()).count(100) == workers, START_S)

    def places_weighed(self, proxy: str) -> int:
        """Return how many servers of a proxy are up and wholly free, whatever their names."""
        rows = [row for row in self._rows(proxy) if _is_up(row)]
        return sum(row["weight"] == "100" for row in rows)

    def weights(self, proxy: str) -> dict[str, int]:
        """Return the weight of each worker that is up, as a proxy sees it."""
        return {row["svname"]: int(row["weight"]) for row in self._rows(proxy) if _is_up(row)}

    def states(self, proxy: str) -> dict[str, str]:
        """Return the state of each worker as a proxy sees it."""
        return {row["svname"]: row["status"] for row in self._rows(proxy)}

    def sessions(self, worker: str) -> int:
        """Return how many sessions a worker has."""
        return int(httpx.get(f"{self.url(worker)}/healthz").json()["sessions"])

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to a worker or a proxy."""
        self.processes[name].send_signal(number)

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.kill()
            process.wait(30)

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        return (self._folder / f"{name}.log").read_text(encoding="utf-8")

    def _start(self, name: str, command: list[str]) -> None:
        environment = os.environ | {
            "LETSTALK_API_KEY": API_KEY,
            "LETSTALK_SECRET": "a-secret-that-all-workers-share-0123456789",
            "OMP_NUM_THREADS": "1",
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.hosts.command(name, command), env=environment, stdout=log, stderr=log
            )

    def _rows(self, proxy: str) -> list[dict[str, str]]:
        try:
            url = f"http://{self.hosts.address(proxy)}:{STATS_PORT}/;csv"
            text = httpx.get(url).text.removeprefix("# ")
        except httpx.TransportError:  # it is being started
            return []
        rows = csv.DictReader(io.StringIO(text))
        return [row for row in rows if row["pxname"] == "place" and row["svname"] != "BACKEND"]


@contextmanager
def running(
    hosts: Hosts, *, workers: int, proxies: int, places: int, drain_s: float = 30.0
) -> Iterator[Cluster]:
    """Yield a cluster of workers `w1`... and proxies `p1`... that is ready."""
    cluster = Cluster(hosts, places, drain_s)
    try:
        cluster.start_workers(*(f"w{number + 1}" for number in range(workers)))
        for number in range(proxies):
            cluster.start_proxy(f"p{number + 1}")
        for number in range(proxies):
            cluster.wait_ready(f"p{number + 1}", workers)
        yield cluster
    finally:
        cluster.close()


def wait_for(wanted: Callable[[], bool], limit_s: float) -> float:
    """Wait until a condition holds; return how long that took, s.

    Raises:
        TimeoutError: It does not hold in time.
    """
    began_s = time.monotonic()
    while not wanted():
        if time.monotonic() - began_s > limit_s:
            raise TimeoutError(f"it did not happen within {limit_s:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - began_s


def _is_up(row: dict[str, str]) -> bool:
    return row["status"].startswith("UP")
