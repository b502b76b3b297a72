"""Helpers for tests of sessions without idling: speech, segments and checks of frames."""

import asyncio

import numpy as np

from letstalk_rt.session.avatar import AvatarSession
from letstalk_rt.types import SegmentEnd
from support.fakes import (
    FRAME,
    HOP,
    LOOKAHEAD,
    FakePipeline,
    InlineWorker,
    paint,
    portrait,
)

RATE = 16_000
DELAY = LOOKAHEAD * FRAME


def speech(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)


def steady(hops, level):
    return np.full(hops * HOP, level, np.float32)


def offline(pipeline=None, worker=None, **options):
    worker = worker or InlineWorker(pipeline or FakePipeline())
    return AvatarSession(worker, portrait(), idle=False, **options)


async def until_end(session):
    frames = []
    async for item in session:
        if isinstance(item, SegmentEnd):
            if not item.interrupted:
                return frames
        else:
            frames.append(item)
    return frames


async def say(session, pcm, chunk=999, rate=RATE):
    for start in range(0, len(pcm), chunk):
        await session.push_audio(pcm[start : start + chunk], rate)
    await session.end_segment()


async def record(session, pcm, chunk=999, rate=RATE):
    """Return the frames of one segment, read while it is pushed."""
    frames, _ = await asyncio.gather(until_end(session), say(session, pcm, chunk, rate))
    return frames


async def settle():
    """Let every task run until it must wait."""
    await asyncio.sleep(1)


def joined_pcm(frames):
    return np.concatenate([frame.pcm for frame in frames])


def check_frames(frames, face=0):
    for frame in frames:
        np.testing.assert_array_equal(frame.rgb, paint(frame.pcm, face))
