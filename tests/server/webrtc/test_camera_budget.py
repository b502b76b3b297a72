"""A camera's budget: what an honest one sends is decoded, and one that sends more is held to it."""

import asyncio

import pytest
from support.fakes import FakeClock
from support.hostile_media import HostileCamera, encoded
from support.transport_stage import staged

from letstalk_rt.inference.camera_decoder import MOST_PIXELS
from letstalk_server.session.transport import CameraTrouble, PeerRole
from letstalk_server.webrtc import camera_budget
from letstalk_server.webrtc.camera_budget import (
    BURST_S,
    CAMERA_PIXELS_PER_S,
    CORE_PIXELS_PER_S,
    KEY_FRAME_S,
    LEAST_PIXELS,
    MOST_DEBT_S,
    TELL_S,
    CameraGate,
    SharedBudget,
    is_key_frame,
)

KEY, DELTA = b"\x10key", b"\x11delta"
FULL_HD, HD = 1920 * 1080, 1280 * 720


class Camera:
    """A camera in simulated time, whose frames are decoded at once if the gate admits them.

    Args:
        shared: the budget of all cameras.
        pixels: of each frame.
        fps: frames per second.
        is_polite: whether it answers a request for a key frame with one.
    """

    def __init__(self, shared, pixels, fps, is_polite=True):
        self.pixels, self.fps, self.is_polite = pixels, fps, is_polite
        self.sent, self.decoded, self.asked, self.told = 0, [], [], []
        self._clock = shared.clock
        self._wants_key = True
        self.gate = CameraGate(shared, self._ask, self._tell)

    def _ask(self):
        self.asked.append(self._clock())
        self._wants_key = self.is_polite

    def _tell(self, trouble):
        self.told.append((self._clock(), trouble))

    def send_due(self):
        """Send the frames that are due by now."""
        while self.sent / self.fps <= self._clock():
            data, self._wants_key = KEY if self._wants_key else DELTA, False
            self.sent += 1
            if self.gate.admits("VP8", data):
                self.gate.note_decoded(self.pixels, 1)
                self.decoded.append((self._clock(), data))

    def decoded_per_s(self, seconds):
        return len(self.decoded) * self.pixels / seconds


def play(cameras, clock, seconds, step_s=0.01):
    for _ in range(round(seconds / step_s)):
        for camera in cameras:
            camera.send_due()
        clock.now_s += step_s


def budget(per_s=None, cores=2):
    clock = FakeClock()
    per_s = cores * CORE_PIXELS_PER_S if per_s is None else per_s
    return SharedBudget(per_s, clock), clock


@pytest.mark.parametrize("pixels, fps", [(FULL_HD, 30), (HD, 30), (HD, 60), (480 * 360, 25)])
def test_four_webcams_on_two_cores_are_decoded_as_a_whole(pixels, fps):
    shared, clock = budget()
    cameras = [Camera(shared, pixels, fps) for _ in range(4)]
    play(cameras, clock, 60)
    for camera in cameras:
        assert len(camera.decoded) == camera.sent >= 59 * fps
        assert camera.told == camera.asked == []


def test_frames_that_arrive_together_after_an_outage_are_decoded():
    shared, clock = budget()
    camera = Camera(shared, FULL_HD, 30)
    play([camera], clock, 10)
    clock.now_s += 0.9  # the network was gone, and brings all that was sent meanwhile
    play([camera], clock, 10)
    assert len(camera.decoded) == camera.sent


@pytest.mark.parametrize("is_polite", [True, False])
def test_a_camera_that_sends_too_much_is_held_to_its_budget(is_polite):
    shared, clock = budget(cores=64)
    camera = Camera(shared, MOST_PIXELS, 120, is_polite)
    play([camera], clock, 60)
    allowed = CAMERA_PIXELS_PER_S * (60 + BURST_S)
    spent = len(camera.decoded) * MOST_PIXELS
    assert spent <= allowed + MOST_PIXELS
    if is_polite:
        assert spent > 0.9 * CAMERA_PIXELS_PER_S * 60, "what it may send is decoded"
        assert (len(camera.told), camera.told[0][1]) == (6, CameraTrouble.TOO_MUCH)
    gaps = [later - at for at, later in zip(camera.asked, camera.asked[1:], strict=False)]
    assert gaps and min(gaps) >= KEY_FRAME_S


def test_after_frames_that_were_left_out_comes_a_key_frame():
    shared, clock = budget(cores=64)
    camera = Camera(shared, MOST_PIXELS, 90)
    play([camera], clock, 30)
    times_s = [at_s for at_s, _ in camera.decoded]
    after_gaps = [
        data
        for (_, data), before_s, at_s in zip(camera.decoded[1:], times_s, times_s[1:], strict=False)
        if at_s - before_s > 0.1
    ]
    assert len(after_gaps) > 5 and set(after_gaps) == {KEY}


def test_tiny_frames_are_counted_as_if_they_were_larger():
    shared, clock = budget(cores=64)
    camera = Camera(shared, 16 * 16, 2000)
    play([camera], clock, 10)
    assert len(camera.decoded) <= CAMERA_PIXELS_PER_S * (10 + BURST_S) / LEAST_PIXELS + 1


def test_many_cameras_that_send_much_leave_a_webcam_what_it_needs():
    shared, clock = budget()
    floods = [Camera(shared, MOST_PIXELS, 120) for _ in range(8)]
    honest = Camera(shared, 640 * 480, 30)
    play([*floods, honest], clock, 60)
    assert len(honest.decoded) == honest.sent and honest.told == []
    total = sum(camera.decoded_per_s(60) for camera in [*floods, honest])
    assert total <= 2 * CORE_PIXELS_PER_S * 1.1
    assert all(camera.told for camera in floods)


def test_who_has_left_has_no_share():
    shared, clock = budget(per_s=4 * FULL_HD * 30)
    play([Camera(shared, HD, 30) for _ in range(50)], clock, 1)
    clock.now_s += camera_budget.ACTIVE_S
    camera = Camera(shared, FULL_HD, 30)
    camera.sent = round(clock() * 30)
    play([camera], clock, 20)
    assert camera.told == []


def test_frames_that_are_too_large_are_told_again_and_hardly_asked_for():
    shared, clock = budget()
    camera = Camera(shared, HD, 25)
    camera.gate.note_too_large()
    camera._wants_key = camera.is_polite = False
    play([camera], clock, 3 * TELL_S)
    assert [trouble for _, trouble in camera.told] == [CameraTrouble.TOO_LARGE] * 3
    assert camera.decoded == [] and 3 <= len(camera.asked) <= 6
    camera._wants_key = True  # it is smaller now
    play([camera], clock, 1)
    assert len(camera.decoded) > 20


def test_key_frames_of_both_codecs_are_found():
    for codec, name in (("VP8", "libvpx"), ("H264", "libx264")):
        frames = encoded(name, 64, 48, 5)
        assert [is_key_frame(codec, data) for data in frames] == [True] + [False] * 4
    assert not is_key_frame("VP8", b"") and not is_key_frame("H264", b"\0\0\1")


# With a real peer


def small_frames(count):
    return encoded("libvpx", 320, 240, count)


async def test_a_peer_that_sends_too_much_is_told_and_goes_on_with_a_key_frame():
    shown, told, changed = [], [], asyncio.Event()
    clock = FakeClock()  # no time passes, so that the budget is what it holds at first
    frames = small_frames(10)
    camera = HostileCamera(frames[0], frames * 400)  # each tenth is a key frame

    def on_video(rgb, captured_s):
        shown.append(captured_s)
        changed.set()

    def on_trouble(trouble):
        told.append(trouble)
        changed.set()

    async def until(wanted):
        async with asyncio.timeout(120):
            while not wanted():
                changed.clear()
                await changed.wait()

    async with staged(cameras=SharedBudget(10 * LEAST_PIXELS, clock)) as stage:
        handlers = {"video": on_video, "trouble": on_trouble, "has_camera": True}
        await stage.connect(stage.guest(camera=camera), PeerRole.TALKER, **handlers)
        await until(lambda: told)
        assert told == [CameraTrouble.TOO_MUCH]
        before = len(shown)
        assert before > 0, "what it holds at first"
        clock.now_s += BURST_S + MOST_DEBT_S
        await until(lambda: len(shown) > before)


@pytest.mark.parametrize("codec, name", [("VP8", "libvpx"), ("H264", "libx264")])
async def test_a_peer_whose_frames_are_too_large_is_told_and_shown_when_they_are_smaller(
    codec, name
):
    [large], frames = encoded(name, 2560, 1440), encoded(name, 320, 240, 3)
    camera, shown, told = HostileCamera(large, [large] * 4000), asyncio.Event(), []

    def on_video(rgb, captured_s):
        assert rgb.shape == (240, 320, 3)
        shown.set()

    def on_trouble(trouble):
        told.append(trouble)
        camera.go_on_with(frames * 100)

    async with staged() as stage:
        guest = stage.guest(camera=camera, codec=codec)
        handlers = {"video": on_video, "trouble": on_trouble, "has_camera": True}
        await stage.connect(guest, PeerRole.TALKER, **handlers)
        await asyncio.wait_for(shown.wait(), 120)
    assert set(told) == {CameraTrouble.TOO_LARGE}
