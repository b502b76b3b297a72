"""Models for processes of their own, which fail when a file with the name of a fault appears.

A fault happens once, in the next step: the step removes the file.
"""

import mmap
import os
import signal
import time
from pathlib import Path

import numpy as np

from letstalk_rt.errors import ConfigError, WeightsError
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.inference.protocol import (
    DEFAULT_OPTIONS,
    CameraReading,
    CameraStatus,
    Pipeline,
)
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.inference.supervisor import IsolationLimits
from letstalk_rt.models.face.face_motion import NUM_MOTION
from letstalk_rt.performance.direction import CHANNELS
from letstalk_rt.types import Face

FAULTS = ("raise", "hang-1", "hang-2", "hang-60", "work-1", "memory", "kill")
# Touching pages one by one takes seconds on some virtual machines.
PAGES = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
STEP_S = 0.004
"""What a step of one session takes."""


class MiddleFinder:
    """Finds a face in the middle of every image."""

    crop_px = 256

    def fingerprint(self):
        return "middle"

    def find_faces(self, rgb):
        height, width = rgb.shape[:2]
        x = np.array([0.3, 0.7, 0.5, 0.5]) * width
        y = np.array([0.5, 0.5, 0.3, 0.75]) * height
        return [Face(np.stack([x, y], 1).astype(np.float32), 0.9, 0.0)]


class FaultyPipeline(Pipeline[dict]):
    """Returns frames of the portrait's size whose level is that of the audio.

    Args:
        folder: where the files appear.
        step_s: what a step of one session takes.
    """

    frames_per_window, hop, lookahead_frames, partial_sizes, device = 4, 2560, 2, (1, 3), "cpu"
    quality_levels = (FULL_QUALITY, Quality(decode_every=2, cost=0.5))

    def __init__(self, folder, step_s=STEP_S):
        self.folder, self.step_s = Path(folder), step_s
        self.finder = MiddleFinder()
        if (self.folder / "refuse").exists():
            raise RuntimeError("the model does not load")
        (self.folder / f"loaded-{os.getpid()}").touch()

    def init_state(self, portrait, options=DEFAULT_OPTIONS):
        return {"canvas": portrait.canvas, "past": np.zeros(1280, np.float32)}

    def interrupt(self, state, *, unseen=0):
        state["past"][:] = 0

    def change_portrait(self, state, portrait):
        state["canvas"] = portrait.canvas

    def set_motion(self, state, motion):
        """Frames are as dark as the face is calm."""
        if motion.gaze_at_camera:
            raise ConfigError("this model does not look into cameras")
        state["canvas"] = (state["canvas"] * motion.expressiveness).astype(np.uint8)

    def set_quality(self, state, quality):
        """Frames of less than full quality are dark."""
        state["canvas"] = state["canvas"] * 0 if quality != FULL_QUALITY else state["canvas"]

    def batch_key(self, state):
        return "all alike"

    def open_camera(self):
        return OwnReader()

    def steer(self, state, steering):
        state["steering"] = steering

    def step(self, pcm, states, deliver=None):
        time.sleep(self.step_s * len(states))
        for state in states:
            if (steering := state.pop("steering", None)) is not None:
                for first in (0, 2):
                    window = steering(first, 2)
                    state["canvas"] = np.full_like(state["canvas"], int(window.weights.sum()))
        windows = [self.make_window(*one) for one in zip(pcm, states, strict=True)]
        if deliver is not None:
            deliver([window[:1] for window in windows])
        self.fail()
        if deliver is not None:
            deliver([window[1:] for window in windows])
        return windows

    def make_window(self, pcm, state):
        audio = np.concatenate([state["past"], pcm])
        state["past"] = audio[2560:]
        levels = np.abs(audio[:2560].reshape(4, 640)).mean(1) * 255
        return np.stack([state["canvas"] // 2 + np.uint8(level / 2) for level in levels])

    def fail(self):
        for fault in FAULTS:
            path = self.folder / fault
            if path.exists():
                path.unlink()
                self.commit(fault)

    def commit(self, fault):
        began_s = time.thread_time()
        if fault == "raise":
            raise RuntimeError("this step fails")
        if fault.startswith("hang"):
            time.sleep(float(fault.removeprefix("hang-")))
        elif fault.startswith("work"):  # as much on a busy processor as on an idle one
            while time.thread_time() < float(fault.removeprefix("work-")) + began_s:
                pass
        elif fault == "memory":
            hoard = []
            while True:
                hoard.append(mmap.mmap(-1, 32 * 2**20, flags=PAGES))
        elif fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


class UndrivenPipeline(FaultyPipeline):
    """A model that no camera can drive, and that fails where it is driven all the same."""

    def open_camera(self):
        raise ConfigError("this model has no landmarks")

    def steer(self, state, steering):
        raise ConfigError("this model has no landmarks")


class DirectedPipeline(FaultyPipeline):
    """A model that is directed: its frames are brighter by the smile that is added, in percent."""

    is_directable = True

    def direct(self, state, window):
        state["smile"] = 100 * window.added[:, CHANNELS.index("smile")]

    def make_window(self, pcm, state):
        smile = state.pop("smile", np.zeros(4))
        window = super().make_window(pcm, state)
        return window + np.round(smile).astype(np.uint8)[:, None, None, None]


def without_weights():
    raise WeightsError("no weights here")


def broken():
    return 1 / 0


def isolated(folder, limits=None, model="FaultyPipeline", **options):
    """Return a faulty pipeline in a process of its own."""
    limits = limits or IsolationLimits(memory_mb=200)
    options = {"folder": str(folder), **options}
    return IsolatedPipeline(f"support.isolated_models:{model}", options, limits=limits)


class SizeReader:
    """Says how large frames are, and how many there were; dies of white ones."""

    def __init__(self):
        self.count = 0

    def read(self, rgb, captured_s, *, absolute):
        if rgb.min() == 255:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        motion = np.zeros(NUM_MOTION, np.float32)
        motion[:4] = [*rgb.shape[:2], captured_s, self.count]
        return CameraReading(CameraStatus.FACE, motion)

    def take_neutral(self):
        self.count = 100

    def close(self):
        raise AssertionError("the process forgets readers by itself")


class OwnReader(SizeReader):
    """A reader in the model's own process."""

    def close(self):
        """Do nothing: it holds nothing."""


def load_sizes():
    return SizeReader


def load_nothing():
    raise ConfigError("no camera can drive this model")
