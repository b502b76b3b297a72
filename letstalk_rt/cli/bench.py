"""`letstalk bench`: how fast this machine is."""

import argparse
import time
from dataclasses import asdict

from letstalk_rt.cli.common import add_model_options, load_avatar, painted, say, say_json
from letstalk_rt.errors import ConfigError
from letstalk_rt.types import FPS

SUMMARY = "measure how fast this machine animates a portrait"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command is told."""
    parser.description = (
        "Measure the whole path, sound to composited picture, as fast as the machine can. "
        "Nothing else should run meanwhile. The status is 3 where it is too slow for live use."
    )
    add = parser.add_argument
    add("portrait", nargs="?", default="mira", metavar="PORTRAIT", help="(%(default)s)")
    add("--seconds", type=float, default=10.0, help="how long to measure (%(default)s)")
    add_model_options(parser)
    add("--json", action="store_true", help="tell the result as one line of JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and tell."""
    from letstalk_rt.session.throughput import measure_throughput

    if not 0 < options.seconds <= 3600:
        raise ConfigError(f"--seconds is {options.seconds}; expected more than 0, at most 3600.")
    started_s = time.perf_counter()
    with load_avatar(options) as avatar:
        load_s = time.perf_counter() - started_s
        speed = measure_throughput(avatar, options.preset, load_s=load_s, seconds=options.seconds)
    if options.json:
        say_json({**asdict(speed), "fps": round(speed.fps, 2), "fits": speed.fits})
        return 0 if speed.fits else 3
    window = speed.window_ms
    say(f"preset {speed.preset} on {speed.device}, {speed.threads} threads, {options.size} px")
    say(f"loaded in {speed.load_s:.1f} s, first pictures {speed.first_window_s:.2f} s later")
    say(
        f"{speed.windows} windows of {speed.budget_ms:.0f} ms: "
        f"p50 {window.p50:.0f} ms, p95 {window.p95:.0f} ms, p99 {window.p99:.0f} ms, "
        f"{speed.missed} late"
    )
    verdict = "fast enough for live use" if speed.fits else f"too slow for {FPS} frames a second"
    say(painted(f"{speed.fps:.1f} frames a second: {verdict}", "ok" if speed.fits else "bad"))
    return 0 if speed.fits else 3
