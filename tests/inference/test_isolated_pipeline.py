"""A model in a process of its own: faults of it are errors here, and it comes back."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.fakes import HOP
from support.isolated_models import isolated
from support.sessions import record, speech
from support.virtual_time import run_real

from letstalk_rt.errors import ConfigError, EngineError, ModelLost, WeightsError
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.inference.protocol import Fault, StateLost
from letstalk_rt.inference.quality import FULL_QUALITY
from letstalk_rt.inference.supervisor import (
    SPARE_AFTER_S,
    IsolationLimits,
    available_bytes,
    back_off_s,
)
from letstalk_rt.inference.waiting import waited_s
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import MotionOptions, Portrait

SHARED = Path("/dev/shm")
TESTS = Path(__file__).parents[1]
LIMIT_S = 60


def portrait(size=32, level=0):
    canvas = np.full((size, size, 3), level, np.uint8)
    return Portrait(canvas, canvas, (0.0, 0.0, float(size)))


def hop(level=0.5):
    return np.full((1, 2560), level, np.float32)


def until(condition):
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.02)


def new_state(pipeline):
    """Return a state, once the model is back."""
    end_s = time.monotonic() + LIMIT_S
    while True:
        try:
            return pipeline.init_state(portrait())
        except StateLost:
            assert time.monotonic() < end_s
            time.sleep(0.05)


def is_process(pid):
    """Return whether a process exists, zombies included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def shared(folder):
    pipeline = isolated(folder, IsolationLimits(step_s=2.5, call_s=2.5, memory_mb=200))
    yield pipeline
    pipeline.close()
    assert not multiprocessing.active_children()


@pytest.fixture
def pipeline(shared):
    """The shared pipeline with a model that runs and has run some steps."""
    state = new_state(shared)
    for _ in range(10):
        shared.step(hop(), [state])
    return shared


def test_windows_are_those_of_the_model_and_come_in_parts(pipeline):
    small, large = (pipeline.init_state(portrait(size)) for size in (16, 64))
    for state, size in ((small, 16), (large, 64), (small, 16)):
        parts = []
        (window,) = pipeline.step(hop(), [state], parts.extend)
        assert window.shape == (4, size, size, 3) and window.dtype == np.uint8
        assert [len(part) for part in parts] == list(pipeline.partial_sizes) == [1, 3]
        np.testing.assert_array_equal(np.concatenate(parts), window)
    assert set(window[2:].ravel()) == {63}
    (again,) = pipeline.step(hop(0.25), [small])
    assert (window[2:] == 63).all(), "a window is not overwritten by the next one"
    assert set(again[2:].ravel()) == {31}


def test_sessions_of_one_key_run_as_one_batch(pipeline):
    states = [pipeline.init_state(portrait()) for _ in range(3)]
    assert len({pipeline.batch_key(state) for state in states}) == 1
    pcm = np.concatenate([hop(level) for level in (0.25, 0.5, 1.0)])
    window = pipeline.step(pcm, states)
    assert [int(frames[3, 0, 0, 0]) for frames in window] == [31, 63, 127]


def test_frames_of_one_batch_may_have_different_sizes(pipeline):
    sizes = (16, 48, 32)
    states = [pipeline.init_state(portrait(size)) for size in sizes]
    pcm = np.concatenate([hop(level) for level in (0.25, 0.5, 1.0)])
    parts = []
    windows = pipeline.step(pcm, states, parts.append)
    assert [window.shape for window in windows] == [(4, size, size, 3) for size in sizes]
    assert [set(window[3].ravel()) for window in windows] == [{31}, {63}, {127}]
    for whole, first, rest in zip(windows, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, rest]), whole)


def test_quality_levels_are_those_of_the_model_and_each_session_has_its_own(pipeline):
    full, reduced = pipeline.quality_levels
    assert full == FULL_QUALITY and reduced.cost == 0.5
    bright = [pipeline.init_state(portrait(level=200)) for _ in range(2)]
    pipeline.set_quality(bright[1], reduced)
    window = pipeline.step(np.concatenate([hop(0.0)] * 2), bright)
    assert window[0].mean() > 90 and not window[1].any()


def test_each_session_moves_as_it_is_told_and_a_refusal_is_the_models(pipeline):
    bright = [pipeline.init_state(portrait(level=200)) for _ in range(2)]
    pipeline.set_motion(bright[1], MotionOptions(expressiveness=0.0))
    window = pipeline.step(np.concatenate([hop(0.0)] * 2), bright)
    assert window[0].mean() > 90 and not window[1].any()
    with pytest.raises(ConfigError, match="does not look into cameras"):
        pipeline.set_motion(bright[0], MotionOptions(gaze_at_camera=True))
    assert pipeline.step(hop(0.0), bright[:1])[0].mean() > 90


def test_the_other_calls_reach_the_model(pipeline):
    state = pipeline.init_state(portrait())
    pipeline.step(hop(), [state])
    pipeline.interrupt(state, unseen=1)
    assert not pipeline.step(hop(), [state])[0][:2].any(), "past speech is forgotten"
    key = pipeline.batch_key(state)
    pipeline.change_portrait(state, portrait(16))
    assert pipeline.step(hop(), [state])[0].shape == (4, 16, 16, 3)
    assert pipeline.batch_key(state) == key, "sizes may differ in a batch"
    faces = pipeline.finder.find_faces(np.zeros((100, 50, 3), np.uint8))
    assert faces[0].landmarks[0].tolist() == [15.0, 50.0]


def test_frames_lie_in_memory_that_has_no_name(pipeline):
    before = set(os.listdir(SHARED)) if SHARED.exists() else set()
    state = pipeline.init_state(portrait(128))
    pipeline.step(hop(), [state])
    assert SHARED.exists() is False or set(os.listdir(SHARED)) <= before


def test_a_step_that_raises_leaves_the_process_as_it_is(pipeline, folder):
    state, pid = pipeline.init_state(portrait()), pipeline.pid
    raised = pipeline.health.faults[Fault.RAISED]
    (folder / "raise").touch()
    with pytest.raises(EngineError, match="RuntimeError: this step fails"):
        pipeline.step(hop(), [state])
    assert pipeline.health.faults[Fault.RAISED] == raised + 1
    assert pipeline.step(hop(), [state])[0].any() and pipeline.pid == pid


def test_a_model_that_keeps_raising_is_replaced(pipeline, folder):
    state, pid = pipeline.init_state(portrait()), pipeline.pid
    for _ in range(2):
        (folder / "raise").touch()
        with pytest.raises(EngineError, match="this step fails"):
            pipeline.step(hop(), [state])
    with pytest.raises(StateLost):
        pipeline.step(hop(), [state])
    assert pipeline.step(hop(), [new_state(pipeline)])[0].any()
    assert pipeline.pid != pid and not is_process(pid)


@pytest.mark.parametrize(
    ("name", "fault"), [("kill", Fault.DIED), ("memory", Fault.MEMORY), ("hang-60", Fault.HUNG)]
)
def test_a_model_that_is_lost_comes_back(pipeline, folder, name, fault):
    state, other = pipeline.init_state(portrait()), pipeline.init_state(portrait())
    pid = pipeline.pid
    count, restarts = pipeline.health.faults[fault], pipeline.health.restarts
    parts = []
    (folder / name).touch()
    with pytest.raises(ModelLost) as lost:
        pipeline.step(hop(), [state], parts.append)
    assert not isinstance(lost.value, StateLost) and lost.value.fault == fault
    assert len(parts) == 1, "what was made before the fault was delivered"
    assert not is_process(pid), "no zombie is left"
    for stale in (state, other):
        with pytest.raises(StateLost):
            pipeline.step(hop(), [stale])
    assert pipeline.step(hop(), [new_state(pipeline)])[0].any()
    assert pipeline.health.faults[fault] == count + 1
    assert pipeline.health.restarts == restarts + 1 and pipeline.health.outage_s > 0


def test_a_short_hang_is_waited_for(pipeline, folder):
    state, pid = pipeline.init_state(portrait()), pipeline.pid
    (folder / "hang-1").touch()
    assert pipeline.step(hop(), [state])[0].any() and pipeline.pid == pid


@pytest.mark.skipif(not waited_s(os.getpid()), reason="the system does not count waits")
def test_a_camera_is_asked_for_motion_while_a_step_runs(pipeline):
    states, asked = [new_state(pipeline) for _ in range(2)], []

    def steering(first, count):
        asked.append((first, count))
        time.sleep(1.5 if first else 0)  # the limit of a step is 2.5 s
        return DriveWindow(np.full(count, 20.0, np.float32), np.zeros((count, 20)), "sound")

    pipeline.steer(states[1], steering)
    windows = pipeline.step(np.repeat(hop(0.0), 2, 0), states)
    assert asked == [(0, 2), (2, 2)]
    assert windows[0].max() == 0 and windows[1].min() == 20
    pipeline.step(np.repeat(hop(0.0), 2, 0), states)
    assert len(asked) == 2, "it holds for one window"


def test_a_camera_that_cannot_drive_the_model_is_refused_and_the_session_goes_on(tmp_path):
    pipeline = isolated(tmp_path, model="UndrivenPipeline")

    async def body():
        async with avatar.session(idle=False) as session:
            with pytest.raises(ConfigError, match="this model has no landmarks"):
                session.push_video(np.zeros((64, 64, 3), np.uint8))
            assert len(await record(session, speech(HOP))) >= 4

    try:
        with Avatar.from_pipeline(pipeline, portrait()) as avatar:
            run_real(body(), LIMIT_S)
    finally:
        pipeline.close()


def test_a_camera_is_opened_where_one_can_drive_the_model(pipeline):
    pipeline.open_camera().close()


def test_time_in_which_the_model_waits_for_motion_is_no_hang(tmp_path):
    pipeline = isolated(tmp_path, IsolationLimits(step_s=0.5, memory_mb=200))
    try:
        state = new_state(pipeline)
        for wait_s in (0.0, 1.5):

            def steering(first, count, wait_s=wait_s):
                time.sleep(wait_s)
                return DriveWindow(np.zeros(count, np.float32), np.zeros((count, 20)), "sound")

            pipeline.steer(state, steering)
            assert len(pipeline.step(hop(), [state])[0]) == 4
    finally:
        pipeline.close()


def test_a_step_that_waits_for_a_processor_is_not_taken_for_a_hang(tmp_path):
    pipeline = isolated(tmp_path, IsolationLimits(step_s=1.8, memory_mb=200))
    spin = [sys.executable, "-c", "while True: pass"]
    others = []
    try:
        state = new_state(pipeline)
        pipeline.step(hop(), [state])
        core = {min(os.sched_getaffinity(0))}
        for thread in waited_s(pipeline.pid):
            os.sched_setaffinity(thread, core)
        others = [subprocess.Popen(spin) for _ in range(3)]
        for other in others:
            os.sched_setaffinity(other.pid, core)
        (tmp_path / "work-1").touch()
        began_s = time.monotonic()
        assert pipeline.step(hop(), [state])[0].any()
        assert time.monotonic() - began_s > 1.8, "longer than the limit"
        assert not any(pipeline.health.faults.values())
    finally:
        for other in others:
            other.kill()
            other.wait()
        pipeline.close()


def test_a_model_that_dies_while_nobody_calls_it_is_started_when_it_is_due(pipeline):
    state, pid = pipeline.init_state(portrait()), pipeline.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not pipeline.is_running)
    until(lambda: pipeline.is_process_due)
    pipeline.start_due()
    assert pipeline.is_running and pipeline.pid != pid
    with pytest.raises(StateLost):
        pipeline.interrupt(state)


def test_a_stopped_process_that_does_not_even_read_is_ended(pipeline):
    os.kill(pipeline.pid, signal.SIGSTOP)
    image = np.zeros((64, 64, 3), np.uint8)
    state = None
    with pytest.raises(ModelLost) as lost:
        # larger than a socket's buffer, so that sending blocks
        state = pipeline.init_state(Portrait(np.zeros((2048, 2048, 3), np.uint8), image, (0, 0, 1)))
    assert lost.value.fault == Fault.HUNG and state is None
    assert new_state(pipeline)


def test_the_pause_before_a_restart_grows():
    assert [back_off_s(count) for count in range(6)] == [0, 0, 0.5, 1, 2, 4]
    assert back_off_s(1000) == 30


def test_a_model_that_cannot_be_started_again_is_tried_again(tmp_path):
    pipeline = isolated(tmp_path)
    try:
        (tmp_path / "refuse").touch()
        os.kill(pipeline.pid, signal.SIGKILL)
        until(lambda: not pipeline.is_running)
        with pytest.raises(StateLost, match="does not load"):
            pipeline.init_state(portrait())
        assert pipeline.health.faults[Fault.START] == 1 and not pipeline.is_running
        with pytest.raises(StateLost, match="started again in"):
            pipeline.init_state(portrait())
        (tmp_path / "refuse").unlink()
        assert new_state(pipeline)
    finally:
        pipeline.close()


@pytest.mark.skipif(available_bytes() is None, reason="the free memory is unknown here")
@pytest.mark.parametrize("standby", [True, False])
def test_a_spare_process_has_loaded_the_model_if_it_may(tmp_path, standby):
    ahead_s = 0.0
    pipeline = IsolatedPipeline(
        "support.isolated_models:FaultyPipeline",
        {"folder": str(tmp_path)},
        limits=IsolationLimits(memory_mb=200, standby=standby),
        clock=lambda: time.monotonic() + ahead_s,
    )
    try:
        assert not pipeline.is_process_due
        ahead_s = SPARE_AFTER_S + 1
        assert pipeline.is_process_due
        pipeline.start_due()
        assert not pipeline.is_process_due
        until(lambda: len(list(tmp_path.glob("loaded-*"))) == 1 + standby)
        (tmp_path / "refuse").touch()
        os.kill(pipeline.pid, signal.SIGKILL)
        until(lambda: not pipeline.is_running)
        if standby:
            assert pipeline.step(hop(), [pipeline.init_state(portrait())])[0].any()
            assert pipeline.health.restarts == 1
        else:
            with pytest.raises(StateLost, match="does not load"):
                pipeline.init_state(portrait())
    finally:
        pipeline.close()


def test_errors_of_loading_are_those_of_the_model():
    before = multiprocessing.active_children()
    with pytest.raises(WeightsError, match="no weights"):
        IsolatedPipeline("support.isolated_models:without_weights", {})
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        IsolatedPipeline("support.isolated_models:broken", {})
    assert multiprocessing.active_children() == before


def test_closing_ends_a_running_call_and_the_process(tmp_path):
    pipeline = isolated(tmp_path)
    state, pid, errors = pipeline.init_state(portrait()), pipeline.pid, []
    (tmp_path / "hang-60").touch()

    def step():
        try:
            pipeline.step(hop(), [state])
        except ModelLost as error:
            errors.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    until(lambda: not (tmp_path / "hang-60").exists())
    pipeline.close()
    pipeline.close()
    thread.join(LIMIT_S)
    assert len(errors) == 1 and not is_process(pid) and not pipeline.is_process_due
    with pytest.raises(ModelLost):
        pipeline.init_state(portrait())


SCRIPT = """
import signal
import sys
import time

sys.path.insert(0, {tests!r})
from support.isolated_models import isolated

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    pipeline = isolated({folder!r})
    try:
        print(pipeline.pid, flush=True)
        while True:
            time.sleep(0.1)
    except KeyboardInterrupt:
        pipeline.close()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_the_process_ends_with_its_parent(tmp_path, sent):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(TESTS), folder=str(tmp_path)))
    command = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as parent:
        try:
            pid = int(parent.stdout.readline())
            if sent == signal.SIGINT:  # as Ctrl-C does
                os.killpg(parent.pid, sent)
            else:
                parent.kill()
            parent.wait(LIMIT_S)
            assert "Traceback" not in parent.stderr.read()
        finally:
            parent.kill()
    assert parent.returncode == (0 if sent == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not is_process(pid) or is_zombie(pid))


def is_zombie(pid):
    """Return whether an ended process waits for whoever has adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
