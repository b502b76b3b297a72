"""What torch leaves behind in the threads that it computed in."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from letstalk_rt.threads import (
    DecodePool,
    in_own_thread,
    shorten_openmp_spin,
    started_pool,
    thread_limit,
)


def test_a_call_apart_gives_and_raises_what_it_did():
    seen = []

    @in_own_thread
    def work(number, *, fails=False):
        """Do it."""
        seen.append(threading.current_thread())
        if fails:
            raise ValueError("no")
        return number + 1

    assert work(1) == 2 and work.__doc__ == "Do it."
    with pytest.raises(ValueError, match="no"):
        work(1, fails=True)
    assert threading.current_thread() not in seen
    assert not any(thread.is_alive() for thread in seen)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_loading_and_finding_a_face_leave_no_team_of_threads_behind():
    script = """
import os
from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.portrait.image import prepare_portrait
before = len(os.listdir("/proc/self/task"))
pipeline = AvatarPipeline.load(dtype="float32")
prepare_portrait(next(iter(list_avatars().values())), pipeline.finder)
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) <= 0


def test_the_users_own_setting_of_openmp_stays(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    shorten_openmp_spin()
    assert os.environ["GOMP_SPINCOUNT"] == "20000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    shorten_openmp_spin()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_threads_are_limited_for_a_while_only():
    before = torch.get_num_threads()
    with thread_limit(before + 1):
        assert torch.get_num_threads() == before + 1
    with thread_limit(None):
        assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="no"), thread_limit(before + 1):
        raise ValueError("no")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "cores, workers, each, model_threads", [(1, 1, 1, 1), (2, 2, 1, 1), (6, 4, 1, 5), (8, 4, 2, 7)]
)
def test_pool_threads_share_the_cores(cores, workers, each, model_threads):
    before = torch.get_num_threads()
    with thread_limit(cores):
        pool = DecodePool(4)
    assert pool.model_threads == model_threads
    together = threading.Barrier(workers)

    def count():
        together.wait(10)  # all of them at once
        return torch.get_num_threads()

    assert {job.result() for job in [pool.submit(count) for _ in range(workers)]} == {each}
    assert torch.get_num_threads() == before


def test_an_error_in_a_pool_thread_is_raised():
    job = DecodePool(2).submit(int, "four")
    with pytest.raises(ValueError, match="four"):
        job.result()


def test_a_started_pool_needs_no_further_thread():
    before = set(threading.enumerate())
    with started_pool(3, "started") as pool:
        threads = set(threading.enumerate()) - before
        assert [thread.name.rpartition("_")[0] for thread in threads] == ["started"] * 3

        held = threading.Event()
        waiting = [pool.submit(held.wait) for _ in range(5)]
        assert set(threading.enumerate()) - before == threads
        held.set()
        assert all(done.result() for done in waiting)
