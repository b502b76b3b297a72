"""Measures what bad networks do to picture and sound: loss, jitter, little bandwidth, an outage,
a new address.

Each host has a network namespace of its own, which needs root. The link between them is netem's
where the kernel has it (`--link netem`); elsewhere, a thread of this process does the same
(`--link tun`). The avatar costs nothing to make and marks when its sounds began
(`bad_network/clock_avatar.py`). The peer is aiortc's, or Chromium with the page's own module.

    python benchmarks/bench_network.py -o benchmarks/results/network-2core.json
    python benchmarks/bench_network.py --peer aiortc --case outage --seconds 20

Without options, both peers do every case. The last line is JSON.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad_network.hosts import Host, why_not
from bad_network.judging import Judgement, judge
from bad_network.links import SERVER, Impairment, Link, TunLink, linked, why_no_netem
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__

HERE = Path(__file__).parent
OUTAGE_S = 5.0
WARM_UP_S = 4.0
PORT = 8080


@dataclass(frozen=True, slots=True)
class Case:
    """A bad network.

    Attributes:
        impairment: what is wrong with the link after the warm-up.
        event: what happens in the middle: `outage`, `move` (the client's host gets another
            address), `rebind` (a router gives it one), or nothing.
    """

    impairment: Impairment = Impairment()
    event: str = ""


CASES = {
    "good": Case(),
    "loss": Case(Impairment(loss=0.1)),
    "jitter": Case(Impairment(jitter_ms=100)),
    "rate": Case(Impairment(rate_kbit=300)),
    "outage": Case(event="outage"),
    "move": Case(event="move"),
    "rebind": Case(event="rebind"),
    "all": Case(Impairment(loss=0.1, jitter_ms=100, rate_kbit=300), event="outage"),
}


@contextmanager
def serving(host: Host, log: Path | None = None) -> Iterator[str]:
    """Run the server in a host; yield its address."""
    command = [sys.executable, "-m", "bad_network.clock_avatar"]
    command = host.command([*command, "--host", SERVER, "--port", str(PORT)])
    errors = open(log, "w") if log else None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=HERE, env=_environment()
    ) as process:
        try:
            assert process.stdout is not None
            if re.search(r"http://\S+", process.stdout.readline()) is None:
                raise SystemExit("the server did not start")
            yield f"http://{SERVER}:{PORT}"
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            if errors is not None:
                errors.close()


def measure(
    peer: str,
    name: str,
    seconds: float,
    *,
    netem: bool,
    keep: Path | None = None,
    warm_up_s: float = WARM_UP_S,
) -> Judgement:
    """Measure one case.

    Args:
        peer: `aiortc` or `chromium`.
        name: of the case.
        seconds: its duration after the warm-up, without the outage.
        netem: which link, see `linked`.
        keep: folder for the recording and the server's log.
        warm_up_s: time before the link becomes bad.
    """
    case = CASES[name]
    with (
        Host("server") as server,
        Host("client") as client,
        linked(server, client, seed=1, netem=netem) as link,
        serving(server, keep / f"{peer}-{name}.log" if keep else None) as address,
    ):
        total_s = warm_up_s + seconds + (OUTAGE_S if case.event == "outage" else 0)
        module = f"bad_network.{peer}_peer"
        command = [sys.executable, "-m", module, address, "--seconds", str(total_s)]
        with subprocess.Popen(
            client.command(command),
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env=_environment(),
        ) as process:
            assert process.stdout is not None
            started = json.loads(process.stdout.readline())
            began_s, ended_s = perform(case, link, seconds, warm_up_s)
            recording = json.loads(process.stdout.readline())
            process.wait(timeout=60)
    if keep is not None:
        kept = recording | {"started": started, "began_s": began_s, "ended_s": ended_s}
        (keep / f"{peer}-{name}.json").write_text(json.dumps(kept), encoding="utf-8")
    return judge(recording, started, began_s=began_s, ended_s=ended_s)


def perform(case: Case, link: Link, seconds: float, warm_up_s: float) -> tuple[float, float | None]:
    """Let a case happen; return when the link became bad, and when the event was over."""
    time.sleep(warm_up_s)
    link.impair(case.impairment)
    began_s, over_s = time.monotonic(), None
    time.sleep(seconds / 2)
    if case.event == "outage":
        link.impair(Impairment(is_down=True))
        time.sleep(OUTAGE_S)
        link.impair(case.impairment)
        over_s = time.monotonic()
    elif case.event:
        happen = link.move if case.event == "move" else _rebinding(link)
        happen()
        over_s = time.monotonic()
    time.sleep(seconds / 2)
    return began_s, over_s


def _rebinding(link: Link) -> Any:
    if not isinstance(link, TunLink):
        raise SystemExit("netem cannot translate addresses; use --link tun for the case rebind")
    return link.rebind


def _environment() -> dict[str, str]:
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result; cases of an earlier one that were not measured again stay in the file."""
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}
    for peer, found in result["cases"].items():
        cases[peer] = cases.get(peer, {}) | found
    path.write_text(json.dumps(result | {"cases": cases}, indent=1) + "\n", encoding="utf-8")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--peer", action="append", choices=["aiortc", "chromium"], help="default: both")
    add("--case", action="append", choices=list(CASES), help="default: all")
    add("--seconds", type=float, default=30, help="length of each case (%(default)s)")
    add("--link", choices=["netem", "tun"], help="default: netem where the kernel has it")
    add("--keep", type=Path, help="folder for recordings and the servers' logs")
    add("-o", "--output", type=Path, metavar="FILE", help="also write it; keeps other cases")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cases, and print a table and the JSON line."""
    options = parse(argv)
    if reason := why_not():
        raise SystemExit(reason)
    link = options.link or ("tun" if why_no_netem() else "netem")
    found: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {"benchmark": "network", "link": link, "cases": found}
    with time_limit(limit_s(options, 2 * len(CASES) * (options.seconds + 10)), result):
        measure_all(options, link, found)
    result |= {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "version": __version__,
    }
    print(json.dumps(result))
    if options.output is not None:
        write(options.output, result)
    passed = all(case["passed"] for cases in found.values() for case in cases.values())
    return int(not passed or "partial" in result)


def measure_all(options: argparse.Namespace, link: str, found: dict[str, dict[str, Any]]) -> None:
    """Add the figures of all cases, one after the other."""
    for peer in options.peer or ["aiortc", "chromium"]:
        for name in options.case or list(CASES):
            if link == "netem" and name == "rebind":
                continue
            got = measure(peer, name, options.seconds, netem=link == "netem", keep=options.keep)
            measured = {"seconds": options.seconds, "load": round(os.getloadavg()[0], 1)}
            found.setdefault(peer, {})[name] = got.as_json() | measured
            if not options.json:
                figures = (f"{k} {v}" for k, v in got.as_json().items())
                print(f"{peer:9} {name:8}", *figures, flush=True)


if __name__ == "__main__":
    sys.exit(main())
