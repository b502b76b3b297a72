"""Simulates a cluster of thousands of places: arrivals, lengths, failures.

Visitors come at random, want a session through one of two proxies, and stay for a while. The
proxies place by what the agent checks told them last, and ask the next worker after a 503, as
with the configuration of `letstalk cluster haproxy`. A visitor who is refused comes again as the
page does; one whose worker is lost resumes elsewhere.

    python benchmarks/sim_cluster.py --sessions 10000 -o benchmarks/results/sim-cluster.json

Times of the proxies and the page are those of their configuration, and what
`benchmarks/prove_cluster.py` has measured. The last line is JSON: for each ratio of wanted sessions
to places, how many were refused at first and for good, how often a worker had to be passed over,
how long visitors waited, and what lost workers did. `erlang_b` is the share that one single pool of
all places would refuse, by Erlang's formula: what placement costs is the difference.
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__

PROXIES = 2
AGENT_S = 0.5
"""How often a proxy asks each worker (`agent-inter`)."""

DOWN_S = 1.0
"""How long until a proxy leaves out a lost worker: `benchmarks/results/cluster-2core.json`."""

TRIES = 4
"""Workers that a proxy asks: the first, and `retries 3`."""

RETRY_S = 10.0
"""`Retry-After` of a refusal."""

COMEBACKS = 5
"""How often the page tries again (`RETRY_DELAYS_MS`)."""

SILENT_S = 4.0
"""A page notices a lost worker after this silence at the latest, and waits `RESUME_S`."""

RESUME_S = 0.3
LENGTH_S = 300.0
"""Mean length of a session."""

SPREAD = 1.0
"""Standard deviation of the logarithm of a session's length."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    Attributes:
        sessions: sessions that are wanted at the same time, on average.
        load: wanted sessions by places.
        places: places of one worker.
        length_s: mean length of a session, s.
        hours: duration after the first half hour, in which the cluster fills.
        lost: share of workers that are lost at once in the middle.
        failure_h: mean time between failures of one worker, h.
        restart_s: how long a lost worker is away, s.
        seed: of all randomness.
    """

    sessions: int
    load: float
    places: int
    length_s: float = LENGTH_S
    hours: float = 1.0
    lost: float = 0.0
    failure_h: float = 720.0
    restart_s: float = 60.0
    seed: int = 0

    @property
    def workers(self) -> int:
        """Number of workers."""
        return math.ceil(self.sessions / self.load / self.places)


@dataclass(slots=True, eq=False)
class Visitor:
    """A visitor, from the first wish to the last.

    Attributes:
        since_s: when they wanted the session, or lost it.
        length_s: how long they stay.
        refusals: how often they were refused in a row.
        resumes: whether they had a session that was lost.
        worker: where their session is; -1 without one.
        end: number of the event that ends the session, to tell it from one that was lost.
    """

    since_s: float
    length_s: float
    refusals: int = 0
    resumes: bool = False
    worker: int = -1
    end: int = -1


@dataclass(slots=True)
class Tally:
    """What happened after the cluster was full of life."""

    wanted: int = 0
    refused_first: int = 0
    gave_up: int = 0
    passed_over: int = 0
    waits_s: list[float] = field(default_factory=list)
    lost_workers: int = 0
    interrupted: int = 0
    resumes_s: list[float] = field(default_factory=list)
    not_resumed: int = 0
    waiting: int = 0
    most_waiting: int = 0
    most_on_a_worker: int = 0


class Simulation:
    """One run of a scenario."""

    WARM_UP_S = 1800.0

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.tally = Tally()
        self._chance = random.Random(scenario.seed)
        self._now_s = 0.0
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        workers = scenario.workers
        self._on: list[set[Visitor]] = [set() for _ in range(workers)]
        self._taken = np.zeros(workers, int)
        self._is_up = np.ones(workers, bool)
        self._down_since_s = np.full(workers, -np.inf)
        self._sums = [np.zeros(workers, int) for _ in range(PROXIES)]

    def run(self) -> Tally:
        """Simulate and return what happened."""
        scenario = self.scenario
        end_s = self.WARM_UP_S + 3600 * scenario.hours
        for proxy in range(PROXIES):
            self._ask_agents(proxy)
        self._arrive()
        self._fail_sometimes()
        if scenario.lost:
            self._at(self.WARM_UP_S + 1800 * scenario.hours, self._lose_many)
        while self._events and self._events[0][0] < end_s:
            self._now_s, _, call = heapq.heappop(self._events)
            call()
        return self.tally

    def _at(self, time_s: float, call: Callable[[], None]) -> int:
        number = next(self._numbers)
        heapq.heappush(self._events, (time_s, number, call))
        return number

    @property
    def _counts(self) -> bool:
        return self._now_s >= self.WARM_UP_S

    # Visitors

    def _arrive(self) -> None:
        scenario, chance = self.scenario, self._chance
        rate = scenario.sessions / scenario.length_s
        self._at(self._now_s + chance.expovariate(rate), self._arrive)
        median = math.log(scenario.length_s) - SPREAD**2 / 2
        visitor = Visitor(self._now_s, chance.lognormvariate(median, SPREAD))
        self.tally.wanted += self._counts
        self._want(visitor)

    def _want(self, visitor: Visitor) -> None:
        tally = self.tally
        if visitor.refusals:
            tally.waiting -= 1
        worker = self._place(self._chance.randrange(PROXIES))
        if worker is not None:
            self._begin(visitor, worker)
            return
        tally.refused_first += self._counts and not (visitor.refusals or visitor.resumes)
        visitor.refusals += 1
        if visitor.refusals > COMEBACKS:
            tally.gave_up += self._counts and not visitor.resumes
            tally.not_resumed += visitor.resumes
            return
        tally.waiting += 1
        tally.most_waiting = max(tally.most_waiting, tally.waiting * self._counts)
        self._at(self._now_s + RETRY_S, lambda: self._want(visitor))

    def _begin(self, visitor: Visitor, worker: int) -> None:
        waited_s = self._now_s - visitor.since_s
        if self._counts:
            (self.tally.resumes_s if visitor.resumes else self.tally.waits_s).append(waited_s)
        visitor.worker, visitor.refusals, visitor.resumes = worker, 0, False
        visitor.since_s = self._now_s
        self._on[worker].add(visitor)
        self._taken[worker] += 1
        self.tally.most_on_a_worker = max(self.tally.most_on_a_worker, len(self._on[worker]))
        visitor.end = self._at(self._now_s + visitor.length_s, lambda: self._leave(visitor, worker))

    def _leave(self, visitor: Visitor, worker: int) -> None:
        if visitor in self._on[worker] and self._now_s >= visitor.since_s + visitor.length_s - 1e-6:
            self._on[worker].remove(visitor)
            self._taken[worker] -= 1

    # Proxies

    def _ask_agents(self, proxy: int) -> None:
        places = self.scenario.places
        free = 100 * (places - self._taken) // places
        known_down = ~self._is_up & (self._now_s - self._down_since_s > DOWN_S)
        shares = np.where(known_down, 0, np.where(self._taken < places, np.maximum(free, 1), 0))
        self._sums[proxy] = np.cumsum(shares)
        jitter_s = AGENT_S * proxy / PROXIES if self._now_s == 0 else 0.0
        self._at(self._now_s + AGENT_S + jitter_s, lambda: self._ask_agents(proxy))

    def _place(self, proxy: int) -> int | None:
        sums = self._sums[proxy]
        total, last = int(sums[-1]), -1
        if not total:
            return None
        for _ in range(TRIES):
            worker = int(np.searchsorted(sums, self._chance.randrange(total), "right"))
            if worker == last:  # redispatched to another one, if there is one
                worker = int(np.searchsorted(sums, self._chance.randrange(total), "right"))
            if self._is_up[worker] and len(self._on[worker]) < self.scenario.places:
                return worker
            self.tally.passed_over += self._counts
            last = worker
        return None

    # Failures

    def _fail_sometimes(self) -> None:
        rate = self.scenario.workers / (3600 * self.scenario.failure_h)
        self._at(self._now_s + self._chance.expovariate(rate), self._fail_one)

    def _fail_one(self) -> None:
        self._lose(self._chance.randrange(self.scenario.workers))
        self._fail_sometimes()

    def _lose_many(self) -> None:
        workers = self.scenario.workers
        for worker in self._chance.sample(range(workers), round(self.scenario.lost * workers)):
            self._lose(worker)

    def _lose(self, worker: int) -> None:
        if not self._is_up[worker]:
            return
        self._is_up[worker], self._down_since_s[worker] = False, self._now_s
        visitors, self._on[worker] = self._on[worker], set()
        self._taken[worker] = 0
        self.tally.lost_workers += self._counts
        self.tally.interrupted += len(visitors) * self._counts
        # In the order of their arrival, so that the same seed gives the same result.
        for visitor in sorted(visitors, key=lambda visitor: visitor.end):
            stayed_s = self._now_s - visitor.since_s
            visitor.length_s, visitor.since_s = visitor.length_s - stayed_s, self._now_s
            visitor.resumes, visitor.worker = True, -1
            noticed_s = self._chance.uniform(0, SILENT_S) + RESUME_S
            self._at(self._now_s + noticed_s, lambda visitor=visitor: self._want(visitor))
        self._at(self._now_s + self.scenario.restart_s, lambda: self._come_back(worker))

    def _come_back(self, worker: int) -> None:
        self._is_up[worker] = True


def erlang_b(load: float, places: int) -> float:
    """Return the share of sessions that one pool of places refuses, by Erlang's formula."""
    inverse = 1.0
    for number in range(1, places + 1):
        inverse = 1.0 + inverse * number / load
    return 1 / inverse


def summary(scenario: Scenario) -> dict[str, Any]:
    """Simulate a scenario and return its figures."""
    tally = Simulation(scenario).run()
    everywhere = scenario.workers * scenario.places
    return {
        "load": scenario.load,
        "workers": scenario.workers,
        "places_per_worker": scenario.places,
        "lost_at_once": scenario.lost,
        "wanted": tally.wanted,
        "refused_at_first": _share(tally.refused_first, tally.wanted),
        "gave_up": _share(tally.gave_up, tally.wanted),
        "erlang_b": round(erlang_b(scenario.sessions, everywhere), 5),
        "passed_over_per_session": _share(tally.passed_over, len(tally.waits_s)),
        "wait_s": _quantiles(tally.waits_s),
        "most_waiting": tally.most_waiting,
        "most_on_a_worker": tally.most_on_a_worker,
        "lost_workers": tally.lost_workers,
        "interrupted": tally.interrupted,
        "resumed_s": _quantiles(tally.resumes_s),
        "not_resumed": tally.not_resumed,
    }


def _share(part: int, whole: int) -> float:
    return round(part / max(whole, 1), 5)


def _quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    last = len(ordered) - 1
    parts = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[int(part * last)], 2) for name, part in parts.items()}


def scenarios(sessions: int, places: int, hours: float, seed: int) -> list[Scenario]:
    """Return the scenarios: rising load, then a tenth of the workers lost at once."""

    def at(load: float, size: int, lost: float = 0.0) -> Scenario:
        return Scenario(sessions, load, size, hours=hours, lost=lost, seed=seed)

    rising = [at(load, places) for load in (0.7, 0.85, 0.95, 1.0, 1.05)]
    return [*rising, at(0.85, places, 0.1), at(0.95, places, 0.1), at(0.95, 10 * places)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate all scenarios; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=10_000, metavar="N", help="wanted at once")
    parser.add_argument(
        "--places", type=int, default=2, metavar="N", help="of one worker (2: two cores with AMX)"
    )
    parser.add_argument("--hours", type=float, default=1.0, metavar="H", help="simulated time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write it here")
    add_limit(parser)
    options = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "benchmark": "sim_cluster",
        "sessions": options.sessions,
        "hours": options.hours,
        "seed": options.seed,
        "mean_length_s": LENGTH_S,
        "version": __version__,
        "scenarios": found,
    }
    with time_limit(limit_s(options, 900.0), report):
        for scenario in scenarios(options.sessions, options.places, options.hours, options.seed):
            found.append(summary(scenario))
            print(json.dumps(found[-1]), flush=True)
    print(json.dumps(report))
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
