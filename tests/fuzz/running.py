"""Runs attacks, and makes what breaks something as small as it can."""

import collections
import contextlib
import ctypes
import gc
import os
import random
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fuzz import corpus
from fuzz.mutating import random_input, smaller
from fuzz.targets import TARGETS
from fuzz.world import World

WARM_UP = 0.1
"""Share of the inputs before memory is measured for the first time."""

RECENT = 20
"""Inputs that may have caused what is noticed only later."""

MAX_TRIES = 60
"""Inputs that are tried to find a smaller one: after each failure, a server is started again."""


@dataclass
class Outcome:
    """What an attack on one target did.

    Attributes:
        inputs: how many were tried.
        refused: how many of them were refused with a reason, or dropped by us; aiortc drops others
            in silence.
        log_records: how many records of the server's log were checked.
        before_mb: resident memory of the process after the warm-up.
        after_mb: the same at the end.
        seconds: how long that took.
        failure: what broke; None if nothing did.
        kept: the input that broke it, as small as possible; it is in the corpus now.
        grown_mb: growth of the process after the warm-up.
        threads: growth of the number of threads.
        handles: growth of the number of open files.
    """

    inputs: int = 0
    refused: int = 0
    log_records: int = 0
    before_mb: float = 0.0
    after_mb: float = 0.0
    seconds: float = 0.0
    failure: str | None = None
    kept: str | None = None
    grown_mb: float = 0.0
    threads: int = 0
    handles: int = 0


def attack(target, count, seed):
    """Try `count` mutated inputs, and keep the first that breaks something.

    Args:
        target: name of the target.
        count: number of inputs.
        seed: the same seed makes the same inputs.
    """
    kind, _ = TARGETS[target]
    entries = [data for _, data in corpus.entries(target)]
    outcome, started_s, rng = Outcome(), time.monotonic(), random.Random(f"{target} {seed}")
    before, recent = None, collections.deque(maxlen=RECENT)
    with World(kind.opening) as world:
        attacked = kind(world)
        for number in range(count):
            if number == int(WARM_UP * count):
                world.reopen()
                before = held()
            data = random_input(rng, entries)
            outcome.inputs += 1
            recent.append(data)
            outcome.failure = failure_of(attacked, data)
            if outcome.failure is not None:
                data = culprit(attacked, recent)
                outcome.kept = str(corpus.keep(target, smallest(attacked, data, outcome.failure)))
                break
        world.reopen()
        after = held()
    outcome.refused, outcome.log_records = attacked.refused, world.watch.records
    outcome.seconds = time.monotonic() - started_s
    if before is not None and outcome.failure is None:
        outcome.before_mb, outcome.after_mb = before[0] / 1e6, after[0] / 1e6
        outcome.grown_mb = outcome.after_mb - outcome.before_mb
        outcome.threads, outcome.handles = after[1] - before[1], after[2] - before[2]
    return outcome


def culprit(attacked, recent):
    """Return which of the last inputs breaks something, now that each is followed by a collection.

    A task that failed is reported when it is collected, some inputs later.
    """
    found = (data for data in reversed(recent) if failure_of(attacked, data, collects=True))
    return next(found, recent[-1])


def failure_of(attacked, data, *, collects=False):
    """Return what an input breaks, or None."""
    try:
        attacked.check(data)
        if collects:
            gc.collect()
            attacked.world.watch.check()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[-1500:]}"
    return None


def smallest(attacked, data, failure):
    """Return a part of an input that still breaks the same, as small as can be found."""
    kind = failure.partition(":")[0]
    tries = 0
    progress = True
    while progress and tries < MAX_TRIES:
        progress = False
        for part in smaller(data):
            tries += 1
            if tries >= MAX_TRIES:
                break
            if (failure_of(attacked, part, collects=True) or "").startswith(kind):
                data, progress = part, True
                break
    return data


def held():
    """Return resident bytes, threads and file handles of this process."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what malloc keeps is not held; glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found.group(1)) * 1024, threading.active_count(), len(os.listdir("/proc/self/fd"))
