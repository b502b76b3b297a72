"""Reads the camera of one session: the face tracker, then the driver's face motion."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.code_control import NO_LANDMARKS
from letstalk_rt.inference.protocol import CameraReading, CameraStatus
from letstalk_rt.models.avatar_model import AvatarModel, FaceModules
from letstalk_rt.models.face.driver import Driver
from letstalk_rt.models.face.face_tracker import (
    EncoderReader,
    FaceTracker,
    TrackState,
)
from letstalk_rt.models.face.pose_reader import read_turns
from letstalk_rt.models.layers.folded_conv import without_norms
from letstalk_rt.models.loading import load_model
from letstalk_rt.models.parts import POSE_READER
from letstalk_rt.threads import thread_limit

_FORGET_S = 5.0  # a face that was away for so long may be another one


class DriverCamera:
    """The `CameraReader` of a model in this process.

    Args:
        make_tracker: returns what follows the face; called with the first frame, in the thread
            that reads it, because it may take long. A tracker has no state, so that any number of
            cameras may share it.
    """

    def __init__(self, make_tracker: Callable[[], FaceTracker]) -> None:
        self._make_tracker = make_tracker
        self._tracker: FaceTracker | None = None
        self._track, self._driver = TrackState(), Driver()
        self._seen_s: float | None = None

    @classmethod
    def of(cls, model: AvatarModel) -> Self:
        """Create the reader of a camera for a model; quick, so that it may run on an event loop.

        Raises:
            ConfigError: the model has no landmarks.
        """
        if (face := model.face) is None:
            raise ConfigError(NO_LANDMARKS)
        return cls(partial(_tracker, model, face))

    def read(self, rgb: np.ndarray, captured_s: float, *, absolute: bool) -> CameraReading:
        """Read a frame; see `CameraReader.read`. It takes one thread."""
        with thread_limit(1):
            if self._tracker is None:
                self._tracker = self._make_tracker()
            face = self._tracker.track(rgb, self._track)
        if face is None or self._track.others:
            self._driver.lose()
            return CameraReading(CameraStatus.NO_FACE if face is None else CameraStatus.SEVERAL)
        if self._seen_s is not None and captured_s - self._seen_s > _FORGET_S:
            self._driver.reset()
        self._seen_s = captured_s
        motion = self._driver.motion(face, captured_s, absolute=absolute)
        if motion is None:
            return CameraReading(CameraStatus.LEARNING)
        return CameraReading(CameraStatus.FACE, motion)

    def take_neutral(self) -> None:
        """Take the look of the next frames as the neutral one."""
        self._driver.take_neutral()

    def close(self) -> None:
        """Do nothing: the model belongs to others."""


def _tracker(model: AvatarModel, face: FaceModules) -> FaceTracker:
    """Return the face tracker of a model, with its pose reader if the weights hold one."""
    pose_reader = model.get(POSE_READER)
    turns = None if pose_reader is None else partial(read_turns, without_norms(pose_reader))
    return FaceTracker(face.detector, EncoderReader(face.autoencoder, in_8_bit=True), turns)


def load_cameras(preset: str, weights: Path | None = None) -> Callable[[], DriverCamera]:
    """Load what reads cameras for a model; return a function that opens one for a session.

    Raises:
        ConfigError: the preset is unknown, or no camera can drive its model.
        WeightsError: the weights are missing or damaged.
    """
    model = load_model(preset, weights)
    if (face := model.face) is None:
        raise ConfigError(NO_LANDMARKS)
    tracker = _tracker(model, face)
    return lambda: DriverCamera(lambda: tracker)
