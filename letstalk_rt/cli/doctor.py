"""`letstalk doctor`: what is missing or slow here, and what to do about it."""

import argparse
from dataclasses import asdict

from letstalk_rt.cli.common import painted, say, say_json

SUMMARY = "find what is missing or slow on this machine, and which preset fits it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command is told."""
    parser.description = (
        "Look at torch, GPU, weights, sound devices, virtual camera and libraries, and measure "
        "the model. The status is 3 where it is too slow for live use, 1 where it cannot run."
    )
    add = parser.add_argument
    add("--seconds", type=float, default=3.0, help="how long to measure; 0: not at all")
    add("--json", action="store_true", help="tell it as one line of JSON")


def run(options: argparse.Namespace) -> int:
    """Look, tell, and give the verdict."""
    from letstalk_rt.cli.machine_checks import check_machine, preset_that_fits

    checks = []
    for check in check_machine(seconds=options.seconds):
        checks.append(check)
        if not options.json:
            mark = painted(check.status.ljust(7), check.status)
            say(f"{mark}  {check.name.ljust(12)}  {check.found}".rstrip())
            if check.advice:
                say(f"{' ' * 9}{check.advice}")
    preset = preset_that_fits(checks)
    if options.json:
        say_json({"checks": [asdict(check) for check in checks], "preset": preset})
    elif options.seconds > 0:
        say()
        say(f"Use --preset {preset}." if preset else "No preset is fast enough for live use here.")
    statuses = {check.status for check in checks}
    if "bad" in statuses:
        return 1
    return 3 if options.seconds > 0 and preset is None else 0
