"""What a person in a browser gets: first picture, microphone to lips, lip sync, frame rate, CPU.

Runs the server in a process of its own and headless Chromium beside it, on loopback. First with the
model of a preset: connections one after another, then one that speaks in beeps. Then with an avatar
that flashes when it hears (`webrtc/flash_avatar.py`), for the skew and for the CPU time of the
transport alone: all of the server process, engine and playout included.

    python benchmarks/bench_webrtc.py --seconds 600
    python benchmarks/bench_webrtc.py --seconds 20 --connects 5

Microphone to lips: from the moment a sound is made in the browser to the moment it comes back from
the loudspeaker; the lips are in step with it but for the skew. When it comes back is when it leaves
the jitter buffer, plus what the browser says that its loudspeaker takes (`media-playout`). The last
line is JSON.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from letstalk_rt import __version__

HERE = Path(__file__).parent
PAGE = "<!doctype html><title>bench</title><video muted playsinline width=512></video>"
FLAGS = [
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
WARM_UP_S = 5
CODECS = ("VP8", "H264")


@contextmanager
def running(command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Run a server; gives its address and process id."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://[^\s/]+", process.stdout.readline())
            if address is None:
                raise SystemExit("the server did not start")
            yield address.group(), process.pid
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


@contextmanager
def browsing(address: str) -> Iterator[Any]:
    """Open the benchmark's page at a server's address."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("needs Chromium: install Debian's package chromium")
    script = (HERE / "webrtc" / "receiver.js").read_text(encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        body = f"{PAGE}<script>{script}</script>"
        page.route("**/bench", lambda route: route.fulfill(body=body, content_type="text/html"))
        page.goto(f"{address}/bench")
        yield page
        browser.close()


def cpu_s(process: int) -> float:
    """Give the CPU time that a process has used, all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def counted(address: str, name: str) -> float:
    """Read a value off the server's metrics."""
    with urllib.request.urlopen(f"{address}/metrics") as response:
        text = response.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found else float("nan")


def percentiles_ms(values: Sequence[float]) -> dict[str, float | int | None]:
    """Give p50, p95 and max of the absolute values."""
    if not values:
        return {"p50": None, "p95": None, "max": None, "count": 0}
    sizes = np.abs(values)
    return {
        "p50": round(float(np.percentile(sizes, 50)), 1),
        "p95": round(float(np.percentile(sizes, 95)), 1),
        "max": round(float(sizes.max()), 1),
        "count": len(values),
    }


def delays_ms(said: Sequence[float], heard: Sequence[float]) -> list[float]:
    """Give for each sound that came back how long it took: to the last one said before it."""
    starts = np.sort(said)
    found = [at - starts[starts < at][-1] for at in heard if (starts < at).any()]
    return [float(delay) for delay in found]


def skews_ms(flashes: Sequence[dict[str, float]], heard: Sequence[float]) -> list[float]:
    """Give for each flash how much later its sound was heard; negative is earlier."""
    sounds = np.array(heard)
    if not sounds.size:
        return []
    due = [flash["at"] + flash["offset"] for flash in flashes]
    nearest = [float(sounds[np.abs(sounds - at).argmin()] - at) for at in due]
    return [skew for skew in nearest if abs(skew) < 400]


def bench_model(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what a user of the real model gets."""
    command = [sys.executable, "-m", "letstalk_server", "--port", "0"]
    if options.preset != "tiny":
        command += ["--preset", options.preset]
    with running(command) as (address, _), browsing(address) as page:
        firsts = []
        for _ in range(options.connects):
            firsts.append(page.evaluate("connect('VP8', false)"))
            page.wait_for_timeout(300)
            page.evaluate("leave()")
        page.evaluate("connect('VP8', true)")
        page.wait_for_timeout(WARM_UP_S * 1000)
        frames, repeats = [counted(address, f"letstalk_live_{n}") for n in ("frames", "repeats")]
        seen = page.evaluate(f"watch({options.seconds})")
        shown = counted(address, "letstalk_live_frames") - frames
        again = counted(address, "letstalk_live_repeats") - repeats
        page.evaluate("leave()")
    return {
        # The first one of a process also pays for what is imported and compiled on the way.
        "first_frame_ms": percentiles_ms(firsts[1:]),
        "first_frame_cold_ms": round(firsts[0], 1),
        "mic_to_lips_ms": percentiles_ms(delays_ms(seen["said"], seen["heard"])),
        "fps": round(seen["fps"], 2),
        "longest_gap_ms": round(seen["gap"], 1),
        "repeated_ratio": round(again / shown, 4) if shown else None,
        "frames_dropped": seen["stats"].get("framesDropped"),
        "freezes": seen["stats"].get("freezeCount"),
    }


def bench_transport(options: argparse.Namespace, codec: str, seconds: float) -> dict[str, Any]:
    """Measure the server around a model that costs nothing."""
    command = [sys.executable, str(HERE / "webrtc" / "flash_avatar.py"), "--port", "0"]
    with running(command) as (address, process), browsing(address) as page:
        page.evaluate(f"connect('{codec}', true)")
        page.wait_for_timeout(WARM_UP_S * 1000)
        used_s, started_s = cpu_s(process), time.monotonic()
        seen = page.evaluate(f"watch({seconds})")
        used_s, took_s = cpu_s(process) - used_s, time.monotonic() - started_s
        page.evaluate("leave()")
    skews = skews_ms(seen["flashes"], seen["heard"])
    return {
        "av_skew_ms": percentiles_ms(skews),
        "av_skew_mean_ms": round(float(np.mean(skews)), 1) if skews else None,
        "transport_cpu_core": round(used_s / took_s, 4),
        "kbit_s": round(seen["stats"].get("bytesReceived", 0) * 8 / 1000 / (took_s + WARM_UP_S)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", help="which model")
    parser.add_argument("--seconds", type=float, default=60, help="length of each measurement")
    parser.add_argument(
        "--connects", type=int, default=11, help="connections, one cold and warm ones"
    )
    parser.add_argument("--skip-model", action="store_true", help="measure the transport alone")
    options = parser.parse_args()
    result: dict[str, Any] = {} if options.skip_model else bench_model(options)
    vp8 = bench_transport(options, "VP8", options.seconds)
    h264 = bench_transport(options, "H264", min(options.seconds, 30))
    result |= vp8 | {"transport_cpu_core_h264": h264["transport_cpu_core"]}
    result |= {
        "seconds": options.seconds,
        "preset": options.preset,
        "receiver": "chromium",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "version": __version__,
    }
    print("\n".join(f"{name:24} {value}" for name, value in result.items()))
    print(json.dumps({"benchmark": "webrtc"} | result))


if __name__ == "__main__":
    main()
