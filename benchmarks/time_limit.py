"""Ends a benchmark in time on any machine, with what it has measured until then.

At the limit the main thread is interrupted as by Ctrl-C, so everything that was opened is closed. A
benchmark adds to its result as it goes; what is missing then is marked by `partial`.
"""

import argparse
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_S = 60.0
"""Time for closing everything; then the process ends at once."""

_STUCK = 3  # exit status


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add the option `--limit`."""
    parser.add_argument(
        "--limit",
        type=float,
        metavar="S",
        help="seconds after which it ends with what it has (twice what it should take, and 600)",
    )


def limit_s(options: argparse.Namespace, expected_s: float) -> float:
    """Return the limit: the option's, or one by the time that a fast machine takes."""
    return float(600 + 2 * expected_s if options.limit is None else options.limit)


@contextmanager
def time_limit(
    seconds: float, result: dict[str, Any], *, grace_s: float = GRACE_S
) -> Iterator[None]:
    """Run a block in the main thread for so long at most; go on after it in any case.

    Args:
        seconds: the limit.
        result: what the block measures, added as it goes; marked if the block was ended.
        grace_s: seconds from then in which the block must have ended; a process that hangs prints
            the result and ends with status 3.
    """
    ended, over = threading.Event(), threading.Event()
    main = threading.main_thread().ident
    assert main is not None and threading.get_ident() == main, "signals reach the main thread"

    def watch() -> None:
        if ended.wait(seconds):
            return
        over.set()
        result["partial"] = f"ended after {seconds:g} s: what is missing was not measured"
        signal.pthread_kill(main, signal.SIGINT)
        if not ended.wait(grace_s):
            print(json.dumps(result, default=str), flush=True)
            os._exit(_STUCK)

    watcher = threading.Thread(target=watch, name="time-limit", daemon=True)
    # A shell that starts a benchmark in the background has it ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if not over.is_set():
            raise
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGINT, before)
