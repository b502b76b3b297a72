"""Probes of camera drive: what reads cameras and what generates, each with its processor time.

Both run in processes of their own, which end without a word. So each counts in a file that the
benchmark reads, named by the variable `COUNTERS`.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from letstalk_rt.inference.driver_camera import DriverCamera, load_cameras
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import CameraReader, CameraReading
from letstalk_rt.inference.session_state import SessionState

COUNTERS = "LETSTALK_CAMERA_COUNTERS"
"""Environment variable with the path of the file of the counters."""

PARTS = ("read", "audio", "sample", "layout", "paint", "step")
"""What is counted: reading a frame of the camera; the stages of a step, of
which `sample` moves the face; and the whole step."""

_FIELDS = 3  # calls, processor time in s, time in s


class Counters:
    """Calls of each part, their processor time and their time, in a file that processes share."""

    def __init__(self, path: Path) -> None:
        self._values = np.memmap(path, np.float64, "r+", shape=(len(PARTS), _FIELDS))

    @classmethod
    def create(cls, path: Path) -> "Counters":
        """Create the file, and name it to the processes that are started from now on."""
        np.memmap(path, np.float64, "w+", shape=(len(PARTS), _FIELDS)).flush()
        os.environ[COUNTERS] = str(path)
        return cls(path)

    @classmethod
    def given(cls) -> "Counters":
        """Return the counters that the benchmark has created."""
        return cls(Path(os.environ[COUNTERS]))

    def values(self) -> np.ndarray:
        """Return calls, processor time and time of each of `PARTS`, `(P, 3)`."""
        return np.array(self._values)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the enclosed block as a call of a part; others are left out."""
        if name not in PARTS:
            yield
            return
        cpu_s, at_s = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            took = 1.0, time.process_time() - cpu_s, time.perf_counter() - at_s
            self._values[PARTS.index(name)] += took


class CountedPipeline(AvatarPipeline):
    """The pipeline of the server, which counts its calls; loaded in the model's process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._counters = Counters.given()

    def step(
        self, pcm: np.ndarray, states: Sequence[SessionState], deliver: Any = None, **_: Any
    ) -> list[np.ndarray]:
        """Count `AvatarPipeline.step` and its stages."""
        with self._counters.stage("step"):
            return super().step(pcm, states, deliver, clock=self._counters)


class CountedCamera(CameraReader):
    """What reads the camera of one session, and counts."""

    def __init__(self, camera: DriverCamera) -> None:
        self._camera, self._counters = camera, Counters.given()

    def read(self, rgb: np.ndarray, captured_s: float, *, absolute: bool) -> CameraReading:
        """Count `DriverCamera.read`."""
        with self._counters.stage("read"):
            return self._camera.read(rgb, captured_s, absolute=absolute)

    def take_neutral(self) -> None:
        """Take the look of the next frames as the neutral one."""
        self._camera.take_neutral()

    def close(self) -> None:
        """Close the camera."""
        self._camera.close()


def load_counted_cameras(preset: str, weights: Path | None = None) -> Callable[[], CountedCamera]:
    """Load what reads cameras, as `driver_camera.load_cameras`, with counters."""
    open_camera = load_cameras(preset, weights)
    return lambda: CountedCamera(open_camera())
