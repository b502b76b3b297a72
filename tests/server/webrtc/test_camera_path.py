"""A peer's camera: its frames arrive if it has asked for that, with the times of their capture."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from aiortc.mediastreams import VideoStreamTrack
from av import VideoFrame
from support.hostile_media import VP8_BOMB, HostileCamera, encoded
from support.processes import needs_proc, processes_named
from support.transport_stage import staged

from letstalk_rt.inference.camera_decoder import MOST_PX, as_rgb
from letstalk_server.session.transport import PeerRole
from letstalk_server.webrtc.camera_path import CaptureClock


class Webcam(VideoStreamTrack):
    """A camera whose picture gets brighter."""

    def __init__(self):
        super().__init__()
        self.shown = 0

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        self.shown += 1
        level = 40 + 2 * min(self.shown, 80)
        frame = VideoFrame.from_ndarray(np.full((240, 320, 3), level, np.uint8), format="rgb24")
        frame.pts, frame.time_base = pts, time_base
        return frame


@pytest.mark.parametrize("role", [PeerRole.TALKER, PeerRole.PUBLISHER])
async def test_frames_arrive_in_order_with_their_times(role):
    frames = []
    async with staged() as stage:
        guest = stage.guest(camera=Webcam())
        enough = asyncio.Event()

        def on_video(rgb, captured_s):
            frames.append((rgb, captured_s))
            if len(frames) == 20:
                enough.set()

        await stage.connect(guest, role, video=on_video, has_camera=True)
        await asyncio.wait_for(enough.wait(), 30)
        now_s = asyncio.get_running_loop().time()
    assert all(rgb.shape == (240, 320, 3) and rgb.dtype == np.uint8 for rgb, _ in frames)
    levels = [float(rgb.mean()) for rgb, _ in frames]
    assert levels == sorted(levels) and levels[-1] > levels[0] + 10
    times_s = np.array([captured_s for _, captured_s in frames])
    assert (np.diff(times_s) > 0).all() and times_s[-1] <= now_s


@pytest.mark.parametrize(
    "role, answered", [(PeerRole.TALKER, "sendonly"), (PeerRole.PUBLISHER, "inactive")]
)
async def test_a_camera_that_nobody_asked_for_is_declined(role, answered):
    frames = []
    async with staged() as stage:
        guest = stage.guest(camera=Webcam())
        await stage.connect(guest, role, video=lambda *frame: frames.append(frame))
        await asyncio.sleep(0.5)
    video = guest.answer[guest.answer.index("m=video") :]
    assert f"a={answered}" in video
    assert frames == []


class StoppedWebcam(Webcam):
    """A camera that stops after some frames."""

    async def recv(self):
        if self.shown == 5:
            await asyncio.Event().wait()
        return await super().recv()


async def test_a_frame_does_not_wait_for_the_next_one():
    last = asyncio.Event()
    async with staged() as stage:
        webcam = StoppedWebcam()
        guest = stage.guest(camera=webcam)

        def on_video(rgb, captured_s):
            if rgb.mean() > 47:  # the fifth is coded as 48, the fourth as 46
                last.set()

        await stage.connect(guest, PeerRole.TALKER, video=on_video, has_camera=True)
        await asyncio.wait_for(last.wait(), 30)
    assert webcam.shown == 5


async def test_a_camera_may_join_without_a_track_and_later_leave():
    async with staged() as stage:
        guest = stage.guest()
        peer = await stage.connect(guest, PeerRole.TALKER, has_camera=True)
        await guest.until(lambda: len(guest.video) > 2)
        await peer.aclose()


def test_frames_that_arrive_late_were_captured_at_a_steady_rate():
    clock, rng = CaptureClock(), np.random.default_rng(0)
    stamps_s = np.arange(200) / 25
    late_s = rng.exponential(0.03, 200)
    captured_s = np.array(
        [clock.captured_s(s, 100 + s + d) for s, d in zip(stamps_s, late_s, strict=True)]
    )
    np.testing.assert_allclose(np.diff(captured_s)[100:], 0.04, atol=0.005)
    assert (captured_s <= 100 + stamps_s + late_s).all()


def test_large_frames_are_made_smaller():
    large = VideoFrame.from_ndarray(np.zeros((720, 1280, 3), np.uint8), format="rgb24")
    assert as_rgb(large).shape == (270, MOST_PX, 3)


def peak_mb(process=Path("/proc/self")):
    """Return the most memory that a process has had; see `forget_peak`."""
    return int((process / "status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


@needs_proc
@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_a_frame_that_claims_to_be_huge_takes_no_memory(codec):
    if codec == "VP8":
        bomb, frames = VP8_BOMB, encoded("libvpx", 320, 240, 3)
    else:
        [bomb], frames = encoded("libx264", 8192, 4320), encoded("libx264", 320, 240, 3)
    shown = asyncio.Event()
    async with staged() as stage:
        guest = stage.guest(camera=HostileCamera(bomb, frames), codec=codec)
        forget_peak()
        before_mb = peak_mb()

        def on_video(rgb, captured_s):
            assert rgb.shape == (240, 320, 3)
            shown.set()

        await stage.connect(guest, PeerRole.TALKER, video=on_video, has_camera=True)
        await asyncio.wait_for(shown.wait(), 30)
        assert peak_mb() < before_mb + 100
        [decoder] = processes_named("camera_decoder")
        assert peak_mb(decoder) < 200
    assert not processes_named("camera_decoder"), "it ends with the connection"


@needs_proc
async def test_a_decoder_gives_way_to_the_process_of_the_sessions():
    """Linux shares processors between sessions first: in another one, niceness would not count."""
    shown = asyncio.Event()
    async with staged() as stage:
        await stage.connect(
            stage.guest(camera=Webcam()),
            PeerRole.TALKER,
            video=lambda rgb, captured_s: shown.set(),
            has_camera=True,
        )
        await asyncio.wait_for(shown.wait(), 30)
        [decoder] = (int(process.name) for process in processes_named("camera_decoder"))
        assert os.getsid(decoder) == os.getsid(0)
        assert os.getpgid(decoder) == decoder != os.getpgid(0), "Ctrl-C is not for it"
        niceness = os.getpriority(os.PRIO_PROCESS, decoder)
        assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


@needs_proc
async def test_a_decoder_that_dies_is_replaced():
    count, lost = 0, []
    async with staged() as stage:
        reached = asyncio.Event()

        def on_video(rgb, captured_s):
            nonlocal count
            count += 1
            if count == 3:
                for process in processes_named("camera_decoder"):
                    os.kill(int(process.name), signal.SIGKILL)
                    lost.append(process)
            if count == 10:
                reached.set()

        await stage.connect(
            stage.guest(camera=Webcam()), PeerRole.TALKER, video=on_video, has_camera=True
        )
        await asyncio.wait_for(reached.wait(), 60)
    assert len(lost) == 1
