"""`letstalk bench`: measures how fast this machine is."""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from letstalk_rt.cli.options import add_json_option, add_model_options, load_avatar
from letstalk_rt.cli.output import colored, write_json, write_line
from letstalk_rt.errors import ConfigError
from letstalk_rt.types import FPS

if TYPE_CHECKING:
    from letstalk_rt.session.avatar import Avatar
    from letstalk_rt.session.throughput import Throughput

SUMMARY = "measure how fast this machine animates a portrait"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk bench`."""
    parser.description = (
        "Measure the whole path, from audio to composited frames, at full speed. Nothing else "
        "should run meanwhile. The exit status is 3 if the machine is too slow for live use."
    )
    add = parser.add_argument
    add("portrait", nargs="?", default="mira", metavar="PORTRAIT", help="(%(default)s)")
    add("--seconds", type=float, default=10.0, help="length of the measurement (%(default)s)")
    add_model_options(parser)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Measure the throughput and print it."""
    if not 0 < options.seconds <= 3600:
        raise ConfigError(f"--seconds is {options.seconds}; expected more than 0, at most 3600.")
    result = measure(lambda: load_avatar(options), options.preset, options.seconds)
    status = 0 if result.fits else 3
    if options.json:
        write_json({**asdict(result), "fps": round(result.fps, 2), "fits": result.fits})
        return status
    window = result.window_ms
    write_line(
        f"preset {result.preset} on {result.device}, {result.threads} threads, {options.size} px"
    )
    write_line(f"loaded in {result.load_s:.1f} s, first frames {result.first_window_s:.2f} s later")
    write_line(
        f"{result.windows} windows of {result.budget_ms:.0f} ms: "
        f"p50 {window.p50:.0f} ms, p95 {window.p95:.0f} ms, p99 {window.p99:.0f} ms, "
        f"{result.missed} late"
    )
    verdict = "fast enough for live use" if result.fits else f"too slow for {FPS} frames per second"
    text = f"{result.fps:.1f} frames per second: {verdict}"
    write_line(colored(text, "ok" if result.fits else "bad"))
    return status


def measure(load: "Callable[[], Avatar]", preset: str, seconds: float) -> "Throughput":
    """Load an avatar and measure its throughput.

    Args:
        load: loads the avatar, which is closed afterwards.
        preset: name of its model, for the result.
        seconds: length of the measurement.
    """
    from letstalk_rt.session.throughput import measure_throughput

    started_s = time.perf_counter()
    with load() as avatar:
        load_s = time.perf_counter() - started_s
        return measure_throughput(avatar, preset, load_s=load_s, seconds=seconds)
