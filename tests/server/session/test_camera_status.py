"""Who may speak is told what the camera sees, once for each change; who watches is not."""

import asyncio
import json
import time

import numpy as np
from support.hostile_media import HostileCamera, encoded
from support.server_fakes import Peer, WatchingPainter, serving

from letstalk_server.protocol.client_messages import ConnectionConfig
from letstalk_server.session.connection import ConnectionKind
from letstalk_server.session.session import WATCH_INTERVAL_S
from letstalk_server.webrtc import camera_budget


class Listener:
    """A connection that keeps the messages that it gets."""

    kind, config, video_bitrate = ConnectionKind.PLAY, ConnectionConfig(), 0

    def __init__(self, may_speak):
        self.id, self.may_speak = f"listener {may_speak}", may_speak
        self.messages = []

    def send(self, text):
        self.messages.append(json.loads(text))

    def seen(self):
        return [each["status"] for each in self.messages if each["type"] == "camera.status"]

    def is_lost(self, now_s):
        return False

    async def aclose(self, error=None):
        pass


async def film(session, level, seconds):
    """Push frames of one brightness."""
    for _ in range(int(seconds / 0.05)):
        session.push_video(np.full((48, 64, 3), level, np.uint8), time.monotonic())
        await asyncio.sleep(0.05)


async def test_changes_are_told_to_those_who_may_speak():
    async with serving(pipeline=WatchingPainter()) as (app, client):
        await client.post("/v1/sessions")
        (session,) = app.state.sessions
        speaker, viewer = Listener(True), Listener(False)
        for connection in (speaker, viewer):
            await session.attach(connection, lambda data: True)
        await session._runner.opened()
        for level in (0, 0, 200, 0):
            await film(session, level, 2 * WATCH_INTERVAL_S)
        assert speaker.seen() == ["no-face", "face", "no-face"]
        await asyncio.sleep(2 * WATCH_INTERVAL_S + 0.2)  # the camera is off
        await film(session, 0, 2 * WATCH_INTERVAL_S)
        assert speaker.seen()[3:] == ["no-face"], "a camera that is on again is told again"
        assert viewer.seen() == []


async def test_who_sends_frames_that_are_too_large_is_told_and_so_is_who_else_may_speak(
    monkeypatch,
):
    monkeypatch.setattr(camera_budget, "TELL_S", 0.2)
    [large] = encoded("libvpx", 2560, 1440)
    async with serving(pipeline=WatchingPainter()) as (app, client):
        peer = Peer(camera=HostileCamera(large, [large] * 900))
        await peer.join(client, camera=True)
        (session,) = app.state.sessions
        speaker, viewer = Listener(True), Listener(False)
        for connection in (speaker, viewer):
            await session.attach(connection, lambda data: True)
        await peer.until(lambda: peer.said("session.warning"))
        [first, *_] = peer.said("session.warning")
        assert first["code"] == "camera-too-large" and "1920x1200" in first["detail"]
        count = len(peer.said("session.warning"))
        await peer.until(lambda: len(peer.said("session.warning")) > count)
        assert [each["code"] for each in speaker.messages if "code" in each][:1] == [
            "camera-too-large"
        ]
        assert not [each for each in viewer.messages if each["type"] == "session.warning"]
        await peer.close()
