"""Helpers for tests of live sessions: a screen that plays on time, a microphone, speech."""

import asyncio

import numpy as np

from letstalk_rt.session.playout import Playout
from letstalk_rt.session.session import AvatarSession
from support.fakes import FakePipeline, InlineWorker, TimedWorker, portrait
from support.sessions import RATE, until_end

STEP_S = 0.06


def session_of(pipeline=None, worker=None, idle=False, **options):
    worker = worker or InlineWorker(pipeline or FakePipeline())
    return AvatarSession(worker, portrait(), idle=idle, **options)


def live_session(pipeline=None, step_s=STEP_S, **options):
    """A session for a `Screen`, which reports what it plays."""
    worker = TimedWorker(pipeline or FakePipeline(), step_s)
    return session_of(worker=worker, idle=True, **{"playback": "reported", **options})


def speech_of(seconds, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 1, int(seconds * RATE)).astype(np.float32)


class Screen:
    """Plays a session on time and notes what was shown when."""

    def __init__(self, session):
        self.frames, self.times_s = [], []
        self.clock = asyncio.get_running_loop().time
        self._playout = Playout(
            self._show,
            played=session.notify_played,
            epoch=lambda: session.epoch,
            metrics=session.metrics,
            clock=self.clock,
        )
        self._task = asyncio.create_task(self._playout.run(session))

    def _show(self, frame):
        self.frames.append(frame)
        self.times_s.append(self.clock())

    async def close(self):
        self._task.cancel()
        await asyncio.wait([self._task])


async def microphone(session, pcm, chunk=320, ppm=0):
    """Push as a microphone does whose clock is `ppm` too fast."""
    loop = asyncio.get_running_loop()
    started_s, pace = loop.time(), 1 / (RATE * (1 + ppm * 1e-6))
    for start in range(0, pcm.size, chunk):
        await asyncio.sleep(started_s + (start + chunk) * pace - loop.time())
        await session.push_audio(pcm[start : start + chunk], RATE)


async def record_all(session, pcm):
    async def say():
        await session.push_audio(pcm, RATE)
        await session.end_segment()

    frames, _ = await asyncio.gather(until_end(session), say())
    return frames


def event_types(events):
    return [event.type for event in events]
