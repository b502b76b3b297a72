"""The pulled playout: one clock, no waiting past a due time, no drift."""

import asyncio

import numpy as np
import pytest
from support import virtual_time
from support.fakes import FakeClock

from letstalk_rt.types import SAMPLES_PER_FRAME, AVFrame
from letstalk_server.session.playout import (
    CATCH_UP,
    HOLDS,
    MAX_QUEUED_FRAMES,
    SLOT_S,
    STALL_SLOTS,
    START_FRAMES,
    SlotPlayout,
)

STILL = np.full((6, 8, 3), 9, np.uint8)


def frame(index, level=0.0, epoch=0):
    rgb = np.full((6, 8, 3), 10 + index % 200, np.uint8)
    pcm = np.full(SAMPLES_PER_FRAME, level, np.float32)
    return AVFrame(rgb, pcm, index, 0, epoch, spoken=pcm.size, voiced=level > 0)


def playout_at(clock, **options):
    return SlotPlayout(STILL, clock=clock, sleep=clock.sleep, **options)


def shade(slot):
    return int(slot.rgb[0, 0, 0])


async def test_a_missing_frame_repeats_the_last_picture_in_silence():
    playout = playout_at(FakeClock())
    assert shade(playout.read_slot(0)) == 9  # the still, before anything came
    for index in range(START_FRAMES):
        await playout.put(frame(5 + index, level=0.5))
    assert [shade(playout.read_slot(1 + index)) for index in range(START_FRAMES)] == [15, 16, 17]
    missed = playout.read_slot(1 + START_FRAMES)
    assert shade(missed) == 17 and missed.repeated and not missed.pcm.any()
    assert playout.repeats == 2


async def test_the_first_frames_wait_for_a_reserve_but_not_for_ever():
    clock = FakeClock()
    playout = playout_at(clock)
    await playout.put(frame(0))
    shown = []
    for number in range(8):
        await playout.wait_until(number * SLOT_S)
        shown.append(shade(playout.read_slot(number)))
    assert shown == [9] * 5 + [10] * 3  # RESERVE_S are five slots
    playout = playout_at(FakeClock())
    for index in range(START_FRAMES):
        assert shade(playout.read_slot(index)) == 9
        await playout.put(frame(index))
    assert shade(playout.read_slot(START_FRAMES)) == 10


async def test_a_slot_asked_for_twice_is_the_same_and_late_questions_are_answered():
    playout = playout_at(FakeClock())
    for index in range(4):
        await playout.put(frame(index))
    first = [playout.read_slot(number) for number in range(4)]
    assert [playout.read_slot(number) for number in range(4)] == first
    playout.read_slot(500)
    assert playout.read_slot(0).number > 400  # history is bounded; the oldest known stands in


async def test_a_full_window_makes_the_engine_wait():
    playout = playout_at(FakeClock())
    for index in range(MAX_QUEUED_FRAMES):
        await playout.put(frame(index))
    waiting = asyncio.create_task(playout.put(frame(MAX_QUEUED_FRAMES)))
    await asyncio.sleep(0)
    assert not waiting.done()
    playout.read_slot(0)
    await waiting


async def test_an_interrupt_silences_what_waits_and_what_is_on_its_way():
    playout = playout_at(FakeClock())
    for index in range(MAX_QUEUED_FRAMES):
        await playout.put(frame(index, level=0.5))
    on_its_way = asyncio.create_task(playout.put(frame(50, level=0.5)))
    await asyncio.sleep(0)
    playout.silence(epoch=1)
    shown = [playout.read_slot(0)]
    await on_its_way
    shown += [playout.read_slot(number) for number in range(1, MAX_QUEUED_FRAMES + 1)]
    await playout.put(frame(60, level=0.5, epoch=1))
    shown.append(playout.read_slot(MAX_QUEUED_FRAMES + 1))
    assert not any(slot.repeated for slot in shown)  # the pictures lead over
    assert [slot.frame.epoch for slot in shown] == [1] * len(shown)
    assert not any(slot.pcm.any() for slot in shown[:-1]) and shown[-1].pcm.any()


class Show:
    """A playout whose frames come in windows of four, in virtual time."""

    def __init__(self, level=0.0, live=True):
        clock = asyncio.get_running_loop().time
        self.playout = SlotPlayout(STILL, is_live=lambda: live, clock=clock)
        self.level, self.index = level, 0
        self.wait_s = []
        """How long each shown frame has waited."""
        self._came_s = {}
        self._number = 0

    async def run(self, late_s):
        """Show as many windows as there are numbers, which say how late each comes."""
        showing = asyncio.create_task(self._show())
        start_s = self._now_s() - self.index * SLOT_S
        for late in late_s:
            due_s = start_s + self.index * SLOT_S + late
            await asyncio.sleep(max(0, due_s - self._now_s()))
            for _ in range(4):
                self._came_s[self.index] = self._now_s()
                await self.playout.put(frame(self.index, self.level))
                self.index += 1
        showing.cancel()
        await asyncio.wait([showing])
        return self

    async def _show(self):
        while True:
            await self.playout.wait_until(self._number * SLOT_S)
            slot = self.playout.read_slot(self._number)
            if slot.frame is not None:
                self.wait_s.append(self._now_s() - self._came_s[slot.frame.index])
            self._number += 1

    def _now_s(self):
        return asyncio.get_running_loop().time()


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_live_frames_soon_wait_no_longer_than_they_must(level):
    async def scene():
        show = await Show(level).run([0.2] + [0.0] * 200)
        assert min(show.wait_s[-100:]) < CATCH_UP.margin_s + 0.001
        assert (show.playout.skips > 0) == (level == 0.0), "speech is never cut"
        assert show.playout.repeats <= 5

    virtual_time.run(scene())


def test_frames_made_ahead_are_left_alone():
    async def scene():
        show = await Show(live=False).run([0.2] + [0.0] * 100)
        assert min(show.wait_s[-100:]) > 0.1
        assert show.playout.skips == 0

    virtual_time.run(scene())


def test_what_is_unsteady_waits_as_long_as_that_and_is_not_repeated():
    async def scene():
        late_s = [0.03 * (number % 5 == 0) for number in range(200)]
        show = await Show(0.5).run(late_s)
        settled = show.wait_s[-400:]
        assert show.playout.repeats <= 1
        assert max(settled) < 3 * SLOT_S + 0.03 + CATCH_UP.margin_s + 0.002
        assert min(settled) > 0

    virtual_time.run(scene())


def test_a_frame_that_is_a_little_late_stops_the_clock_and_a_missing_one_does_not():
    async def scene():
        show = await Show(0.5, live=False).run([0.0] * 10)
        playout, repeats = show.playout, show.playout.repeats
        await show.run([5 * SLOT_S + 0.02])  # a window, and the slot before the first frame
        assert playout.repeats == repeats and 0.015 < playout.held_s < 0.021
        moved_s = asyncio.get_running_loop().time() - playout.now()
        assert moved_s == pytest.approx(playout.held_s)
        await show.run([1.0])
        assert playout.held_s < 0.021 + HOLDS.max_s + 0.001 and playout.repeats > 20

    virtual_time.run(scene())


def test_who_stops_waiting_does_not_stop_the_clock_for_good():
    async def scene():
        playout = SlotPlayout(STILL, clock=asyncio.get_running_loop().time)
        playout.now()
        for index in range(START_FRAMES):
            await playout.put(frame(index))
        playout.read_slot(START_FRAMES - 1)
        waiting = asyncio.create_task(playout.wait_until(START_FRAMES * SLOT_S))
        await asyncio.sleep(START_FRAMES * SLOT_S + 0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        await playout.wait_until(2 * START_FRAMES * SLOT_S)
        assert playout.held_s == pytest.approx(0.01 + HOLDS.max_s)

    virtual_time.run(scene())


async def test_a_stall_is_told_once_and_slots_when_they_are_filled():
    slots, stalls = [], []
    playout = playout_at(
        FakeClock(), on_slot=slots.append, on_stall=lambda: stalls.append(len(slots))
    )
    number = 2 * STALL_SLOTS
    playout.read_slot(number - 1)
    assert not stalls, "a model that starts is not behind"
    for index in range(20):
        await playout.put(frame(index))
        playout.read_slot(number)
        playout.read_slot(number)
        number += 1
    playout.read_slot(number + 2 * STALL_SLOTS)
    assert [slot.number for slot in slots] == list(range(number + 2 * STALL_SLOTS + 1))
    waiting = START_FRAMES - 1  # frames
    assert stalls == [number + waiting + STALL_SLOTS - 1]
