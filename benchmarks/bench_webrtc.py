"""Measures the server from a browser: first frame, microphone to lips, lip sync, frame rate, CPU.

Runs the server in a process of its own and headless Chromium on the same machine. First with the
model of a preset: several connections one after another, then one that sends beeps. Then with an
avatar that flashes at the beginning of a sound (`webrtc/flash_avatar.py`), for the skew and for the
CPU time of the transport alone: the whole server process, engine and playout included.

    python benchmarks/bench_webrtc.py --seconds 600
    python benchmarks/bench_webrtc.py --seconds 20 --connects 5
    python benchmarks/bench_webrtc.py --isa avx2                as on an older processor

Microphone to lips is the time from a beep in the browser until it is played by the loudspeaker; the
lips differ from that by the skew. The playing time is when the beep leaves the jitter buffer, plus
the loudspeaker's delay as the browser reports it (`media-playout`). The last line is JSON.
"""

import argparse
import json
import os
import platform
import re
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
from browsing import browsing
from instruction_sets import add_option, environment, is_emulated
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__

HERE = Path(__file__).parent
PAGE = "<!doctype html><title>bench</title><video muted playsinline width=512></video>"
WARM_UP_S = 5
CODECS = ("VP8", "H264")


@contextmanager
def running(command: Sequence[str], isa: str | None = None) -> Iterator[tuple[str, int]]:
    """Run a server, limited to an instruction set; yield its address and process id."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(isa)
    ) as process:
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
def receiving(address: str) -> Iterator[Any]:
    """Open the benchmark's page at a server's address; yield it."""
    script = (HERE / "webrtc" / "receiver.js").read_text(encoding="utf-8")
    body = f"{PAGE}<script>{script}</script>"
    with browsing(address, body, {"listening.js": HERE / "webrtc" / "listening.js"}) as page:
        yield page


def cpu_s(process: int) -> float:
    """Return the CPU time of all threads of a process."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def counted(address: str, name: str) -> float:
    """Return a value of the server's metrics; NaN if it is missing."""
    with urllib.request.urlopen(f"{address}/metrics") as response:
        text = response.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found else float("nan")


def percentiles_ms(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return p50, p95 and max of the absolute values."""
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
    """Return the delay of each beep heard since the last beep sent before it."""
    starts = np.sort(said)
    found = [at - starts[starts < at][-1] for at in heard if (starts < at).any()]
    return [float(delay) for delay in found]


def skews_ms(flashes: Sequence[dict[str, float]], heard: Sequence[float]) -> list[float]:
    """Return for each flash how much later its beep was heard; negative is earlier."""
    sounds = np.array(heard)
    if not sounds.size:
        return []
    due = [flash["at"] + flash["offset"] for flash in flashes]
    nearest = [float(sounds[np.abs(sounds - at).argmin()] - at) for at in due]
    return [skew for skew in nearest if abs(skew) < 400]


def bench_model(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Measure connections to the server with a model, and add their figures to the result."""
    command = [sys.executable, "-m", "letstalk_server", "--port", "0"]
    if options.preset != "tiny":
        command += ["--preset", options.preset]
    if not options.isolate_model:
        command.append("--no-isolate-model")
    with running(command, options.isa) as (address, _), receiving(address) as page:
        firsts: list[float] = []
        for _ in range(options.connects):
            firsts.append(page.evaluate("connect('VP8', false)"))
            # The first connection of a process includes imports and compilation.
            result["first_frame_ms"] = percentiles_ms(firsts[1:])
            result["first_frame_cold_ms"] = round(firsts[0], 1)
            page.wait_for_timeout(300)
            page.evaluate("leave()")
        page.evaluate("connect('VP8', true)")
        page.wait_for_timeout(WARM_UP_S * 1000)
        frames, repeats = [counted(address, f"letstalk_live_{n}") for n in ("frames", "repeats")]
        seen = page.evaluate(f"watch({options.seconds})")
        shown = counted(address, "letstalk_live_frames") - frames
        again = counted(address, "letstalk_live_repeats") - repeats
        page.evaluate("leave()")
    result |= {
        "mic_to_lips_ms": percentiles_ms(delays_ms(seen["said"], seen["heard"])),
        "fps": round(seen["fps"], 2),
        "longest_gap_ms": round(seen["gap"], 1),
        "repeated_ratio": round(again / shown, 4) if shown else None,
        "frames_dropped": seen["stats"].get("framesDropped"),
        "freezes": seen["stats"].get("freezeCount"),
    }


def bench_transport(options: argparse.Namespace, codec: str, seconds: float) -> dict[str, Any]:
    """Measure the server with an avatar whose model takes no time."""
    command = [sys.executable, str(HERE / "webrtc" / "flash_avatar.py"), "--port", "0"]
    with running(command, options.isa) as (address, process), receiving(address) as page:
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", default="tiny", help="the model (%(default)s)")
    add("--seconds", type=float, default=60, help="length of each measurement (%(default)s)")
    add("--connects", type=int, default=11, help="connections; the first is cold (%(default)s)")
    add("--skip-model", action="store_true", help="measure the transport alone")
    add("--json", action="store_true", help="print the JSON line only")
    add(
        "--isolate-model",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the model in a process of its own, as the server does by default",
    )
    add_limit(parser)
    add_option(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table and the JSON line."""
    options = parse(argv)
    result: dict[str, Any] = {}
    with time_limit(limit_s(options, 3 * options.seconds + 10 * options.connects), result):
        if not options.skip_model:
            bench_model(options, result)
        result |= bench_transport(options, "VP8", options.seconds)
        h264 = bench_transport(options, "H264", min(options.seconds, 30))
        result["transport_cpu_core_h264"] = h264["transport_cpu_core"]
    result |= {
        "seconds": options.seconds,
        "preset": options.preset,
        "isolate_model": options.isolate_model,
        "isa": options.isa,
        "emulated": is_emulated(options.isa),
        "receiver": "chromium",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "version": __version__,
    }
    if not options.json:
        print("\n".join(f"{name:24} {value}" for name, value in result.items()))
    print(json.dumps({"benchmark": "webrtc"} | result))


if __name__ == "__main__":
    main()
