"""The runner of the engine session: when the avatar is moved live."""

import asyncio
from types import SimpleNamespace

import numpy as np

from letstalk_rt.types import Portrait
from letstalk_server.session.avatar_runner import FILMED_S, AvatarRunner
from letstalk_server.session.connection import ServedSessionOptions

RGB = np.zeros((64, 64, 3), np.uint8)


class FilmedSession:
    """An engine session that takes frames of a camera and makes none."""

    closed = False

    def __init__(self):
        self.filmed = 0

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        self.closed = True

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.Event().wait()

    def push_video(self, rgb, captured_s):
        self.filmed += 1


async def test_a_camera_makes_a_session_live_while_its_frames_come():
    session = FilmedSession()
    avatar = SimpleNamespace(session=lambda **options: session)
    service = SimpleNamespace(
        avatar=lambda entry: avatar, recovery_s=1.0, degradation_preference="balanced"
    )
    runner = AvatarRunner(
        service,
        SimpleNamespace(portrait=Portrait(RGB, RGB, (0.0, 0.0, 64.0))),
        ServedSessionOptions,
        has_badge=False,
        is_live=lambda: False,
        on_open=lambda session: None,
        on_slot=lambda slot: None,
        on_stall=lambda: None,
    )
    running = asyncio.create_task(runner.run())
    await runner.opened()
    assert not runner.is_filmed
    runner.push_video(RGB, 0.0)
    assert runner.is_filmed and session.filmed == 1
    await asyncio.sleep(FILMED_S + 0.1)
    assert not runner.is_filmed
    running.cancel()
    await asyncio.wait([running])
