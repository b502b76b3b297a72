"""Looks at a machine and names what is missing or slow, and what to do about it."""

import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from letstalk_rt import __version__
from letstalk_rt.errors import LetsTalkError
from letstalk_rt.types import FPS

Status = Literal["ok", "missing", "slow", "bad"]

_EXTRAS = {
    "server": ("starlette", "uvicorn", "websockets", "aiortc"),
    "mic": ("sounddevice",),
    "camera": ("pyvirtualcam",),
    "heic": ("pillow_heif",),
}
_FOR = {
    "server": "letstalk demo and serve",
    "mic": "microphone and loudspeaker",
    "camera": "the virtual camera",
    "heic": "HEIC pictures",
}


@dataclass(frozen=True)
class MachineCheck:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: `ok`; `missing`, something optional is not there; `slow`; `bad`, nothing works
            without it.
        found: what is there.
        advice: what to do, empty where nothing.
        facts: the same for machines.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def check_machine(*, seconds: float = 3.0) -> Iterator[MachineCheck]:
    """Look at everything, one thing after the other.

    Args:
        seconds: how long to measure the model; 0 leaves it out.
    """
    yield _python()
    for check in (_torch, _gpu, _weights):
        yield _safely(check)
    yield from _extras()
    for check in (_microphone, _loudspeaker, _camera, _srt, _window):
        yield _safely(check)
    if seconds > 0:
        yield _safely(lambda: _speed(seconds))


def preset_that_fits(checks: list[MachineCheck]) -> str | None:
    """Give the name of the preset to use on this machine; None where none is fast enough."""
    speed = next((check for check in checks if check.name == "speed"), None)
    return str(speed.facts["preset"]) if speed is not None and speed.status == "ok" else None


def _safely(check: Callable[[], MachineCheck]) -> MachineCheck:
    try:
        return check()
    except LetsTalkError as error:
        name = getattr(check, "__name__", "speed").strip("_<>")
        return MachineCheck("speed" if name == "lambda" else name, "bad", "", str(error))


def _python() -> MachineCheck:
    found = f"letstalk_rt {__version__}, Python {platform.python_version()}, {platform.platform()}"
    return MachineCheck("python", "ok", found, facts={"version": __version__})


def _torch() -> MachineCheck:
    import torch

    cores = _cores()
    threads = torch.get_num_threads()
    units = [
        name
        for name, has in (("AMX", "_is_amx_tile_supported"), ("AVX-512", "_is_avx512_supported"))
        if getattr(torch.cpu, has, bool)()
    ]
    found = f"torch {torch.__version__}, {threads} threads on {cores} cores {' '.join(units)}"
    facts = {"torch": torch.__version__, "threads": threads, "cores": cores, "units": units}
    if threads < cores:
        advice = f"torch may use {threads} of {cores} cores: unset OMP_NUM_THREADS, or --threads"
        return MachineCheck("torch", "slow", found.strip(), advice, facts)
    if threads > cores:
        advice = f"{threads} threads get in each other's way on {cores} cores: use --threads"
        return MachineCheck("torch", "slow", found.strip(), advice, facts)
    return MachineCheck("torch", "ok", found.strip(), facts=facts)


def _gpu() -> MachineCheck:
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        memory = device.total_memory / 2**30
        facts = {"name": device.name, "memory_gb": round(memory, 1)}
        return MachineCheck("gpu", "ok", f"{device.name}, {memory:.0f} GB", facts=facts)
    advice = "not needed for preset tiny; the large presets need an NVIDIA GPU and torch with CUDA"
    return MachineCheck("gpu", "missing", "torch sees none", advice)


def _weights() -> MachineCheck:
    from letstalk_rt.models.loading import EMBEDDED, load_model

    started_s = time.perf_counter()
    load_model(EMBEDDED)
    took_s = time.perf_counter() - started_s
    found = f"{EMBEDDED}, whole, read in {took_s:.1f} s; all presets find faces by it"
    return MachineCheck("weights", "ok", found, facts={"face_finder": EMBEDDED})


def _extras() -> Iterator[MachineCheck]:
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            advice = f"for {_FOR[extra]}: pip install 'letstalk-rt[{extra}]'"
            yield MachineCheck(f"extra {extra}", "missing", f"no {', '.join(missing)}", advice)
        else:
            found = ", ".join(f"{name} {_version(name)}" for name in modules)
            yield MachineCheck(f"extra {extra}", "ok", found)


def _microphone() -> MachineCheck:
    return _sound("microphone", "input")


def _loudspeaker() -> MachineCheck:
    return _sound("loudspeaker", "output")


def _sound(name: str, kind: Literal["input", "output"]) -> MachineCheck:
    from letstalk_rt.audio.audio_devices import find_device, list_devices

    try:
        default = find_device(kind)
        names = [f"{device['index']} {device['name']}" for device in list_devices(kind)]
    except LetsTalkError as error:
        return MachineCheck(name, "missing", "", str(error))
    found = f"{default['name']} ({len(names)} in all)"
    return MachineCheck(name, "ok", found, facts={"devices": names, "default": default["index"]})


def _camera() -> MachineCheck:
    from letstalk_rt.sinks.virtual_camera import VirtualCamera

    camera = VirtualCamera()
    try:
        camera.open(640, 480)
    except LetsTalkError as error:
        return MachineCheck("camera", "missing", "", str(error))
    try:
        return MachineCheck("camera", "ok", camera.device)
    finally:
        camera.close()


def _srt() -> MachineCheck:
    from letstalk_rt.sinks.srt import load_libsrt

    try:
        load_libsrt()
    except LetsTalkError as error:
        return MachineCheck("srt", "missing", "", str(error))
    return MachineCheck("srt", "ok", "libsrt")


def _window() -> MachineCheck:
    if importlib.util.find_spec("tkinter") is None:
        return MachineCheck("window", "missing", "this Python has no Tk", "apt install python3-tk")
    needs_screen = sys.platform.startswith("linux")
    if needs_screen and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return MachineCheck(
            "window", "missing", "no screen", "letstalk mic needs --camera or --output"
        )
    return MachineCheck("window", "ok", "Tk")


def _speed(seconds: float) -> MachineCheck:
    from letstalk_rt.avatars import list_avatars
    from letstalk_rt.session.avatar import Avatar
    from letstalk_rt.session.throughput import measure_throughput

    started_s = time.perf_counter()
    picture = next(iter(list_avatars().values()))
    with Avatar.load(picture) as avatar:
        load_s = time.perf_counter() - started_s
        speed = measure_throughput(avatar, "tiny", load_s=load_s, seconds=seconds)
    window = speed.window_ms
    found = (
        f"tiny at 512 px: {speed.fps:.0f} frames a second, a window of {speed.budget_ms:.0f} ms "
        f"takes {window.p50:.0f} ms (p50), {window.p99:.0f} ms (p99)"
    )
    facts = {"preset": "tiny", "fps": round(speed.fps, 1), "window_ms_p99": round(window.p99, 1)}
    if speed.fits:
        return MachineCheck("speed", "ok", found, facts=facts)
    advice = (
        f"live use needs {FPS} frames a second and some to spare: close other programs, use "
        "--size 256 --steps 1, or a faster machine; letstalk render works at any speed"
    )
    return MachineCheck("speed", "slow", found, advice, facts)


def _cores() -> int:
    """Cores this process may use; hyper-threads count half where Linux tells of them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with open("/sys/devices/system/cpu/smt/active") as file:
            doubled = file.read().strip() == "1"
    except OSError:
        doubled = False
    return max(1, (usable or 1) // (2 if doubled else 1))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
