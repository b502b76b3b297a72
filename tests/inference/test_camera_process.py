"""The process that reads cameras: its readings, its errors, and a new one after it has ended."""

import numpy as np
import pytest

from letstalk_rt import ConfigError, ModelLost
from letstalk_rt.inference.camera_process import MOST_PX, CameraProcess
from letstalk_rt.inference.supervisor import IsolationLimits

LIMITS = IsolationLimits(call_s=60, start_s=120)


def process(load):
    return CameraProcess(f"support.isolated_models:{load}", {}, LIMITS)


def read(camera, level=0, size=(48, 64), at_s=0.0):
    return camera.read(np.full((*size, 3), level, np.uint8), at_s, absolute=False)


@pytest.fixture
def cameras():
    cameras = process("load_sizes")
    yield cameras
    cameras.close()


def test_each_camera_has_a_reader_of_its_own(cameras):
    first, second = cameras.open(), cameras.open()
    assert read(first, at_s=1.5).motion[:4].tolist() == [48, 64, 1.5, 1]
    assert read(first).motion[3] == 2 and read(second).motion[3] == 1
    first.take_neutral()
    assert read(first).motion[3] == 101 and read(second).motion[3] == 2
    first.close()
    assert read(first).motion[3] == 1  # it was forgotten


def test_large_frames_are_made_smaller(cameras):
    height, width = read(cameras.open(), size=(1080, 1920)).motion[:2]
    assert (height, width) == (360, MOST_PX)


def test_a_process_that_dies_is_replaced_at_the_next_frame(cameras):
    camera = cameras.open()
    read(camera)
    with pytest.raises(ModelLost):
        read(camera, level=255)
    assert read(camera).motion[3] == 1


def test_an_error_of_loading_is_that_of_the_call_and_nothing_is_left():
    cameras = process("load_nothing")
    with pytest.raises(ConfigError, match="no camera can drive"):
        read(cameras.open())
    cameras.close()
    with pytest.raises(ModelLost, match="closed"):
        read(cameras.open())
