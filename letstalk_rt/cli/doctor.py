"""`letstalk doctor`: finds what is missing or slow on this machine, and what to do about it."""

import argparse
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from letstalk_rt.cli.options import add_json_option
from letstalk_rt.cli.output import colored, write_json, write_line
from letstalk_rt.errors import LetsTalkError
from letstalk_rt.extras import pip_install
from letstalk_rt.types import FPS
from letstalk_rt.version import __version__

if TYPE_CHECKING:
    from letstalk_rt.inference.quality import Quality
    from letstalk_rt.inference.step_times import StepTimes
    from letstalk_rt.session.throughput import Throughput

SUMMARY = "find what is missing or slow on this machine, and which preset it can run live"

Status = Literal["ok", "missing", "slow", "bad"]

_EXTRAS = {
    "server": (("starlette", "uvicorn", "websockets", "aiortc"), "letstalk demo and serve"),
    "mic": (("sounddevice",), "microphone and loudspeaker"),
    "camera": (("pyvirtualcam",), "the virtual camera"),
    "heic": (("pillow_heif",), "HEIC images"),
    "speech": (("httpx",), "text to speech by an HTTP endpoint"),
    "piper": (("piper",), "text to speech by Piper"),
}
"""Extras of the package: their modules, and what they are for."""

_SMALL_PX = 256
_WORTHWHILE = 0.85
"""Smaller frames are advised if a step takes less than this share of the time."""

_IDLE_CORES = 0.2
"""Up to so many busy cores are those of the system and of a desktop that shows nothing new."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: name of the check.
        status: `ok`; `missing` for an optional part that is absent; `slow`; `bad` if nothing works
            without it.
        found: what was found.
        advice: what to do; empty if nothing.
        facts: what was found, for programs.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk doctor`."""
    parser.description = (
        "Check torch, GPU, weights, audio devices, virtual camera and libraries, and measure the "
        "model. The exit status is 3 if the machine is too slow for live use, 1 if the model "
        "cannot run."
    )
    add = parser.add_argument
    add("--seconds", type=float, default=3.0, help="length of the measurement; 0 skips it")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Run all checks and print their findings."""
    findings = []
    for finding in _run_checks(options.seconds):
        findings.append(finding)
        if not options.json:
            _print_finding(finding)
    preset = _live_preset(findings)
    if options.json:
        write_json({"checks": [asdict(finding) for finding in findings], "preset": preset})
    elif options.seconds > 0:
        write_line()
        write_line(_summary(findings, preset))
    if any(finding.status == "bad" for finding in findings):
        return 1
    return 3 if options.seconds > 0 and preset is None else 0


def _print_finding(finding: Finding) -> None:
    mark = colored(finding.status.ljust(7), finding.status)
    write_line(f"{mark}  {finding.name.ljust(12)}  {finding.found}".rstrip())
    if finding.advice:
        write_line(f"{' ' * 9}{finding.advice}")


def _summary(findings: list[Finding], preset: str | None) -> str:
    if preset:
        return f"Use --preset {preset}."
    quality = next((finding for finding in findings if finding.name == "quality"), None)
    if quality is not None and quality.facts["fits"]:
        how = "without a reserve" if quality.status == "ok" else "below full quality"
        return f"Use --preset tiny: it is live here, {how}."
    return "No preset is fast enough for live use here."


def _live_preset(findings: list[Finding]) -> str | None:
    """Return the preset that this machine can run live, or None."""
    speed = next((finding for finding in findings if finding.name == "speed"), None)
    return str(speed.facts["preset"]) if speed is not None and speed.status == "ok" else None


def _run_checks(seconds: float) -> Iterator[Finding]:
    """Yield the finding of each check; with 0 seconds, the speed is not measured."""
    yield _check_python()
    yield _catch("torch", _check_torch)
    yield _catch("gpu", _check_gpu)
    yield _catch("weights", _check_weights)
    yield from _check_extras()
    yield _check_audio_device("microphone", "input")
    yield _check_audio_device("loudspeaker", "output")
    yield _catch("camera", _check_camera)
    yield _check_srt()
    yield _check_window()
    if seconds > 0:
        yield _catch("decoder", _check_decoder)
        try:
            yield from _check_speed(seconds)
        except LetsTalkError as error:
            yield Finding("speed", "bad", "", str(error))


def _catch(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except LetsTalkError as error:
        return Finding(name, "bad", "", str(error))


def _check_python() -> Finding:
    found = f"letstalk_rt {__version__}, Python {platform.python_version()}, {platform.platform()}"
    return Finding("python", "ok", found, facts={"version": __version__})


def _check_torch() -> Finding:
    import torch

    cores = _count_cores()
    threads = torch.get_num_threads()
    units = [
        name
        for name, test in (("AMX", "_is_amx_tile_supported"), ("AVX-512", "_is_avx512_supported"))
        if getattr(torch.cpu, test, bool)()
    ]
    found = f"torch {torch.__version__}, {threads} threads on {cores} cores {' '.join(units)}"
    facts = {"torch": torch.__version__, "threads": threads, "cores": cores, "units": units}
    advice = ""
    if threads < cores:
        way = "unset OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else "set --threads"
        advice = f"torch uses only {threads} of {cores} cores: {way}"
    elif threads > cores:
        advice = f"{threads} threads on {cores} cores slow each other down: set --threads"
    return Finding("torch", "slow" if advice else "ok", found.strip(), advice, facts)


def _check_gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        memory = device.total_memory / 2**30
        facts = {"name": device.name, "memory_gb": round(memory, 1)}
        return Finding("gpu", "ok", f"{device.name}, {memory:.0f} GB", facts=facts)
    advice = "not needed for preset tiny; the large presets need an NVIDIA GPU and torch with CUDA"
    return Finding("gpu", "missing", "torch finds none", advice)


def _check_weights() -> Finding:
    from letstalk_rt.models.loading import EMBEDDED, load_model

    started_s = time.perf_counter()
    load_model(EMBEDDED)
    load_s = time.perf_counter() - started_s
    found = f"{EMBEDDED} is intact, loaded in {load_s:.1f} s; all presets find faces with it"
    return Finding("weights", "ok", found, facts={"face_finder": EMBEDDED})


def _check_extras() -> Iterator[Finding]:
    for extra, (modules, purpose) in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            advice = f"for {purpose}: {pip_install(extra)}"
            yield Finding(f"extra {extra}", "missing", f"no {', '.join(missing)}", advice)
        else:
            found = ", ".join(f"{name} {_package_version(name)}" for name in modules)
            yield Finding(f"extra {extra}", "ok", found)


def _check_audio_device(name: str, kind: Literal["input", "output"]) -> Finding:
    from letstalk_rt.audio.audio_devices import find_device, list_devices

    try:
        default = find_device(kind)
        names = [f"{device['index']} {device['name']}" for device in list_devices(kind)]
    except LetsTalkError as error:
        return Finding(name, "missing", "", str(error))
    found = f"{default['name']} ({len(names)} in all)"
    return Finding(name, "ok", found, facts={"devices": names, "default": default["index"]})


def _check_camera() -> Finding:
    from letstalk_rt.sinks.virtual_camera import VirtualCamera

    camera = VirtualCamera()
    try:
        camera.open(640, 480)
    except LetsTalkError as error:
        return Finding("camera", "missing", "", str(error))
    try:
        return Finding("camera", "ok", camera.device)
    finally:
        camera.close()


def _check_srt() -> Finding:
    from letstalk_rt.sinks.srt import load_libsrt

    try:
        load_libsrt()
    except LetsTalkError as error:
        return Finding("srt", "missing", "", str(error))
    return Finding("srt", "ok", "libsrt")


def _check_window() -> Finding:
    if importlib.util.find_spec("tkinter") is None:
        return Finding("window", "missing", "this Python lacks Tk", "apt install python3-tk")
    needs_display = sys.platform.startswith("linux")
    if needs_display and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return Finding(
            "window", "missing", "no display", "use letstalk mic with --camera or --output"
        )
    return Finding("window", "ok", "Tk")


def _check_decoder() -> Finding:
    """Measure anew which number format is fastest here, and keep it for later sessions."""
    from letstalk_rt.inference.autotune import renewed_variant
    from letstalk_rt.models.loading import EMBEDDED, load_model

    best, measured = renewed_variant(load_model(EMBEDDED))
    found = ", ".join(f"{variant} {m.window_ms:.0f} ms" for variant, m in measured.items())
    facts = {"variant": str(best), "window_ms": {str(v): m.window_ms for v, m in measured.items()}}
    return Finding("decoder", "ok", f"{best} is used ({found} a window in one thread)", facts=facts)


def _check_speed(seconds: float) -> Iterator[Finding]:
    """Measure the model, and anew at which quality sessions begin here."""
    from letstalk_rt.avatars import list_avatars
    from letstalk_rt.session.avatar import Avatar
    from letstalk_rt.session.throughput import measure_throughput

    busy_cores = _busy_cores()
    portrait = next(iter(list_avatars().values()))
    started_s = time.perf_counter()
    with Avatar.load(portrait) as avatar:
        load_s = time.perf_counter() - started_s
        result = measure_throughput(avatar, "tiny", load_s=load_s, seconds=seconds)
        times, levels = avatar.measure_steps(anew=True), avatar.pipeline.quality_levels
    small = None
    if times is not None and not result.fits:
        with Avatar.load(portrait, size=_SMALL_PX) as avatar:
            small = avatar.measure_steps(anew=True)
    yield _speed_finding(result, _speed_advice(times, small, busy_cores))
    if times is not None:
        yield _quality_finding(times, levels)


def _speed_finding(result: "Throughput", advice: str) -> Finding:
    window = result.window_ms
    found = (
        f"tiny at 512 px: {result.fps:.0f} frames per second, a window of "
        f"{result.budget_ms:.0f} ms takes {window.p50:.0f} ms (p50), {window.p99:.0f} ms (p99)"
    )
    facts = {"preset": "tiny", "fps": round(result.fps, 1), "window_ms_p99": round(window.p99, 1)}
    if result.fits:
        return Finding("speed", "ok", found, facts=facts)
    return Finding("speed", "slow", found, advice, facts)


def _speed_advice(times: "StepTimes | None", small: "StepTimes | None", busy_cores: float) -> str:
    """Return what would make live sessions faster here; only what does.

    Args:
        times: step times at 512 px.
        small: step times of smaller frames.
        busy_cores: how many cores other programs keep busy.
    """
    ways = []
    if busy_cores > _IDLE_CORES:
        ways.append(f"close other programs, which keep {busy_cores:.1f} cores busy")
    if times is not None and small is not None and small.load < _WORTHWHILE * times.load:
        ways.append(f"use --size {_SMALL_PX}, whose window takes {1000 * small.step_s[0]:.0f} ms")
    return (
        f"live use needs {FPS} frames per second and a reserve: "
        + ", ".join([*ways, "or use a faster machine" if ways else "use a faster machine"])
        + "; letstalk render works at any speed"
    )


def _quality_finding(times: "StepTimes", levels: "Sequence[Quality]") -> Finding:
    """Tell at which quality sessions begin on this machine."""
    from letstalk_rt.session.adaptive_quality import QualityAdapter

    known = times.with_costs(levels)
    begin = QualityAdapter(known, load=times.load)
    step_ms, window_ms = 1000 * times.expected_s(begin.quality), 1000 * times.window_s
    facts = {
        "level": begin.level,
        "fps": begin.quality.fps,
        "step_ms": [round(1000 * times.expected_s(one), 1) for one in known],
        "fits": step_ms <= window_ms,
    }
    takes = f"a step takes {step_ms:.0f} of {window_ms:.0f} ms"
    if begin.level == 0:
        return Finding("quality", "ok", f"sessions begin at full quality: {takes}", facts=facts)
    found = (
        f"sessions begin at level {begin.level} of {begin.lowest}, {begin.quality.fps} images per "
        f"second: {takes}, of full quality {1000 * times.step_s[0]:.0f}"
    )
    advice = "--degradation-preference says what is lowered first"
    return Finding("quality", "slow", found, advice, facts)


def _busy_cores(seconds: float = 0.5) -> float:
    """Return how many cores other programs keep busy; 0 where only Linux could tell."""
    before = _busy_ticks()
    time.sleep(seconds if before is not None else 0.0)
    after = _busy_ticks()
    if before is None or after is None:
        return 0.0
    return (after - before) / os.sysconf("SC_CLK_TCK") / seconds


def _busy_ticks() -> int | None:
    """Return the clock ticks that all cores have computed for, except at lower priority."""
    try:
        with open("/proc/stat") as file:
            user, _, system, _, _, irq, soft_irq = map(int, file.readline().split()[1:8])
    except (OSError, ValueError):
        return None
    return user + system + irq + soft_irq


def _count_cores() -> int:
    """Return the physical cores that this process may use; only Linux tells hyper-threads apart."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with open("/sys/devices/system/cpu/smt/active") as file:
            hyper_threads = file.read().strip() == "1"
    except OSError:
        hyper_threads = False
    return max(1, (usable or 1) // (2 if hyper_threads else 1))


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
