"""A worker of a cluster: its name, what it tells the agent check, how it drains."""

import asyncio

import pytest
from support.server_fakes import patient, portrait_jpeg, serving

from letstalk_rt.errors import ConfigError
from letstalk_server.cluster.agent_check import AgentCheck, agent_state
from letstalk_server.cluster.draining import drain
from letstalk_server.session.ids import new_id
from letstalk_server.settings import Settings


async def test_session_and_upload_ids_begin_with_the_name_of_the_worker():
    async with serving(patient(worker_name="w7")) as (_, client):
        session = (await client.post("/v1/sessions")).json()["session"]
        uploaded = await client.post("/v1/avatars?consent=true", content=portrait_jpeg())
        for name in (session, uploaded.json()["id"]):
            assert name.startswith("w7.") and len(name) == len("w7.") + 22
        assert (await client.get(f"/v1/sessions/{session}")).status_code == 200


def test_without_a_name_ids_have_no_prefix():
    assert "." not in new_id(Settings())


@pytest.mark.parametrize(
    "wrong",
    [{"worker_name": name} for name in ("", "W7", "w.7", "-w", "w-", "w" * 64)]
    + [{"agent_port": 0}, {"public_address": "talk.example.org"}, {"drain_s": -1}],
)
def test_settings_of_a_worker_that_cannot_be_used_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Settings(**wrong)


async def test_the_agent_check_tells_how_much_is_free():
    async with serving(patient(worker_name="w1", max_sessions=3)) as (app, client):
        sessions = app.state.sessions
        told = [agent_state(sessions)]
        for _ in range(3):
            await client.post("/v1/sessions")
            told.append(agent_state(sessions))
        assert told == ["up ready 100%", "up ready 66%", "up ready 33%", "up ready 0%"]
        sessions.drain()
        assert agent_state(sessions) == "drain"


async def test_a_worker_whose_model_is_away_takes_no_new_sessions(monkeypatch):
    async with serving(patient(worker_name="w1")) as (app, _):
        monkeypatch.setattr(
            type(app.state.avatar_service), "is_model_running", property(lambda _: False)
        )
        assert agent_state(app.state.sessions) == "drain"


async def test_the_agent_check_answers_one_line(unused_port):
    check = AgentCheck(lambda: "up ready 70%")
    await check.open("127.0.0.1", unused_port)
    reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
    assert await reader.read() == b"up ready 70%\n"
    writer.close()
    await check.aclose()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", unused_port)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_draining_waits_for_sessions_and_then_no_longer():
    async with serving(patient(worker_name="w1")) as (app, client):
        sessions = app.state.sessions
        session = (await client.post("/v1/sessions")).json()["session"]
        waiting = asyncio.create_task(drain(sessions, 60, notice_s=0))
        await asyncio.sleep(0)
        assert (await client.post("/v1/sessions")).json()["code"] == "not-ready"
        assert (await client.get(f"/v1/sessions/{session}")).status_code == 200
        assert not waiting.done()
        await client.delete(f"/v1/sessions/{session}")
        await asyncio.wait_for(waiting, 20)


async def test_draining_ends_at_its_limit():
    async with serving(patient(worker_name="w1")) as (app, client):
        await client.post("/v1/sessions")
        await asyncio.wait_for(drain(app.state.sessions, 0.05, notice_s=0), 20)
        assert len(app.state.sessions) == 1, "the shutdown ends it"
