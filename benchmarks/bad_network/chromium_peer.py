"""Chromium with the page's own module as a peer; its output is that of `aiortc_peer`.

When a frame is due is here when it is displayed, and when a beep is heard is when the loudspeaker
plays it.

    python -m bad_network.chromium_peer http://10.77.0.1:8080 --seconds 20      (in benchmarks/)
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bad_network.aiortc_peer import beeps
from browsing import browsing

HERE = Path(__file__).parent
PAGE = "<!doctype html><title>bad network</title><video playsinline width=512></video>"


@contextmanager
def talking(address: str) -> Iterator[Any]:
    """Open the page at a server's address; yield it."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    modules = {"listening.js": HERE.parent / "webrtc" / "listening.js"}
    # What records audio is given to secure origins only.
    flags = [f"--unsafely-treat-insecure-origin-as-secure={address}"]
    with browsing(
        address, f'{PAGE}<script type="module">{script}</script>', modules, flags
    ) as page:
        page.wait_for_function("() => Boolean(window.start)")
        yield page


def watch(address: str, seconds: float) -> None:
    """Connect, tell when the page is live, and record for so long."""
    with talking(address) as page:
        session = page.evaluate("(samples) => start(samples)", beeps().tolist())
        print(json.dumps({"session": session, "live_s": time.monotonic()}), flush=True)
        page.wait_for_timeout(seconds * 1000)
        before_s, now_ms = time.monotonic(), page.evaluate("performance.now()")
        zero_s = (before_s + time.monotonic()) / 2 - now_ms / 1000
        print(json.dumps(_in_seconds(page.evaluate("finish()"), zero_s)), flush=True)


def _in_seconds(found: dict[str, Any], zero_s: float) -> dict[str, Any]:
    """Return a recording with all times as `time.monotonic`."""

    def at_s(ms: float) -> float:
        return zero_s + ms / 1000

    shown = [
        (at_s(at), at_s(due), None if age is None else age / 1000)
        for at, due, age in found["shown"]
    ]
    times = {key: [at_s(at) for at in found[key]] for key in ("heard", "sounds")}
    events = {key: [(at_s(at), text) for at, text in found[key]] for key in ("states", "messages")}
    return found | times | events | {"shown": shown}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="of the server, http://HOST:PORT")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args(argv)
    watch(options.address, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
