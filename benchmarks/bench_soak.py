"""Proves that the server can run for long: memory, lip sync, and nothing left behind.

Each part runs the server in a process of its own, with the model isolated as under
`letstalk serve`, and connects real clients over loopback.

    mock      four sessions at once at real rate with a model that takes no time: two WebRTC peers
              (VP8, H.264), a WHIP and WHEP pair, a WebSocket; `--hours` long
    embedded  one session with the embedded model, over WebRTC; `--hours` long
    churn     `--opened` sessions opened and closed by each kind of connection: WebRTC, WHIP, WHEP,
              WebSocket, and speech.say on a WebSocket

    python benchmarks/bench_soak.py --hours 2 --parts mock,embedded,churn
    python benchmarks/bench_soak.py --hours 0.1 --parts embedded

The clients speak in beeps, and the avatar flashes at the beginning of each, so that the skew of
video and audio is measured where they are received: by the sender reports over WebRTC, by the frame
numbers on the WebSocket. Bars, of which a missed one makes the exit status 1:

- memory of all processes of the server: the slope of a straight line, fitted by least squares from
  half an hour on, or from a quarter on of a run shorter than two hours, is below 1 MB/h. A fitted
  part shorter than half an hour is no measure of a slope per hour: it is given, not judged.
- skew: p95 at most 40 ms in every quarter of an hour and for every client, of at least 90 % of the
  beeps.
- nothing more afterwards than before: tasks, threads, file descriptors, child processes, segments
  of shared memory, temporary files; and none of these after the server's end.

The last line is JSON; `--output` writes it to a file for each part.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from card import commit, processor_name
from soak.holdings import Holdings, slope
from soak.onsets import PERIOD_S
from soak.runs import (
    CHURN_KINDS,
    Churn,
    LongRun,
    Server,
    churns,
    four_clients,
    long_run,
    one_client,
    serving,
)
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__

PARTS = ("mock", "embedded", "churn")
QUARTER_S = 900.0
MEMORY_BAR_MB_PER_H, SKEW_BAR_MS, FOUND_BAR = 1.0, 40.0, 0.9
SHORTEST_FIT_S = 1790.0
CHURN_BAR_KB = 10.0
"""Memory that a session may leave behind, of the second half of the sessions."""

CHURN_SIZE = 256
OPENED_S = 1.0
"""What opening and closing a session takes, with some reserve."""


def bar(name: str, value: float | None, limit: float, met: bool | None = None) -> dict[str, Any]:
    """Return one bar; `met` is None for what cannot be judged."""
    if met is None and value is not None:
        met = value <= limit
    return {"bar": name, "value": value, "limit": limit, "met": met}


def memory_bar(run: LongRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fitted slope of the memory, and its bar."""
    from_s = min(1800.0, run.seconds / 4)
    fit = slope(run.times_s, run.memory_mb, from_s)
    figures: dict[str, Any] = {
        "first_mb": run.memory_mb[0],
        "last_mb": run.memory_mb[-1],
        "processes_mb": every_quarter(run),
    }
    if fit is None:
        return figures, unjudged("memory slope, MB/h", None, MEMORY_BAR_MB_PER_H)
    figures |= asdict(fit)
    name = "memory slope, MB/h"
    if fit.to_s - fit.from_s < SHORTEST_FIT_S:
        return figures, unjudged(name, fit.mb_per_h, MEMORY_BAR_MB_PER_H)
    return figures, bar(name, fit.mb_per_h, MEMORY_BAR_MB_PER_H)


def every_quarter(run: LongRun) -> list[list[float]]:
    """Return the memory of each process once in a quarter of an hour: which of them grows."""
    starts = np.arange(0, run.seconds, QUARTER_S)
    return [run.process_mb[int(np.searchsorted(run.times_s, at_s))] for at_s in starts]


def unjudged(name: str, value: float | None, limit: float) -> dict[str, Any]:
    """Return a bar for which the run was too short."""
    return {"bar": name, "value": value, "limit": limit, "met": None}


def skew_bars(run: LongRun) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the skews of each quarter of an hour and client, and their bars."""
    quarters, bars = {}, []
    for name, skews in run.skews.items():
        rows = [quarter_row(skews, number, run.seconds) for number in range(quarters_of(run))]
        quarters[name] = rows
        known = [row["p95_ms"] for row in rows if row["p95_ms"] is not None]
        worst = max(known) if len(known) == len(rows) else None  # nothing was seen or heard
        met = worst is not None and worst <= SKEW_BAR_MS
        bars.append(bar(f"skew p95 of {name}, ms", worst, SKEW_BAR_MS, met))
        found = min(row["found"] for row in rows)
        bars.append(bar(f"share of beeps found by {name}", found, FOUND_BAR, found >= FOUND_BAR))
    return quarters, bars


def quarters_of(run: LongRun) -> int:
    """Return the number of quarters of an hour; a rest of less than a minute is none."""
    return max(1, int((run.seconds + QUARTER_S - 60) // QUARTER_S))


def quarter_row(
    skews: Sequence[tuple[float, float]], number: int, seconds: float
) -> dict[str, Any]:
    """Return the skew of one quarter of an hour."""
    from_s, to_s = number * QUARTER_S, min((number + 1) * QUARTER_S, seconds)
    sizes = np.abs([skew for at_s, skew in skews if from_s <= at_s < to_s])
    expected = (to_s - from_s) / PERIOD_S
    if not sizes.size:
        return {"from_s": from_s, "p50_ms": None, "p95_ms": None, "found": 0.0}
    return {
        "from_s": from_s,
        "p50_ms": round(float(np.percentile(sizes, 50)), 1),
        "p95_ms": round(float(np.percentile(sizes, 95)), 1),
        "found": round(min(1.0, sizes.size / expected), 3),
    }


def lost_bar(run: LongRun) -> dict[str, Any]:
    """Return how many clients lost their connection."""
    lost = sum("lost" in client["errors"] for client in run.clients.values())
    return bar("clients that lost their connection", lost, 0)


def count_bars(before: Holdings, after: Holdings) -> list[dict[str, Any]]:
    """Return a bar for everything that must not be more afterwards."""
    held = after.counts()
    return [bar(f"{name} afterwards", held[name], most) for name, most in before.counts().items()]


def end_bars(server: Server) -> list[dict[str, Any]]:
    """Return what a server that was stopped must have left: nothing."""
    return [
        bar("exit status of the server", server.status, 0),
        bar("child processes after its end", server.survivors, 0),
        bar("temporary files after its end", server.left_files, 0),
    ]


def soak(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run the part with sessions that last."""
    seconds = options.hours * 3600
    size = options.size or (512 if part == "embedded" else 256)
    clients = one_client if part == "embedded" else four_clients
    with serving(part, size, patient=options.patient) as server:
        run = asyncio.run(long_run(server, clients, seconds, note(options)))
    memory, memory_limit = memory_bar(run)
    quarters, bars = skew_bars(run)
    return {
        "part": part,
        "size": size,
        "seconds": seconds,
        "memory": memory,
        "skew": quarters,
        "clients": run.clients,
        "frames_shown": run.shown,
        "frames_repeated": run.repeated,
        "before": asdict(run.before),
        "after": asdict(run.after),
        "bars": [
            memory_limit,
            *bars,
            lost_bar(run),
            *count_bars(run.before, run.after),
            *end_bars(server),
        ],
    }


def open_and_close(options: argparse.Namespace) -> dict[str, Any]:
    """Run the part with very many sessions, kind by kind on one server."""
    kinds: dict[str, Any] = {}
    bars: list[dict[str, Any]] = []
    size = options.size or CHURN_SIZE
    with serving("mock", size, patient=options.patient) as server:
        results = asyncio.run(churns(server, options.kinds, options.opened, note(options)))
    for kind, done in results.items():
        kinds[kind] = churn_row(done)
        held = count_bars(done.before, done.after)
        limit = bar("memory of a session, kB", kinds[kind]["kb_per_session"], CHURN_BAR_KB)
        failed = bar("sessions that could not be opened", len(done.failures), 0)
        bars += [row | {"bar": f"{kind}: {row['bar']}"} for row in [failed, limit, *held]]
    return {
        "part": "churn",
        "size": size,
        "opened": options.opened,
        "kinds": kinds,
        "bars": bars + end_bars(server),
    }


def churn_row(done: Churn) -> dict[str, Any]:
    """Return the figures of one kind of connection."""
    second = done.count - done.count // 2
    grown_kb = (done.after.rss_mb - done.half.rss_mb) * 1000 / max(1, second)
    return {
        "seconds": done.seconds,
        "failures": done.failures,
        "kb_per_session": round(grown_kb, 2),
        "before": asdict(done.before),
        "half": asdict(done.half),
        "after": asdict(done.after),
    }


def card() -> dict[str, Any]:
    """Return what is measured, and on which machine."""
    return {
        "benchmark": "soak",
        "device": processor_name(),
        "cores": os.cpu_count(),
        "version": __version__,
        "commit": commit(),
    }


def remarks(options: argparse.Namespace) -> dict[str, Any]:
    """Return how the run differs from one on an idle machine."""
    return {"note": options.note, "patient": options.patient}


def note(options: argparse.Namespace) -> Any:
    """Return what tells the progress: on stderr, so that stdout holds the result alone."""

    def tell(line: str) -> None:
        if not options.json:
            print(line, file=sys.stderr, flush=True)

    return tell


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--hours", type=float, default=2.0, help="of each part with lasting sessions (%(default)s)")
    add("--parts", type=_names(PARTS), default=PARTS, help="of: " + ", ".join(PARTS))
    add("--kinds", type=_names(tuple(CHURN_KINDS)), default=tuple(CHURN_KINDS), help="of the churn")
    add("--opened", type=int, default=1000, help="sessions of each kind (%(default)s)")
    add("--size", type=int, help="side of the video, px (embedded 512, else 256)")
    add(
        "--patient",
        action="store_true",
        help="a busy machine: neither slow clients nor a slow model are taken for lost",
    )
    add("--note", default="", help="a remark for the result, such as what else ran")
    add("-o", "--output", type=_folder, metavar="FOLDER", help="write soak-PART.json for each part")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args(argv)


def _names(known: Sequence[str]) -> Any:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.replace(",", " ").split())
        if not names or not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"expected some of: {', '.join(known)}")
        return names

    return read


def _folder(text: str) -> Path:
    """Make the folder before hours are measured that could not be written there."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"expected a folder that can be made: {error}") from None
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts in turn; return 1 if a bar was missed."""
    options = parse(argv)
    parts: list[dict[str, Any]] = []
    result: dict[str, Any] = card() | remarks(options) | {"parts": parts}
    lasting_s = 3600 * options.hours * sum(part != "churn" for part in options.parts)
    opening_s = OPENED_S * options.opened * len(options.kinds) * ("churn" in options.parts)
    with time_limit(limit_s(options, lasting_s + opening_s), result):
        for part in options.parts:
            parts.append(run_part(part, options))
    met = all(row["met"] is not False for part in parts for row in part["bars"])
    result["met"] = met and "partial" not in result
    print(json.dumps(result))
    return 0 if result["met"] else 1


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part, print its bars, and write its result file."""
    result = open_and_close(options) if part == "churn" else soak(part, options)
    met = all(row["met"] is not False for row in result["bars"])
    if not options.json:
        print_bars(result)
    if options.output is not None:
        path = options.output / f"soak-{part}-{os.cpu_count()}core.json"
        whole = card() | remarks(options) | result | {"met": met}
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return result


def print_bars(result: dict[str, Any]) -> None:
    """Print the bars as a table."""
    words = {True: "met", False: "MISSED", None: "not judged: too short"}
    for row in result["bars"]:
        print(f"{result['part']:>9}  {row['bar']:<44} {row['value']!s:>9}  {words[row['met']]}")


if __name__ == "__main__":
    sys.exit(main())
