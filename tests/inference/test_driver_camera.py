"""What reads a camera: it is opened at once, and made ready by the thread that reads."""

import asyncio
import threading

import numpy as np
import pytest
from support.fakes import FakePipeline
from support.small_dc_model import make_dc_model
from support.small_model import make_model

from letstalk_rt import CameraOptions, ConfigError
from letstalk_rt.inference import driver_camera
from letstalk_rt.inference.driver_camera import DriverCamera
from letstalk_rt.inference.protocol import CameraStatus
from letstalk_rt.session.camera_input import CameraInput
from letstalk_rt.session.events import EventHub

FRAME = np.zeros((48, 64, 3), np.uint8)


async def test_the_tracker_is_built_once_and_by_the_thread_that_reads(monkeypatch):
    built, reads = [], []

    class NoFaces:
        def __init__(self, *parts):
            built.append(threading.current_thread())

        def track(self, rgb, state):
            reads.append(rgb)

    class Drivable(FakePipeline):
        def open_camera(self):
            return DriverCamera.of(model)

    monkeypatch.setattr(driver_camera, "FaceTracker", NoFaces)
    model, loop = make_model(), asyncio.get_running_loop()
    camera = CameraInput(Drivable(), CameraOptions(), loop.time, EventHub())
    async with asyncio.timeout(20):
        while len(reads) < 2:
            camera.push(FRAME, None)
            await asyncio.sleep(0.01)
    camera.close()
    assert len(built) == 1 and camera.status is CameraStatus.NO_FACE
    assert built[0].name.startswith("letstalk-camera")


def test_a_model_without_landmarks_is_refused_at_once():
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    with pytest.raises(ConfigError, match="no landmarks, so no camera can drive it"):
        DriverCamera.of(make_dc_model())
