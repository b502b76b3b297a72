"""The embedded model in a process of its own gives the same frames, and comes back."""

import os
import signal
import time

import numpy as np
import pytest

from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import ConfigError
from letstalk_rt.session.avatar import Avatar

PORTRAIT = next(iter(list_avatars().values()))


def speech(seconds):
    noise = np.random.default_rng(0).standard_normal(int(16_000 * seconds))
    return (0.1 * noise).astype(np.float32)


def test_the_embedded_model_is_the_same_and_comes_back():
    options = {"size": 256, "threads": 1}
    with Avatar.load(PORTRAIT, **options) as avatar:
        wanted = np.stack([frame.rgb for frame in avatar.render(speech(0.2))])
    with Avatar.load(PORTRAIT, **options, isolated=True) as avatar:
        pipeline = avatar.pipeline
        frames = np.stack([frame.rgb for frame in avatar.render(speech(0.2))])
        np.testing.assert_array_equal(frames, wanted)
        os.kill(pipeline.pid, signal.SIGKILL)
        while pipeline.is_running:
            time.sleep(0.01)
        again = np.stack([frame.rgb for frame in avatar.render(speech(0.2))])
        np.testing.assert_array_equal(again, wanted)
        assert pipeline.health.restarts == 1
    assert not pipeline.is_running


def test_an_unknown_preset_is_the_callers_mistake():
    with pytest.raises(ConfigError, match="nothing"):
        Avatar.load(PORTRAIT, "nothing", isolated=True)
