"""Runs the benchmarks of speed and latency with each instruction set, and keeps their results.

    python benchmarks/run_all.py                          # all that this processor has
    python benchmarks/run_all.py --isa avx2 --seconds 60
    python benchmarks/run_all.py --only webrtc

In turn, on an otherwise idle machine: `bench_stages` (alone), `bench_batching` (how many sessions
one process holds), `bench_session` (microphone to lips without a network) and `bench_webrtc` (the
same beside Chromium). Each writes
`benchmarks/results/bench_NAME-tiny-CORES-ISA.json`. It refuses a machine that is busy, unless
`--busy` is given. The result of a benchmark that did not end in time is named, but not kept. The
last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruction_sets import FLAGS, LIMITS, processor_flags

HERE = Path(__file__).parent
NAMES = ("stages", "batching", "session", "webrtc")
MOST_LOAD = 0.5
"""Load of the last minute above which the machine counts as busy."""


@dataclass(frozen=True, slots=True)
class Row:
    """One benchmark with one instruction set.

    Attributes:
        command: script and options.
        file: name of its result.
    """

    command: tuple[str, ...]
    file: str


def rows(sets: Sequence[str], seconds: float, names: Sequence[str] = NAMES) -> list[Row]:
    """Return the benchmarks to run, one instruction set after the other in each."""
    options = {
        "stages": ("--seconds", f"{min(seconds, 60.0):g}"),
        "batching": ("--seconds", f"{min(seconds, 20.0):g}"),
        "session": ("--seconds", f"{seconds:g}", "--isolate-model"),
        "webrtc": ("--seconds", f"{seconds:g}"),
    }
    return [
        Row(
            (f"bench_{name}.py", *options[name], "--isa", one, "--json"),
            f"bench_{name}-tiny-{os.cpu_count()}core-{one}.json",
        )
        for name in names
        for one in sets
    ]


def available() -> tuple[str, ...]:
    """Return the instruction sets of this processor."""
    known = processor_flags()
    return tuple(one for one in LIMITS if known is None or FLAGS[one] in known)


def result_of(output: str) -> dict[str, Any]:
    """Return the result in the last line of a benchmark's output.

    Raises:
        SystemExit: it is no JSON line.
    """
    lines = output.strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (ValueError, IndexError):
        raise SystemExit("a benchmark printed no JSON line; run it alone to see why") from None


def run(row: Row) -> str | None:
    """Run a benchmark and keep its result, unless it is partial; return why it is not kept.

    Raises:
        SystemExit: it failed.
    """
    script, *options = row.command
    done = subprocess.run(
        [sys.executable, str(HERE / script), *options], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{script} failed with status {done.returncode}")
    result = result_of(done.stdout)
    if "partial" in result:
        return str(result["partial"])
    path = HERE / "results" / row.file
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--isa", nargs="+", choices=tuple(LIMITS), help="instruction sets (all of the processor's)")
    add("--only", nargs="+", choices=NAMES, default=NAMES, help="benchmarks (all)")
    add("--seconds", type=float, default=300.0, help="of each live run (%(default)g)")
    add("--busy", action="store_true", help="run although other programs do")
    add("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all rows; the last line tells which files were written."""
    options = parse(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > MOST_LOAD and not options.busy:
        print(f"the machine is busy (load {load:.1f}): stop what runs, or give --busy")
        return 2
    written, partial = [], {}
    for row in rows(options.isa or available(), options.seconds, options.only):
        if not options.json:
            print(" ".join(row.command), flush=True)
        if reason := run(row):
            partial[row.file] = reason
        else:
            written.append(row.file)
    print(json.dumps({"load_1min": round(load, 2), "written": written, "partial": partial}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
