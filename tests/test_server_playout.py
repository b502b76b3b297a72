"""The pulled playout: one clock, no waiting past a due time, no drift."""

import asyncio

import numpy as np
from fakes import FakeClock

from letstalk_rt.types import SAMPLES_PER_FRAME, AVFrame
from letstalk_server.playout import MAX_WAITING, STALL_SLOTS, PulledPlayout

STILL = np.full((6, 8, 3), 9, np.uint8)


def frame(index, level=0.0, epoch=0):
    rgb = np.full((6, 8, 3), 10 + index % 200, np.uint8)
    return AVFrame(rgb, np.full(SAMPLES_PER_FRAME, level, np.float32), index, 0, epoch)


def playout_at(clock, **options):
    return PulledPlayout(STILL, clock=clock, sleep=clock.sleep, **options)


def shade(slot):
    return int(slot.rgb[0, 0, 0])


async def test_a_missing_frame_repeats_the_last_picture_in_silence():
    playout = playout_at(FakeClock())
    assert shade(playout.slot(0)) == 9  # the still, before anything came
    await playout.put(frame(5, level=0.5))
    assert shade(playout.slot(1)) == 15
    missed = playout.slot(2)
    assert shade(missed) == 15 and missed.repeated and not missed.pcm.any()
    assert playout.repeats == 2


async def test_a_slot_asked_for_twice_is_the_same_and_late_questions_are_answered():
    playout = playout_at(FakeClock())
    for index in range(4):
        await playout.put(frame(index))
    first = [playout.slot(number) for number in range(4)]
    assert [playout.slot(number) for number in range(4)] == first
    playout.slot(500)
    assert playout.slot(0).number > 400  # history is bounded; the oldest known stands in


async def test_a_full_window_makes_the_engine_wait():
    playout = playout_at(FakeClock())
    for index in range(MAX_WAITING):
        await playout.put(frame(index))
    waiting = asyncio.create_task(playout.put(frame(MAX_WAITING)))
    await asyncio.sleep(0)
    assert not waiting.done()
    playout.slot(0)
    await waiting


async def test_an_interrupt_drops_what_waits_and_what_is_on_its_way():
    playout = playout_at(FakeClock())
    for index in range(MAX_WAITING):
        await playout.put(frame(index, level=0.5))
    on_its_way = asyncio.create_task(playout.put(frame(50, level=0.5)))
    await asyncio.sleep(0)
    playout.clear(epoch=1)
    await on_its_way
    await playout.put(frame(51, level=0.5))  # still of the old epoch
    await playout.put(frame(60, epoch=1))
    assert shade(playout.slot(0)) == 70
    assert playout.slot(1).repeated


async def test_frames_that_wait_for_nothing_are_left_out_in_silence_only():
    for level, skipped in ((0.5, False), (0.0, True)):
        playout = playout_at(FakeClock())
        index = 0
        for number in range(100):
            while playout._frames.qsize() < MAX_WAITING:
                await playout.put(frame(index, level))
                index += 1
            playout.slot(number)
        assert (playout.skips > 0) == skipped


async def test_speech_and_stalls_are_reported_once():
    said, stalls = [], []
    playout = playout_at(FakeClock(), on_speaking=said.append, on_stall=lambda: stalls.append(True))
    number = 0
    for level in [0.0] * 3 + [0.3] * 5 + [0.0] * 15:
        await playout.put(frame(number, level))
        playout.slot(number)
        number += 1
    assert said == [True, False]
    playout.slot(number + 2 * STALL_SLOTS)
    assert stalls == [True]
