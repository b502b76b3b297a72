"""Starts the processes of `compose.yaml` without Docker, from the same file.

    LETSTALK_SECRET=... LETSTALK_API_KEY=... TURN_SECRET=... TURN_HOST=... PUBLIC_IP=... \\
        python deploy/run_compose.py

Each service runs as its image would: the workers as the Dockerfile says, `haproxy` and `turnserver`
from the distribution. The variables may also stand in `.env`. Needs PyYAML. Ctrl-C or SIGTERM stops
all.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
IMAGES = {
    "haproxy": ("haproxy", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"),
    "coturn/coturn": ("turnserver", "-n", "--pidfile", "", "--log-file", "stdout"),
}
"""What an image starts, before the arguments of `command`."""

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Process:
    """A process in place of a container.

    Attributes:
        name: of the service.
        command: what it runs.
        environment: its own variables.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]


def processes(
    text: str, variables: Mapping[str, str], worker: Sequence[str] | None = None
) -> list[Process]:
    """Return the processes of a compose file.

    Args:
        text: the compose file.
        variables: what `${NAME}` stands for.
        worker: the command of a worker; `None`: that of the Dockerfile.

    Raises:
        SystemExit: A variable is missing that the file needs.
    """
    services = yaml.safe_load(text)["services"]
    return [
        Process(
            name,
            tuple(_filled(part, variables) for part in _command(service, worker)),
            {
                key: _filled(str(value), variables)
                for key, value in service.get("environment", {}).items()
            },
        )
        for name, service in services.items()
    ]


def _command(service: Mapping[str, Any], worker: Sequence[str] | None) -> list[str]:
    if "build" in service:
        return [*(worker or image_command()), *service.get("command", ())]
    command = [*IMAGES[service["image"].partition(":")[0]], *service.get("command", ())]
    for volume in service.get("volumes", ()):
        outside, inside, *_ = volume.split(":")
        command = [part.replace(inside, str(ROOT / outside)) for part in command]
    return command


def image_command() -> list[str]:
    """Return what the image of the Dockerfile runs."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    found = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    command: list[str] = json.loads(found[-1])
    return command


def _filled(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if variables.get(name):
            return variables[name]
        if kind == "?":
            raise SystemExit(f"{name} is not set: {rest}")
        return rest or ""

    return _VARIABLE.sub(value, text)


def variables_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `.env` and of the environment, which wins."""
    path = ROOT / ".env"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in pairs} | dict(environment)


def run(wanted: Sequence[Process]) -> int:
    """Run all processes until one ends or this one is stopped; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A shell's background job ignores SIGINT, and so would the processes that it ends with.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for process in wanted:
            print(f"{process.name}: {shlex.join(process.command)}", flush=True)
            environment = os.environ | process.environment
            started.append(subprocess.Popen(process.command, env=environment))
        pid, status = os.wait()
        print(f"process {pid} has ended with {status}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for running in started:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)
        for running in started:
            running.wait(60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start what the compose file names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--worker", metavar="COMMAND", help="in place of letstalk serve")
    options = parser.parse_args(arguments)
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    worker = shlex.split(options.worker) if options.worker else None
    return run(processes(text, variables_of(os.environ), worker))


if __name__ == "__main__":
    sys.exit(main())
