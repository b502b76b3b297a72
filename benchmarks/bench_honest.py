"""What an honest session costs, of two trees of this repository by turns.

A server with a model that takes no time and two sessions, one watched over WebRTC and one on a
WebSocket, runs in turns from the sources of each tree. Client and measurement are the same.

    git worktree add ../before 5a2aeae
    python benchmarks/bench_honest.py --before ../before -o benchmarks/results/honest-2core.json

Of each run: how late frames arrive (against the least delayed one), in percentiles, and processor
time of all processes of the server per minute. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attack.rounds import Stage
from attack.viewers import Player, SocketViewer
from card import commit, processor_name
from soak.holdings import descendants
from time_limit import add_limit, limit_s, time_limit

ROOT = Path(__file__).parents[1]
QUIET_S, START_S = 5.0, 30.0
"""Time before each measurement, and what a start and an end take."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KINDS = (Player, SocketViewer)


async def measured(tree: Path, seconds: float, folder: Path) -> dict[str, Any]:
    """Run the server of a tree, and return what two sessions of it cost."""
    path = os.pathsep.join(map(str, (tree, tree / "server")))
    os.environ["PYTHONPATH"] = path
    async with Stage.opened(256, 512, folder, kinds=KINDS) as stage:
        await asyncio.sleep(QUIET_S)
        before_s, cpu_s = time.monotonic(), processor_s(stage.process.pid)
        await asyncio.sleep(seconds)
        now_s = time.monotonic()
        spent_s = processor_s(stage.process.pid) - cpu_s
        row: dict[str, Any] = {"cpu_s_per_min": round(60 * spent_s / (now_s - before_s), 2)}
        for viewer in stage.viewers:
            late_ms = viewer.arrivals.lateness_ms(before_s, now_s)
            name = "webrtc" if isinstance(viewer, Player) else "websocket"
            p50, p95 = np.percentile(late_ms, [50, 95])
            row |= {f"{name}_p50_ms": round(float(p50), 2), f"{name}_p95_ms": round(float(p95), 2)}
            row[f"{name}_frames"] = len(late_ms)
        return row


def processor_s(pid: int) -> float:
    """Return the processor time of a process and those below it, s."""
    total = 0
    for each in (pid, *descendants(pid)):
        try:
            fields = Path(f"/proc/{each}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def commit_of(tree: Path) -> str:
    """Return the commit of a tree."""
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the median of each figure over the runs of one tree."""
    keys = [key for key, value in runs[0].items() if isinstance(value, float)]
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in keys}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--before", type=Path, required=True, metavar="FOLDER", help="the other tree")
    add("--seconds", type=float, default=60.0, help="of each run (%(default)s)")
    add("--rounds", type=int, default=3, help="runs of each tree (%(default)s)")
    add("--note", default="", help="a remark for the result, such as what else ran")
    add("-o", "--output", type=Path, metavar="FILE", help="also write the result here")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args(argv)


async def run(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Measure both trees by turns; add each run to `rows` as soon as it is measured."""
    trees = {"before": options.before.resolve(), "after": ROOT}
    for number in range(options.rounds):
        for name in trees if number % 2 == 0 else reversed(trees):
            with tempfile.TemporaryDirectory(prefix="letstalk-honest-") as folder:
                found = await measured(trees[name], options.seconds, Path(folder))
            rows.append({"tree": name, "commit": commit_of(trees[name])} | found)
            rows[-1]["load_after"] = os.getloadavg()[0]
            if not options.json:
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = parse(argv)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "benchmark": "honest",
        "device": processor_name(),
        "cores": os.cpu_count(),
        "model": "mock: it sways the portrait, and takes no time",
        "sessions": len(KINDS),
        "seconds": options.seconds,
        "note": options.note,
        "commit": commit(),
        "runs": rows,
    }
    os.environ |= {name: secrets.token_hex(32) for name in ("LETSTALK_SECRET", "LETSTALK_API_KEY")}
    with time_limit(limit_s(options, 2 * options.rounds * (options.seconds + START_S)), result):
        asyncio.run(run(options, rows))
    for tree in ("before", "after"):
        if of_tree := [row for row in rows if row["tree"] == tree]:
            result[tree] = medians(of_tree)
    print(json.dumps(result))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
