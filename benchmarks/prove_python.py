"""Proves that the demo runs with an interpreter: environment, server, page, a rendered clip.

    python benchmarks/prove_python.py python3.11 python3.12 python3.13 python3.14
    python benchmarks/prove_python.py --system-torch /usr/bin/python3

For each interpreter, in a folder of its own: `make demo` makes its environment and runs the server
until its page answers 200; then `letstalk render` makes a clip of two seconds, whose frames are
counted. `--system-torch` is for a torch of the Linux distribution, in the range of pyproject.toml:
the environment then sees the system's packages, and all others are those of constraints.txt.
The last line is JSON; the exit status is 1 if an interpreter failed.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLIP_S, RATE = 2.0, 16_000
FACTS = """
import json, platform, sys, torch, numpy, av
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__,
    "numpy": numpy.__version__, "av": av.__version__, "platform": platform.platform()}))
"""
COUNT = """
import av, sys
with av.open(sys.argv[1]) as clip:
    print(sum(1 for _ in clip.decode(video=0)))
"""


def prove(python: str, folder: Path, *, system_torch: bool) -> dict[str, Any]:
    """Return what was found with one interpreter.

    Raises:
        subprocess.CalledProcessError: a step failed.
        RuntimeError: the server did not start, or the page or the clip is not as expected.
    """
    venv = folder / "venv"
    if system_torch:
        prepare_with_system_torch(python, venv, folder)
    facts = serve_page(python, venv)
    speech, clip = folder / "speech.wav", folder / "clip.mp4"
    write_speech(speech)
    avatar = next(iter(sorted((ROOT / "letstalk_rt" / "avatars").glob("*.jpg"))))
    run([venv / "bin" / "letstalk", "render", avatar, speech, "-o", clip])
    frames = int(run([venv / "bin" / "python", "-c", COUNT, clip]))
    if abs(frames - CLIP_S * 25) > 5:
        raise RuntimeError(f"the clip has {frames} frames")
    versions = json.loads(run([venv / "bin" / "python", "-c", FACTS]).splitlines()[-1])
    return versions | facts | {"frames": frames, "system_torch": system_torch}


def prepare_with_system_torch(python: str, venv: Path, folder: Path) -> None:
    """Make the environment that `make demo` would make, but with the system's torch."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in lines if not line.startswith("torch==")))
    run([python, "-m", "venv", "--system-site-packages", venv])
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", constraints]
    run([*pip, "-e", f"{ROOT}[server]"])
    (venv / "demo.stamp").touch()


def serve_page(python: str, venv: Path) -> dict[str, Any]:
    """Run `make demo` until the page answers.

    Raises:
        RuntimeError: it does not.
    """
    command = ["make", "demo", f"PYTHON={python}", f"VENV={venv}", "PORT=0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            found = None
            while found is None and (line := process.stdout.readline()):
                found = re.search(r"http://[^\s/]+/", line)
            if found is None:
                raise RuntimeError("the demo did not start")
            with urllib.request.urlopen(found.group(), timeout=60) as page:
                body = page.read()
            if page.status != 200 or b"<html" not in body:
                raise RuntimeError(f"the page answered {page.status}")
        finally:
            os.killpg(process.pid, signal.SIGINT)
    return {"page_bytes": len(body)}


def write_speech(path: Path) -> None:
    """Write two seconds of sound."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        loud = [8000 if n % 133 < 66 else -8000 for n in range(int(CLIP_S * RATE))]
        file.writeframes(b"".join(level.to_bytes(2, "little", signed=True) for level in loud))


def run(command: Sequence[str | Path]) -> str:
    """Run a command and return what it prints; its errors stay on stderr."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Try all interpreters; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("pythons", nargs="+", metavar="PYTHON", help="interpreters")
    add("--system-torch", action="store_true", help="take the torch of the Linux distribution")
    add("-o", "--output", type=Path, metavar="FILE.json", help="also write the result here")
    add("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(argv)
    found: list[dict[str, Any]] = []
    for python in options.pythons:
        with tempfile.TemporaryDirectory(prefix="letstalk-python-") as folder:
            try:
                one = prove(python, Path(folder), system_torch=options.system_torch)
                found.append({"ok": True} | one)
            except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
                found.append({"ok": False, "interpreter": python, "error": str(error)})
        if not options.json:
            print(found[-1], flush=True)
    text = json.dumps({"benchmark": "python", "interpreters": found})
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(one["ok"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
