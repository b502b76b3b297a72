"""Interrupts of sessions without idling: what is dropped, and what goes on."""

import asyncio

import numpy as np
import pytest
from support.fakes import (
    LOOKAHEAD,
    FakePipeline,
    TimedWorker,
)
from support.sessions import (
    RATE,
    check_frames,
    joined_pcm,
    offline,
    record,
    settle,
    speech,
    steady,
)
from support.virtual_time import run

from letstalk_rt.types import Interrupted, SegmentEnd


def test_an_interrupt_drops_old_speech_and_keeps_the_count():
    async def body():
        pipeline = FakePipeline()
        async with offline(pipeline) as session:
            talk = asyncio.create_task(session.push_audio(steady(10, 0.25), RATE))
            shown = [await anext(session) for _ in range(5)]
            result = session.interrupt()
            await talk
            assert result == Interrupted(played_ms=3 * 40, dropped_ms=10 * 160 - 3 * 40)
            assert session.interrupt() == Interrupted(played_ms=0, dropped_ms=0)
            assert session.metrics.drops == 3
            assert session.epoch == 2
            new = await record(session, steady(1, 0.5))
        assert [frame.index for frame in shown + new] == list(range(5 + LOOKAHEAD + 4))
        assert {(frame.segment_id, frame.epoch) for frame in new} == {(1, 2)}
        assert not joined_pcm(new[:LOOKAHEAD]).any(), "old sound after an interrupt"
        np.testing.assert_array_equal(joined_pcm(new[LOOKAHEAD:]), steady(1, 0.5))
        check_frames(new)
        assert pipeline.states[0].interrupts == 1

    run(body())


def test_frames_of_a_step_that_ran_during_an_interrupt_are_dropped():
    async def body():
        pipeline = FakePipeline()
        async with offline(worker=TimedWorker(pipeline, 0.1)) as session:
            await session.push_audio(steady(1, 0.25), RATE)
            await asyncio.sleep(0.15)  # the state is made, the step runs
            assert session.interrupt() == Interrupted(played_ms=0, dropped_ms=160)
            await asyncio.sleep(1)
            assert pipeline.steps == 1
            assert session.metrics.drops == 4
            new = await record(session, steady(1, 0.5))
        assert set(joined_pcm(new)) == {0, 0.5}
        assert new[0].index == 0

    run(body())


def test_an_interrupt_while_the_model_forgets_is_obeyed_too():
    async def body():
        pipeline = FakePipeline()
        async with offline(worker=TimedWorker(pipeline, 0.1)) as session:
            await asyncio.sleep(0.15)
            session.interrupt()
            await session.push_audio(steady(1, 0.25), RATE)
            await asyncio.sleep(0.05)  # pipeline.interrupt runs
            session.interrupt()
            new = await record(session, steady(1, 0.5))
        assert set(joined_pcm(new)) == {0, 0.5}
        check_frames(new)

    run(body())


def test_dropped_counts_frames_hops_the_rest_and_callers_that_wait():
    async def body():
        async with offline(max_hops=1) as session:
            callers = [
                asyncio.create_task(session.push_audio(steady(3, 0.25), RATE)),
                asyncio.create_task(session.push_audio(speech(2 * 48_000) * 0.1, 48_000)),
            ]
            await settle()
            held_ms = 13  # what the resampler holds is not counted
            assert session.interrupt().dropped_ms == pytest.approx(3 * 160 + 2000, abs=held_ms)
            assert session.interrupt() == Interrupted(played_ms=0, dropped_ms=0)
            await asyncio.gather(*callers)
            assert session.backlog_ms == 0
            await session.end_segment()
            assert await anext(session) == SegmentEnd(1, epoch=2, interrupted=True)
            assert await anext(session) == SegmentEnd(1, epoch=2)

    run(body())


def test_an_interrupt_forgets_what_the_resampler_holds():
    async def body():
        async with offline() as session:
            await session.push_audio(np.full(480, 0.9, np.float32), 48_000)
            session.interrupt()
            new = await record(session, np.zeros(4800, np.float32), rate=48_000)
        assert not joined_pcm(new).any()

    run(body())


def test_an_interrupt_while_the_rate_changes_leaves_no_old_sound():
    async def body():
        async with offline(max_hops=1) as session:
            await session.push_audio(np.ones(24_000, np.float32), 48_000)
            await settle()
            change = asyncio.create_task(session.push_audio(np.ones(24_000, np.float32), 24_000))
            await settle()
            assert not change.done()
            session.interrupt()
            await change
            new = await record(session, np.zeros(2400, np.float32), rate=24_000)
        assert not joined_pcm(new).any()

    run(body())


def test_played_begins_anew_with_each_segment():
    async def body():
        async with offline() as session:
            await record(session, steady(1, 0.5))
            assert session.interrupt() == Interrupted(played_ms=0, dropped_ms=0)
            await session.push_audio(steady(1, 0.5), RATE)
            assert await anext(session) == SegmentEnd(1, epoch=1, interrupted=True)
            for _ in range(3):
                await anext(session)
            assert session.interrupt() == Interrupted(played_ms=40, dropped_ms=120)

    run(body())


def test_an_end_that_waited_through_an_interrupt_is_dropped():
    async def body():
        async with offline(max_hops=1) as session:
            talk = asyncio.create_task(session.push_audio(steady(20, 0.25), RATE))
            await settle()
            end = asyncio.create_task(session.end_segment())
            await settle()
            session.interrupt()
            await asyncio.gather(talk, end)
            await session.end_segment()
            assert await anext(session) == SegmentEnd(0, epoch=1, interrupted=True)
            assert await anext(session) == SegmentEnd(1, epoch=1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(session)

    run(body())


def test_an_interrupt_ends_the_loop_of_a_reader_even_before_there_is_speech():
    async def body():
        async with offline() as session:
            waiting = asyncio.create_task(anext(session))
            await settle()
            session.interrupt()
            assert await waiting == SegmentEnd(0, epoch=1, interrupted=True)

    run(body())


def test_segments_that_wait_end_with_the_one_that_was_spoken():
    async def body():
        async with offline() as session:
            for level in (0.1, 0.2):
                await session.push_audio(steady(1, level), RATE)
                await session.end_segment()
            shown = [await anext(session) for _ in range(4)]
            assert {frame.segment_id for frame in shown} == {0}
            session.interrupt()
            assert await anext(session) == SegmentEnd(0, epoch=1, interrupted=True)
            frames = await record(session, steady(1, 0.5))
            assert {frame.segment_id for frame in frames} == {2}

    run(body())


def test_interrupts_that_nobody_reads_take_no_memory():
    async def body():
        async with offline() as session:
            for _ in range(100):
                session.interrupt()
            assert await anext(session) == SegmentEnd(0, epoch=100, interrupted=True)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(session)

    run(body())
