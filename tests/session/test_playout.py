import asyncio

import numpy as np
import pytest
from support.fakes import FakeClock
from support.virtual_time import run

from letstalk_rt.metrics import Metrics
from letstalk_rt.session.pacing import LatePolicy, PlayoutClock
from letstalk_rt.session.playout import Playout
from letstalk_rt.types import AVFrame, SegmentEnd


def frame(index, epoch=0):
    rgb, pcm = np.zeros((1, 1, 3), np.uint8), np.ones(4, np.float32)
    return AVFrame(rgb, pcm, index, 0, epoch, spoken=4, voiced=True)


async def at(times_s):
    """Frames that come at these times of the running loop."""
    loop = asyncio.get_running_loop()
    for index, time_s in enumerate(times_s):
        await asyncio.sleep(time_s - loop.time())
        yield frame(index)


class Stage:
    """A sink that notes what it is given and when."""

    def __init__(self, **options):
        self.clock = asyncio.get_running_loop().time
        self.shown, self.repeated, self.log, self.frames = [], [], [], []
        self.metrics = Metrics()
        self.playout = Playout(
            self.show, repeat=self.repeat, metrics=self.metrics, clock=self.clock, **options
        )

    def show(self, frame):
        self.shown.append(round(self.clock(), 6))
        self.log.append(frame.index)
        self.frames.append(frame)

    def repeat(self, frame):
        self.repeated.append(round(self.clock(), 6))
        self.log.append(f"again {frame.index}")


def play(times_s, **options):
    stages = []

    async def body():
        stages.append(Stage(**options))
        await stages[0].playout.run(at(times_s))

    run(body())
    return stages[0]


def test_frames_that_come_at_once_are_shown_evenly():
    stage = play([5.0] * 5)
    assert stage.shown == [5.0, 5.04, 5.08, 5.12, 5.16]
    assert stage.repeated == []


def test_clock_and_sleep_are_the_callers():
    async def items():
        for index in range(4):
            yield frame(index)

    async def body():
        clock, shown = FakeClock(), []
        playout = Playout(lambda _: shown.append(clock.now_s), clock=clock, sleep=clock.sleep)
        await playout.run(items())
        assert shown == pytest.approx([0, 0.04, 0.08, 0.12])

    run(body())


def test_a_late_frame_is_bridged_by_the_last_picture_and_the_gap_is_closed():
    stage = play([0, 0, 0.13, 0.13, 0.13, 0.13])
    assert stage.shown == [0, 0.04, 0.13, 0.13, 0.16, 0.2]
    assert stage.repeated == [0.085, 0.125]
    assert stage.log == [0, 1, "again 1", "again 1", 2, 3, 4, 5]
    assert (stage.metrics.repeats, stage.metrics.stalls) == (2, 0)


def test_a_frame_that_is_hardly_late_is_shown_and_nothing_is_repeated():
    stage = play([0, 0.043, 0.083, 0.123])
    assert stage.shown == [0, 0.043, 0.083, 0.123]
    assert stage.repeated == []


def test_a_long_stall_moves_the_clock_and_is_counted():
    stage = play([0, 1.03, 1.03, 1.03], playout_clock=PlayoutClock(late=LatePolicy(max_lag_s=0.2)))
    assert stage.shown == [0, 1.03, 1.07, 1.11]
    assert stage.repeated == pytest.approx([0.04 * turn + 0.005 for turn in range(1, 26)])
    assert (stage.metrics.repeats, stage.metrics.stalls) == (25, 1)
    assert stage.playout.playout_clock.moved_s == pytest.approx(0.99)


def test_while_a_debt_is_open_pictures_are_not_repeated_in_a_burst():
    stage = play([0, 0.19, 0.20, 0.21, 0.22, 0.23, 0.24])
    assert stage.shown == [0, 0.19, 0.20, 0.21, 0.22, 0.23, 0.24]
    assert stage.repeated == [0.045, 0.085, 0.125, 0.165]


def test_nothing_is_repeated_before_the_first_frame():
    stage = play([3.0, 3.0])
    assert stage.shown == [3.0, 3.04]
    assert stage.repeated == []


def test_the_end_of_a_segment_is_told_after_its_last_frame_was_shown():
    async def items():
        yield frame(0)
        yield frame(1)
        yield SegmentEnd(0, 0)
        yield frame(2)

    async def body():
        stage = Stage(end_segment=lambda end: stage.log.append(end))
        await stage.playout.run(items())
        assert stage.log == [0, 1, SegmentEnd(0, 0), 2]

    run(body())


def test_each_frame_is_reported_once_it_was_shown_and_repeats_are_not():
    async def body():
        stage = Stage(played=lambda frame: stage.log.append(f"played {frame.index}"))
        await stage.playout.run(at([0, 0.1]))
        assert stage.log == [0, "played 0", "again 0", "again 0", 1, "played 1"]

    run(body())


def test_a_sink_may_ignore_repeats_and_ends():
    async def items():
        yield frame(0)
        yield SegmentEnd(0, 0)
        await asyncio.sleep(1)
        yield frame(1)

    async def body():
        shown = []
        loop = asyncio.get_running_loop()
        await Playout(lambda item: shown.append(item.index), clock=loop.time).run(items())
        assert shown == [0, 1]

    run(body())


def test_an_interrupt_reaches_the_frame_that_waits_for_its_turn():
    async def items():
        yield frame(0, epoch=0)
        yield frame(1, epoch=0)
        yield frame(2, epoch=1)

    async def body():
        epoch = [0]
        stage = Stage(epoch=lambda: epoch[0])
        playing = asyncio.create_task(stage.playout.run(items()))
        await asyncio.sleep(0.02)
        epoch[0] = 1
        await playing
        assert stage.log == [0, 1, 2]
        assert stage.shown == [0, 0.04, 0.08]
        assert [shown.pcm.any() for shown in stage.frames] == [True, False, True]
        assert [shown.epoch for shown in stage.frames] == [0, 1, 1]
        assert [shown.spoken for shown in stage.frames] == [4, 0, 4]

    run(body())


def test_what_the_session_raises_is_raised_to_the_player():
    async def items():
        yield frame(0)
        await asyncio.sleep(0.1)
        raise RuntimeError("gone")

    async def body():
        stage = Stage()
        with pytest.raises(RuntimeError, match="gone"):
            await stage.playout.run(items())
        assert stage.shown == [0]

    run(body())


@pytest.mark.parametrize("when_s", [0.02, 0.5], ids=["frame-waits", "bridging"])
def test_a_cancelled_player_leaves_nothing_behind(when_s):
    async def items():
        yield frame(0)
        yield frame(1)
        await asyncio.sleep(1000)

    async def body():
        playing = asyncio.create_task(Stage().playout.run(items()))
        await asyncio.sleep(when_s)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing

    run(body())
