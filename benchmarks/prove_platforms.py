"""Shows on which systems and Python versions everything can be installed, without those systems.

    pip install uv
    python benchmarks/prove_platforms.py

For each system and version, `uv` resolves the SDK and the server from wheels alone, in the versions
of constraints.txt. This tells nothing of whether they run there; `prove_python.py` does.
The last line is JSON; the exit status is 1 if one could not be resolved.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux arm64": "aarch64-manylinux_2_28",
    "macOS arm64": "aarch64-apple-darwin",
    "Windows x86-64": "x86_64-pc-windows-msvc",
}
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def resolve(uv: str, platform: str, version: str) -> dict[str, Any]:
    """Return whether everything has a wheel there; if not, what `uv` says."""
    command = [uv, "pip", "compile", "--quiet", "--only-binary", ":all:", "--no-annotate"]
    command += ["--python-platform", PLATFORMS[platform], "--python-version", version]
    command += ["-c", "constraints.txt", "--extra", "server", "pyproject.toml"]
    # PyTorch's wheels are for macOS 14 and newer.
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found: dict[str, Any] = {"platform": platform, "python": version, "ok": done.returncode == 0}
    if done.returncode:
        return found | {"error": done.stderr.strip()[:500]}
    lines = done.stdout.splitlines()
    return found | {"packages": sum("==" in line and not line.startswith("#") for line in lines)}


def main(argv: Sequence[str] | None = None) -> int:
    """Resolve all; return 1 if one could not be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--uv", default=shutil.which("uv"), help="the program uv (found in PATH)")
    add("-o", "--output", type=Path, metavar="FILE.json", help="also write the result here")
    add("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(argv)
    if options.uv is None:
        raise SystemExit("uv is missing; install it with: pip install uv")
    found = []
    for platform in PLATFORMS:
        for version in VERSIONS:
            found.append(resolve(options.uv, platform, version))
            if not options.json:
                print(found[-1], flush=True)
    result = {"benchmark": "platforms", "resolved": found}
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0 if all(one["ok"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
