"""`letstalk livekit-worker`: its load is what the machine can do, and it drains."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from livekit.plugins import letstalk
from livekit.plugins.letstalk.command import main, run_until_stopped
from support.fake_avatar import BrightPipeline
from support.stage import remote_stage
from support.waiting import until

from letstalk_rt import Avatar, ConfigError

STEP_S = 0.06  # of windows that last 0.16 s: two fit into 95 %


class SlowPipeline(BrightPipeline):
    """Each session's step takes `STEP_S`."""

    def step(self, pcm, states, deliver=None):
        time.sleep(STEP_S * len(states))
        return super().step(pcm, states, deliver)


@pytest.fixture
def slow_avatar(avatar):
    with Avatar.from_pipeline(SlowPipeline(), avatar.portrait) as loaded:
        yield loaded


def test_the_load_is_that_of_the_measured_places(slow_avatar):
    load = slow_avatar.measure_load()
    assert load.cost.places == 2
    assert [load.of(jobs) for jobs in (0, 1, 2)] == [0.0, 0.5, 1.0]


async def test_a_measured_worker_is_full_when_its_places_are_taken(house, slow_avatar):
    key = {"api_key": house.server.api_key, "api_secret": house.server.api_secret}
    worker = letstalk.avatar_server(
        slow_avatar,
        capacity=None,
        worker="measured",
        ws_url=house.server.url,
        host="127.0.0.1",
        port=0,
        **key,
    )
    registered = asyncio.Event()
    worker.on("worker_registered", lambda *_: registered.set())
    running = asyncio.create_task(run_until_stopped(worker))
    await registered.wait()
    async with remote_stage(house, "measured") as stage:
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: worker.draining)
        await stage.user.until_seen(5)
        assert not running.done(), "its job goes on"
    async with house:  # everybody leaves
        pass
    async with asyncio.timeout(30):
        await running


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "LIVEKIT_API_SECRET"),
        (["--url", "ws://127.0.0.1:1", "--api-key", "key"], "LIVEKIT_API_SECRET"),
    ],
)
def test_without_a_server_and_a_key_it_says_what_is_missing(monkeypatch, arguments, reason):
    for name in ("URL", "API_KEY", "API_SECRET", "API_SECRET_FILE"):
        monkeypatch.delenv(f"LIVEKIT_{name}", raising=False)
    with pytest.raises(ConfigError, match=reason):
        main(arguments)


def test_the_command_registers_and_stops(server):
    command = [sys.executable, "-m", "letstalk_rt", "livekit-worker", "--url", server.url]
    command += ["--api-key", server.api_key, "--port", "0", "--size", "256"]
    environment = os.environ | {"LIVEKIT_API_SECRET": server.api_secret}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if re.search(r"letstalk.*: registered$", line):
                break
        else:
            pytest.fail("".join(lines))
        assert any("places for" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
