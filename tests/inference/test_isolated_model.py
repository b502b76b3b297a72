"""The embedded model runs in a process of its own, and comes back when that is killed."""

import os
import signal
import time

import numpy as np

from letstalk_rt.avatars import list_avatars
from letstalk_rt.session.avatar import Avatar

PORTRAIT = next(iter(list_avatars().values()))


def speech(seconds):
    noise = np.random.default_rng(0).standard_normal(int(16_000 * seconds))
    return (0.1 * noise).astype(np.float32)


def test_the_embedded_model_comes_back_and_is_the_same():
    with Avatar.load(PORTRAIT, size=256, threads=1, isolated=True) as avatar:
        pipeline = avatar.pipeline
        assert pipeline.machine.split()[1] == "tiny", "what is measured here is kept by this name"
        wanted = np.stack([frame.rgb for frame in avatar.render(speech(0.2))])
        os.kill(pipeline.pid, signal.SIGKILL)
        while pipeline.is_running:
            time.sleep(0.01)
        again = np.stack([frame.rgb for frame in avatar.render(speech(0.2))])
        np.testing.assert_array_equal(again, wanted)
        assert wanted.shape == (5, *avatar.portrait.canvas.shape) and wanted.std() > 10
        assert pipeline.health.restarts == 1
    assert not pipeline.is_running
