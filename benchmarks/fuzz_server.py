"""Attacks the server with mutated offers, packets, images and messages: nothing may break.

    make fuzz                                                 10,000 inputs, a new seed
    python benchmarks/fuzz_server.py --inputs 100000 --seed 0 -o benchmarks/results/fuzz-100000.json
    python benchmarks/fuzz_server.py --target sctp

What must hold after each input: no exception, no status 500, an answer in time, the connection
stands, the log is silent, and at the end the memory is back; threads and open files are counted as
well. An input that breaks something is made as small as possible and added to the corpus
(`tests/fuzz/corpus/TARGET/found-*`), whose entries the tests try again. The last line is JSON.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(1, str(Path(__file__).parents[1] / "server"))

from fuzz.running import Outcome, attack
from fuzz.targets import TARGETS
from fuzz.world import SECRETS
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__

MAX_GROWN_MB = 64
"""Growth of the process after the first round above which memory has not come back."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if something broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of all targets (%(default)s)")
    parser.add_argument("--seed", type=int, help="of the inputs; a new one if there is none")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write it here")
    add_limit(parser)
    options = parser.parse_args(argv)
    seed = random.randrange(2**31) if options.seed is None else options.seed
    names = options.target or list(TARGETS)
    whole = sum(TARGETS[name][1] for name in names)
    print(f"seed {seed}", flush=True)
    outcomes: dict[str, Any] = {}
    ended: dict[str, Any] = {}
    with time_limit(limit_s(options, 0.1 * options.inputs), ended):
        for name in names:
            count = max(1, round(options.inputs * TARGETS[name][1] / whole))
            outcome = outcomes[name] = attack(name, count, seed)
            print(_line(name, outcome), flush=True)
            if outcome.kept:
                print(f"  {outcome.kept}", flush=True)
    result = ended | {
        "benchmark": "fuzz",
        "targets": {name: asdict(outcome) for name, outcome in outcomes.items()},
        "seed": seed,
        "version": __version__,
        "inputs": sum(outcome.inputs for outcome in outcomes.values()),
        "refused": sum(outcome.refused for outcome in outcomes.values()),
        "failures": sum(outcome.failure is not None for outcome in outcomes.values()),
        "never_in_the_log": ["warnings, errors, exceptions of tasks", *SECRETS],
        "minutes": round(sum(outcome.seconds for outcome in outcomes.values()) / 60, 1),
    }
    print(json.dumps(result))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    grown = any(outcome.grown_mb > MAX_GROWN_MB for outcome in outcomes.values())
    return int(grown or any(outcome.failure for outcome in outcomes.values()))


def _line(name: str, outcome: Outcome) -> str:
    counted = f"{outcome.inputs:6} inputs, {outcome.refused:6} refused {outcome.seconds:6.0f} s"
    return f"{name:10} {counted}  {outcome.grown_mb:+5.0f} MB  {outcome.failure or 'nothing broke'}"


if __name__ == "__main__":
    sys.exit(main())
