"""Whether camera drive holds its frame rate: a session as the server runs it, in real time.

Sound is pushed as from a microphone, and after a while frames of a camera, 25 a second, as from a
webcam. The lips follow the sound. What is shown is counted before the camera comes and with it.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from camera_films import FPS, MOVE_FRAMES, moving_face
from camera_probes import PARTS, Counters
from session_probes import CHUNK_MS, WARM_UP_S, voice

from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.metrics import Metrics
from letstalk_rt.portrait.library import AvatarLibrary
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.sinks.play import play
from letstalk_rt.types import SAMPLE_RATE, AVFrame, CameraOptions

UNDRIVEN = 0.25
"""Share of the time before the camera comes."""

WINDOW = 4
"""Frames of a step."""

_SETTLE_S = 3.0  # after the first frame of the camera, which starts its process
_STARTED_S = 60.0  # within which that must have read a frame


class Screen:
    """A sink that counts what is shown."""

    latency_s = 0.0

    def __init__(self) -> None:
        self.images = self.repeats = 0

    def open(self, width: int, height: int) -> None:
        """Do nothing."""

    def show(self, frame: AVFrame) -> None:
        """Count a frame; one whose image is that of the frame before is a repeated one."""
        self.images += not frame.repeated
        self.repeats += frame.repeated

    def repeat(self, frame: AVFrame) -> None:
        """Count a frame that is shown again, because the next one is late."""
        self.repeats += 1

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def bench_rate(options: argparse.Namespace) -> dict[str, Any]:
    """Return the frame rate and the processor time of each part, without a camera and with it."""
    with tempfile.TemporaryDirectory() as folder:
        counters = Counters.create(Path(folder) / "counters")
        pipeline = IsolatedPipeline(
            "camera_probes:CountedPipeline.load",
            {"preset": "tiny", "threads": options.threads},
            cameras="camera_probes:load_counted_cameras",
        )
        library = AvatarLibrary()
        path = library.find(options.avatar)
        portrait = library.prepare(path, pipeline.finder, size=options.size)
        with Avatar.from_pipeline(pipeline, portrait) as avatar:
            result = asyncio.run(_run(avatar, counters, options))
        pipeline.close()
    return result


async def _run(avatar: Avatar, counters: Counters, options: argparse.Namespace) -> dict[str, Any]:
    film = list(moving_face(2 * MOVE_FRAMES))
    lips = options.lips or "sound"
    camera = CameraOptions(lips=lips)
    async with avatar.session(
        playback="reported", camera=camera, degradation_preference="balanced"
    ) as session:
        screen = Screen()
        tasks = [
            asyncio.create_task(play(session, [screen], (options.size, options.size))),
            asyncio.create_task(_speak(session)),
        ]
        phase = _Phase(session.metrics, screen, counters)
        await asyncio.sleep(WARM_UP_S)
        result = {"undriven": await phase.measure(UNDRIVEN * options.seconds)}
        tasks.append(asyncio.create_task(_film(session, film)))
        await _until_driven(session)
        await asyncio.sleep(_SETTLE_S)
        result["driven"] = await phase.measure((1 - UNDRIVEN) * options.seconds)
        result["driving_cpu_ms_per_frame"] = driving_ms(result["undriven"], result["driven"])
        result["camera"] = str(session.camera_status)
        await _end(tasks)
    return {"size": options.size, "lips": lips, "seconds": options.seconds} | result


async def _until_driven(session: AvatarSession) -> None:
    """Wait until a frame of the camera was read.

    Raises:
        SystemExit: none was.
    """
    for _ in range(int(_STARTED_S / 0.1)):
        if session.camera_status is not None:
            return
        await asyncio.sleep(0.1)
    raise SystemExit(f"no frame of the camera was read within {_STARTED_S:g} s")


async def _end(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """End what plays, speaks and films.

    Raises:
        Exception: one of them had failed.
    """
    for task in tasks:
        task.cancel()
    for found in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(found, Exception):
            raise found


async def _speak(session: AvatarSession) -> None:
    """Push speech in real time."""
    speech, chunk = voice(20), SAMPLE_RATE * CHUNK_MS // 1000
    started_s, number = time.monotonic(), 0
    while True:
        start = number * chunk % (len(speech) - chunk)
        await session.push_audio(speech[start : start + chunk], SAMPLE_RATE)
        number += 1
        await asyncio.sleep(max(0.0, started_s + number * CHUNK_MS / 1000 - time.monotonic()))


async def _film(session: AvatarSession, film: Sequence[np.ndarray]) -> None:
    """Push the frames of a camera in real time."""
    started_s, number = time.monotonic(), 0
    while True:
        session.push_video(film[number % len(film)])
        number += 1
        await asyncio.sleep(max(0.0, started_s + number / FPS - time.monotonic()))


def driving_ms(undriven: dict[str, Any], driven: dict[str, Any]) -> float:
    """Return what moving the face takes per frame, beside reading the camera, in ms.

    It is done while the motion is sampled, so it is by how much that stage takes longer.
    """
    return round(float(driven["moving_ms"] - undriven["moving_ms"]), 3)


class _Phase:
    """Measures what happens in a stretch of time.

    Args:
        metrics: of the session.
        screen: shows its frames.
        counters: of the processes of camera and model.
    """

    def __init__(self, metrics: Metrics, screen: Screen, counters: Counters) -> None:
        self._metrics, self._screen, self._counters = metrics, screen, counters

    async def measure(self, seconds: float) -> dict[str, Any]:
        """Return the figures of the next seconds."""
        before, at_s = self._state(), time.monotonic()
        await asyncio.sleep(seconds)
        took_s, after = time.monotonic() - at_s, self._state()
        return figures(after[0] - before[0], after[1] - before[1], took_s)

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        metrics, screen = self._metrics, self._screen
        counts = screen.images, screen.repeats, metrics.steps, metrics.missed, metrics.reduced
        own_s = sum(os.times()[:2])
        return np.array([*counts, own_s]), self._counters.values()


def figures(counts: np.ndarray, parts: np.ndarray, took_s: float) -> dict[str, Any]:
    """Return the figures of a stretch of time.

    Args:
        counts: images shown, images repeated, steps, steps that took longer than they play, frames
            below full quality, and processor time of the session's process in s.
        parts: calls, processor time and time of each of `PARTS`, `(P, 3)`.
        took_s: its duration.
    """
    images, repeats, steps, missed, reduced, own_s = (float(value) for value in counts)
    shown = max(1.0, images + repeats)
    cpu_ms = {name: 1000 * float(parts[at, 1]) for at, name in enumerate(PARTS)}
    cpu_ms |= {"generate": cpu_ms["step"], "session": 1000 * own_s}
    calls = {name: float(parts[at, 0]) for at, name in enumerate(PARTS)}
    wall_ms = {name: 1000 * float(parts[at, 2]) for at, name in enumerate(PARTS)}
    frames = max(1.0, calls["step"]) * WINDOW
    moving_ms = cpu_ms["sample"] / frames
    each = {f"{name}_ms": wall_ms[name] / max(1.0, calls[name]) for name in ("read", "step")}
    of_frame = {name: round(value / shown, 3) for name, value in cpu_ms.items() if name != "step"}
    used_ms = cpu_ms["read"] + cpu_ms["generate"] + cpu_ms["session"]
    return {
        "fps": round(images / took_s, 2),
        "repeated_share": round(repeats / shown, 4),
        "reduced_share": round(reduced / shown, 4),
        "missed_share": round(missed / max(1.0, steps), 4),
        "read_fps": round(calls["read"] / took_s, 2),
        "cpu_ms_per_frame": of_frame,
        "cores": round(used_ms / 1000 / took_s, 3),
        "moving_ms": round(moving_ms, 3),
        **{name: round(value, 1) for name, value in each.items()},
    }
