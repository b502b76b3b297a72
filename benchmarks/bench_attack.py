"""Attacks a server while four honest sessions are live, and measures what they notice.

Two viewers over WebRTC and two on WebSockets watch four sessions of one subject at 25 fps.
Meanwhile each attack of `attack/attackers.py` runs for `--seconds` from a stranger or another
subject, in a process of its own that gives way to others, as if it ran elsewhere. The model takes
no time: four sessions of the embedded one are too much for small machines, and what is attacked is
the server.

    python benchmarks/bench_attack.py --seconds 60 -o benchmarks/results/attack-2core.json
    python benchmarks/bench_attack.py --seconds 5 --attack film-bombs --attack idle-sockets

Bars, of which a missed one makes the exit status 1:

- no frame is late by more than 200 ms: by its timestamp, or after the frame before it;
- memory of all processes of the server, when the sessions of the attacker have ended, is as before,
  within 32 MB: waiting decoders, of 45 MB each, are there before and afterwards;
- a second after the attack, /healthz and a new session of another honest subject answer in 1 s.

The first row, `none`, is without an attack: what this machine does by itself. The last line is
JSON.
"""

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attack.attackers import ATTACKS
from attack.rounds import GROWN_MB, NONE, Row, Stage, measured
from card import commit, processor_name
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__

LATE_MS, ANSWER_MS = 200.0, 1000.0
ROUND_S = 20.0
"""What a row takes beside the attack."""


def judged(row: Row) -> dict[str, Any]:
    """Return a row with whether it meets each bar."""
    bars = {
        "lateness": row.latest_ms <= LATE_MS,
        "memory": row.grown_mb <= GROWN_MB,
        "healthy": max(row.health_ms, row.session_ms) <= ANSWER_MS,
    }
    return row.as_dict() | {"bars": bars, "met": all(bars.values())}


def card(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is measured, and on which machine."""
    return {
        "benchmark": "attack",
        "device": processor_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "model": "mock: it sways the portrait, and takes no time",
        "sessions": 4,
        "size": options.size,
        "seconds": options.seconds,
        "late_ms": LATE_MS,
        "note": options.note,
        "version": __version__,
        "commit": commit(),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="of each attack (%(default)s)")
    add("--attack", action="append", choices=[NONE, *ATTACKS], help="default: all")
    add("--size", type=int, default=256, help="longer side of the video, px (%(default)s)")
    add("--descriptors", type=int, default=512, help="the server's open files (%(default)s)")
    add("--note", default="", help="a remark for the result, such as what else ran")
    add("-o", "--output", type=Path, metavar="FILE", help="also write the result here")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args(argv)


async def run(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Run all attacks in turn; add each row to `rows` as soon as it is measured."""
    names = options.attack or [NONE, *ATTACKS]
    with tempfile.TemporaryDirectory(prefix="letstalk-attack-") as folder:
        async with Stage.opened(options.size, options.descriptors, Path(folder)) as stage:
            for name in names:
                row = judged(await measured(stage, name, options.seconds))
                rows.append(row | {"commit": commit()})
                if not options.json:
                    print(line(rows[-1]), file=sys.stderr, flush=True)


def line(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    return (
        f"{row['attack']:<20} latest {row['latest_ms']:6.0f} ms (before {row['before_ms']:.0f})  "
        f"late {row['late_share']:.4f}  load {row['load']:.1f}  "
        f"{row['grown_mb']:+6.1f} MB (peak {row['peak_mb']:+6.0f})  "
        f"healthz {row['health_ms']:.0f} ms  session {row['session_ms']:.0f} ms  "
        f"{'met' if row['met'] else 'MISSED'}  {row['answers']}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a bar was missed."""
    options = parse(argv)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = card(options) | {"attacks": rows}
    os.environ |= {name: secrets.token_hex(32) for name in ("LETSTALK_SECRET", "LETSTALK_API_KEY")}
    began_s = time.monotonic()
    count = len(options.attack or ATTACKS) + 1
    with time_limit(limit_s(options, count * (options.seconds + ROUND_S)), result):
        asyncio.run(run(options, rows))
    result["minutes"] = round((time.monotonic() - began_s) / 60, 1)
    result["load_after"] = round(os.getloadavg()[0], 1)
    result["met"] = all(row["met"] for row in rows) and "partial" not in result
    print(json.dumps(result))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
