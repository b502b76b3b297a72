"""The camera of a session: alignment by capture times, the fall-back, and bad frames."""

import asyncio

import numpy as np
import pytest
from support.fakes import FakePipeline
from support.live_sessions import Screen, live_session, microphone, session_of, speech_of

from letstalk_rt import CameraOptions, ConfigError, ModelLost
from letstalk_rt.inference.protocol import CameraReading, CameraStatus
from letstalk_rt.models.face.face_motion import NUM_MOTION
from letstalk_rt.session.camera_input import CameraInput
from letstalk_rt.session.events import EventHub

FRAME = np.zeros((48, 64, 3), np.uint8)


class FakeReader:
    """Reads the yaw from the first pixel of a frame; 0 is no face."""

    def __init__(self):
        self.read_at_s, self.calls, self.fails = [], [], False

    def read(self, rgb, captured_s, *, absolute):
        self.read_at_s.append(captured_s)
        if self.fails:
            raise ModelLost("its process has ended")
        level = int(rgb[0, 0, 0])
        if not level:
            return CameraReading(CameraStatus.NO_FACE)
        motion = np.zeros(NUM_MOTION, np.float32)
        motion[0] = level / 100
        return CameraReading(CameraStatus.FACE, motion)

    def take_neutral(self):
        self.calls.append("neutral")

    def close(self):
        self.calls.append("closed")


class FakeDrivable(FakePipeline):
    def __init__(self):
        super().__init__()
        self.reader, self.driven, self.steering = FakeReader(), [], None

    def open_camera(self):
        return self.reader

    def steer(self, state, steering):
        self.steering = steering

    def step(self, pcm, states, deliver=None):
        if self.steering is not None:
            self.driven.append(self.steering(0, 4))
        return super().step(pcm, states, deliver)


class Camera:
    """A camera input whose clock is set by hand."""

    def __init__(self):
        self.now_s, self.pipeline, self.hub = 0.0, FakeDrivable(), EventHub()
        self.input = CameraInput(self.pipeline, CameraOptions(), lambda: self.now_s, self.hub)

    async def see(self, level, at_s):
        """Push a frame and wait until it was read."""
        self.now_s = at_s
        frame = FRAME.copy()
        frame[0, 0, 0] = level
        self.input.push(frame, at_s)
        for _ in range(200):
            await asyncio.sleep(0.001)
            if self.pipeline.reader.read_at_s[-1:] == [at_s] and self.input.status is not None:
                await asyncio.sleep(0.002)
                return

    async def see_until(self, level, first_s, last_s):
        for at_s in np.arange(first_s, last_s, 0.04):
            await self.see(level, float(at_s))

    def weights(self, first_s, last_s):
        shown = [self.input.window([float(t)]) for t in np.arange(first_s, last_s, 0.04)]
        return [0.0 if window is None else float(window.weights[0]) for window in shown]


async def test_frames_are_shown_at_the_time_at_which_they_were_captured():
    camera = Camera()
    await camera.see_until(10, 0.0, 0.4)
    await camera.see(10, 0.40)
    await camera.see(30, 0.48)
    camera.weights(0.0, 0.4)  # fades in
    yaws = [float(camera.input.window([at_s]).motion[0, 0]) for at_s in (0.40, 0.44, 0.48)]
    np.testing.assert_allclose(yaws, [0.1, 0.2, 0.3], atol=1e-6)
    camera.input.close()


async def test_without_a_face_the_avatar_moves_by_itself_within_half_a_second():
    camera = Camera()
    await camera.see_until(20, 0.0, 1.0)
    assert camera.weights(0.0, 0.96)[-1] == 1.0
    await camera.see_until(0, 1.0, 1.6)
    weights = camera.weights(1.0, 1.5)
    assert weights[0] == 1.0 and weights[-1] == 0.0
    assert weights == sorted(weights, reverse=True)
    camera.input.close()


async def test_frames_that_stop_count_as_a_lost_face():
    camera = Camera()
    await camera.see_until(20, 0.0, 1.0)
    camera.weights(0.0, 0.96)
    assert camera.weights(0.96, 1.5)[-1] == 0.0
    camera.input.close()


async def test_a_face_comes_back_without_a_jump():
    camera = Camera()
    await camera.see_until(10, 0.0, 0.6)
    await camera.see_until(0, 0.6, 0.84)
    await camera.see_until(40, 0.84, 1.6)
    shown = []
    for at_s in np.arange(0.0, 1.56, 0.04):
        window = camera.input.window([float(at_s)])
        shown.append(0.0 if window is None else float(window.weights[0] * window.motion[0, 0]))
    assert max(abs(np.diff(shown))) < 0.12
    assert shown[-1] == pytest.approx(0.4, abs=0.02)
    camera.input.close()


async def test_a_reading_that_waited_for_a_processor_does_not_make_the_camera_rest_longer():
    camera = Camera()
    reads = camera.pipeline.reader.read_at_s
    for number in range(10):  # the fake reader takes no time by this clock
        await camera.see(10, 0.04 * number)
    assert len(reads) == 10
    slow = camera.pipeline.reader.read

    def late(rgb, captured_s, *, absolute):
        camera.now_s += 0.1
        return slow(rgb, captured_s, absolute=absolute)

    camera.pipeline.reader.read = late
    await camera.see(10, 0.4)
    await camera.see(10, 0.52)
    assert reads[-2:] == [0.4, 0.52]
    camera.input.close()


async def test_a_frame_that_is_older_than_the_last_is_ignored():
    camera = Camera()
    await camera.see(10, 1.0)
    camera.now_s = 1.1
    camera.input.push(FRAME, 0.9)
    await asyncio.sleep(0.02)
    assert camera.pipeline.reader.read_at_s == [1.0]
    camera.input.close()


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 3), np.float32),
        np.zeros((8, 64, 3), np.uint8),
        "frame",
    ],
)
async def test_a_frame_that_is_no_image_is_refused(frame):
    camera = Camera()
    with pytest.raises(ConfigError, match="frame must"):
        camera.input.push(frame, None)


async def test_a_model_that_no_camera_can_drive_says_so():
    async with session_of(idle=True) as session:
        with pytest.raises(ConfigError, match="no camera can drive"):
            session.push_video(FRAME)


def test_unknown_lips_are_refused():
    with pytest.raises(ConfigError, match="lips must be one of sound, camera, blend"):
        CameraOptions(lips="both")


async def test_a_session_drives_its_model_and_closes_the_camera():
    pipeline = FakeDrivable()
    async with session_of(pipeline, idle=True, camera=CameraOptions(lips="camera")) as session:
        frame = np.full((48, 64, 3), 20, np.uint8)
        for _ in range(40):
            session.push_video(frame)
            await asyncio.wait_for(anext(session), 5)
            await asyncio.sleep(0.01)
        session.take_neutral()
        assert session.camera_status is CameraStatus.FACE
        assert pipeline.driven and pipeline.driven[-1].lips == "camera"
        assert pipeline.driven[-1].motion.shape == (4, NUM_MOTION)
    await asyncio.sleep(0.05)
    assert pipeline.reader.calls == ["neutral", "closed"]


async def waits_s(seconds, speech=None):
    """Return by how much each frame's capture is before the end of its hop, `(steps, 4)`."""
    waits = []
    async with live_session(FakeDrivable(), 0.01) as session:
        screen = Screen(session)
        talking = speech is not None and asyncio.create_task(microphone(session, speech))
        frame, loop = np.full((48, 64, 3), 20, np.uint8), asyncio.get_running_loop()
        until_s = loop.time() + seconds
        while loop.time() < until_s:
            session.push_video(frame)
            await asyncio.sleep(0.04)
        await screen.close()
        if talking:
            talking.cancel()
            await asyncio.wait([talking])
        assert {"camera_push", "camera_read", "camera_wait", "camera"} <= set(
            session.metrics.stages_ms()
        )
        for shown in screen.frames:
            if shown.stamps.captured_s is not None:
                waits.append(shown.stamps.hop_complete_s - shown.stamps.captured_s)
    return np.array(waits[: len(waits) // 4 * 4]).reshape(-1, 4)


async def test_the_newest_is_shown_unless_a_microphone_is_live():
    waits = await waits_s(2.0)
    np.testing.assert_allclose(np.diff(waits), -0.04, atol=0.011)
    assert waits[:, -1].min() < 0.09  # 100 ms with the sound of a microphone


async def test_frames_fit_the_sound_of_a_live_microphone():
    waits = await waits_s(3.0, speech_of(4.0))
    # Two frames of look-ahead, and half a frame from its middle to its end.
    assert np.median(waits[-5:, -1]) == pytest.approx(0.1, abs=0.012)


@pytest.mark.parametrize("time_s", [float("nan"), float("inf"), -float("inf")])
async def test_times_that_are_none_are_refused_and_later_frames_are_read(time_s):
    camera = Camera()
    with pytest.raises(ConfigError, match="timestamp must be a time"):
        camera.input.push(FRAME, time_s)
    await camera.see(10, 1.0)
    assert camera.pipeline.reader.read_at_s == [1.0]
    camera.input.close()


async def test_a_camera_that_cannot_be_read_is_reported_and_tried_again_later():
    warned = []
    camera = Camera()
    camera.hub.listen(lambda event: warned.append(event.code))
    camera.pipeline.reader.fails = True
    await camera.see(10, 1.0)
    await camera.see(10, 1.04)
    assert camera.pipeline.reader.read_at_s == [1.0] and warned == ["camera-failed"]
    camera.pipeline.reader.fails = False
    await camera.see(10, 9.0)
    assert camera.pipeline.reader.read_at_s == [1.0, 9.0]
    assert camera.input.status is CameraStatus.FACE
    camera.input.close()
