"""The life of a session: who is let in, who takes over, what is waited for, and how it ends."""

import asyncio
import threading
import time
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from support.server_fakes import (
    Painter,
    Peer,
    Voice,
    model_of,
    patient,
    portrait_jpeg,
    problem,
    serving,
    tone,
)

from letstalk_server.auth import LOCAL, Caller
from letstalk_server.errors import (
    AtCapacityError,
    NotReadyError,
    TooManyRequestsError,
    UnknownSessionError,
)
from letstalk_server.session.avatar_service import AvatarService, StepCost
from letstalk_server.session.connection import ConnectionKind, EndReason
from letstalk_server.session.connections import Connections
from letstalk_server.session.limits import AdmissionControl, RateLimiter
from letstalk_server.session.session import WATCH_INTERVAL_S
from letstalk_server.session.transport import PeerState
from letstalk_server.settings import Settings
from letstalk_server.webrtc.webrtc_connection import WebRTCConnection

RECVONLY = {"content-type": "application/sdp"}


async def wait_for(wanted, limit_s=20):
    for _ in range(int(limit_s * 20)):
        if wanted():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never happened")


async def test_a_session_is_made_first_and_connected_later():
    async with serving(patient(max_session_s=600)) as (_, client):
        made = await client.post("/v1/sessions", json={"avatar": "blue", "options": {"seed": 3}})
        assert made.status_code == 201
        session = made.json()
        assert made.headers["location"] == f"/v1/sessions/{session['session']}"
        assert made.headers["cache-control"] == "no-store"
        assert session["avatar"] == "blue" and session["token"] is None
        assert session["video"] == {"width": 512, "height": 512, "fps": 25}
        assert session["disclosure"]["badge"] and "generated" in session["disclosure"]["statement"]
        peer = await Peer().join(client, session=session["session"])
        shown = (await client.get(made.headers["location"])).json()
        assert [one["kind"] for one in shown["connections"]] == ["talk"]
        assert 590 < shown["ends_in_s"] <= 600
        assert (await client.delete(made.headers["location"])).status_code == 204
        await peer.until(lambda: peer.said("session.ended"))
        assert peer.said("session.ended")[0]["reason"] == "deleted"
        problem(await client.get(made.headers["location"]), 404, "unknown-session")
        await peer.close()


async def test_a_session_is_made_of_sound_wishes_only():
    async with serving() as (app, client):
        for body in (
            {"avatar": 5},
            {"avatar": "x" * 300},
            {"options": []},
            {"options": {"badge": "no"}},
            {"options": {"seed": -1}},
            {"options": {"motion": {"expressiveness": 9}}},
            {"options": {"motion": {"wings": True}}},
        ):
            problem(await client.post("/v1/sessions", json=body), 400, "bad-request")
        assert len(app.state.sessions) == 0


async def test_a_reloaded_page_finds_its_session_again():
    async with serving(patient(grace_s=20)) as (app, client):
        name = (await client.post("/v1/sessions", json={"avatar": "blue"})).json()["session"]
        before = await Peer().join(client, session=name)
        before.send({"type": "overlay.update", "overlay": {"bg": "green"}})
        await before.until(lambda: before.said("overlay.updated"))
        await before.close()
        (session,) = app.state.sessions
        await wait_for(lambda: not session.connections)
        after = await Peer().join(client, session=name)
        ready = after.said("session.ready")[0]
        assert ready["resumed"] and ready["session"] == name and ready["avatar"] == "blue"
        assert ready["overlay"] == {"bg": "green"}
        await after.until(lambda: len(after.video) > 3)
        await after.close()


async def test_a_newer_page_takes_over():
    async with serving() as (app, client):
        name = (await client.post("/v1/sessions")).json()["session"]
        old = await Peer().join(client, session=name)
        new = await Peer().join(client, session=name)
        await old.until(lambda: old.said("session.error"))
        assert old.said("session.error")[0]["code"] == "taken-over"
        assert len(app.state.sessions) == 1
        await new.until(lambda: len(new.video) > 3)
        await asyncio.gather(old.close(), new.close())


async def test_nobody_comes_back_and_the_place_is_free_after_the_grace_time():
    async with serving(patient(max_sessions=1, grace_s=0.3, connect_timeout_s=0.3)) as (
        app,
        client,
    ):
        assert (await client.post("/v1/sessions")).status_code == 201
        refused = await client.post("/v1/sessions")
        problem(refused, 503, "at-capacity")
        assert int(refused.headers["retry-after"]) > 0
        problem(await client.get("/readyz"), 503, "at-capacity")
        await wait_for(lambda: len(app.state.sessions) == 0)
        assert (await client.get("/readyz")).status_code == 200
        text = (await client.get("/metrics")).text
        assert 'letstalk_sessions_ended_total{reason="lost"} 1.0' in text
        assert 'letstalk_problems_total{code="at-capacity"} 2.0' in text


async def test_who_has_left_gives_way_to_who_comes_when_all_places_are_taken():
    async with serving(patient(max_sessions=1, grace_s=600)) as (app, client):
        gone = await Peer().join(client)
        (first,) = app.state.sessions
        await gone.close()
        await wait_for(lambda: first.is_abandoned)
        here = await Peer().join(client)
        await wait_for(lambda: len(app.state.sessions) == 1)
        assert first.id not in {session.id for session in app.state.sessions}
        await here.until(lambda: len(here.video) > 3)
        problem(await client.post("/v1/sessions"), 503, "at-capacity")  # nobody has left now
        await here.close()


async def test_silence_ends_a_session_after_a_warning():
    async with serving(patient(max_idle_s=2)) as (_, client):
        peer = await Peer().join(client)
        await peer.until(lambda: peer.said("session.ended"))
        (warning,) = peer.said("session.warning")
        assert warning["code"] == "idle-soon" and warning["ends_in_s"] <= 2
        assert peer.said("session.ended")[0]["reason"] == "idle"
        await peer.close()


async def whep_offer(kind="video", direction="recvonly"):
    peer = Peer()
    for transceiver in peer.pc.getTransceivers():
        transceiver.direction = direction
    offer = await peer.offer()
    return peer, offer["sdp"]


async def test_players_come_and_go_by_whep():
    async with serving() as (app, client):
        name = (await client.post("/v1/sessions", json={"avatar": "blue"})).json()["session"]
        peer, sdp = await whep_offer()
        answer = await client.post(f"/v1/whep?session={name}", content=sdp, headers=RECVONLY)
        assert answer.status_code == 201, answer.text
        assert answer.headers["content-type"] == "application/sdp"
        assert answer.headers["accept-patch"] == "application/trickle-ice-sdpfrag"
        place, tag = answer.headers["location"], answer.headers["etag"]
        await accept(peer, answer.text)
        await peer.until(lambda: len(peer.video) > 3)

        async def patch(body="", **headers):
            kind = {"content-type": "application/trickle-ice-sdpfrag"}
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            return await client.patch(place, content=body, headers=kind | named)

        problem(await patch(), 428, "precondition-required")
        problem(await patch(if_match='"other"'), 412, "precondition-failed")
        problem(await patch(if_match="*"), 400, "bad-request")
        problem(await patch("a=ice-ufrag:other\r\n", if_match=tag), 422, "ice-restart-unsupported")
        problem(await patch(if_match=tag, content_type="text/plain"), 415, "unsupported-media-type")
        candidate = "a=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n"
        taken = await patch(f"a=mid:0\r\n{candidate}", if_match=tag)
        assert taken.status_code == 204 and not taken.content
        assert "etag" not in taken.headers, "RFC 9725: a new one would mean a restart"
        useless = "a=candidate:1 1 tcp 1 192.0.2.1 9 typ host tcptype active\r\n"
        useless += "a=candidate:1 1 udp 1 nowhere.invalid 9 typ host\r\n"
        assert (await patch(f"a=mid:0\r\n{useless}", if_match=tag)).status_code == 204
        problem(await patch(candidate, if_match=tag), 400, "bad-request")
        problem(await client.get(place), 405, "method-not-allowed")
        assert (await client.delete(place)).status_code == 200
        problem(await client.delete(place), 404, "not-found")
        assert len(app.state.sessions) == 1, "the session waits for another"
        await peer.close()


async def accept(peer, sdp):
    from aiortc import RTCSessionDescription

    await peer.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))


async def test_a_player_that_made_its_session_ends_it():
    async with serving() as (app, client):
        peer, sdp = await whep_offer()
        answer = await client.post("/v1/whep?avatar=blue", content=sdp, headers=RECVONLY)
        assert answer.status_code == 201 and len(app.state.sessions) == 1
        await client.delete(answer.headers["location"])
        await wait_for(lambda: len(app.state.sessions) == 0)
        await peer.close()


@pytest.mark.parametrize("path", ["/v1/whip", "/v1/whep"])
async def test_whip_and_whep_say_how_and_refuse_the_rest(path):
    settings = patient(turn_urls=("turn:t.example",), turn_secret="north")
    async with serving(settings) as (app, client):
        how = await client.options(path)
        assert how.status_code == 204 and how.headers["accept-post"] == "application/sdp"
        assert 'rel="ice-server"' in how.headers["link"] and "north" not in how.headers["link"]
        problem(await client.post(path, content="v=0"), 415, "unsupported-media-type")
        for body in ("", "v=0", "\x00", b"\xff\xfe"):
            problem(await client.post(path, content=body, headers=RECVONLY), 400, "bad-offer")
        answer = await client.post(path, content="v=0" * 40_000, headers=RECVONLY)
        problem(answer, 413, "too-large")
        problem(await client.get(path), 405, "method-not-allowed")
        problem(await client.put(path, content="v=0"), 405, "method-not-allowed")
        await wait_for(lambda: len(app.state.sessions) == 0)


class Busy:
    """A studio whose model is as fast and as busy as it is told."""

    is_model_running = True

    def __init__(self, share, busy=0.0):
        self.step_cost, self.busy, self.worker = StepCost(share * 0.16, 0.16), busy, self

    def busy_ratio(self):
        return self.busy


def test_as_many_are_let_in_as_the_model_can_serve():
    assert AdmissionControl(Busy(0.4), None).capacity == 2
    assert AdmissionControl(Busy(1.7), None).capacity == 1, "one is always served"
    assert AdmissionControl(Busy(0.4), 7).capacity == 7, "the operator knows better"
    AdmissionControl(Busy(0.4), None).check(1)
    with pytest.raises(AtCapacityError):
        AdmissionControl(Busy(0.4), None).check(2)
    with pytest.raises(AtCapacityError, match="stutter"):
        AdmissionControl(Busy(0.2, busy=0.9), None).check(2)
    AdmissionControl(Busy(0.2, busy=0.9), None).check(0)


def test_nobody_is_let_in_while_the_model_is_started_again():
    studio = Busy(0.4)
    studio.is_model_running = False
    with pytest.raises(NotReadyError, match="started again"):
        AdmissionControl(studio, None).check(0)


def test_what_costs_may_not_be_done_all_the_time():
    now_s = 100.0
    limiter = RateLimiter(0.5, lambda: now_s)
    ann, bob = (Caller(name, frozenset()) for name in ("ann", "bob"))
    for _ in range(5):
        limiter.check(ann)
    with pytest.raises(TooManyRequestsError) as refused:
        limiter.check(ann)
    assert refused.value.retry_after_s == 2
    limiter.check(bob)
    now_s += 2.1
    limiter.check(ann)
    for _ in range(100):
        limiter.check(LOCAL)


class QuietTransport:
    """Gives peers that are whatever the test says."""

    state, last_received_s = PeerState.CONNECTING, 0.0

    def open(self, kind, media, handlers):
        self.handlers = handlers
        return self

    async def answer(self, offer):
        return ""


@pytest.mark.parametrize("kind", [ConnectionKind.TALK, ConnectionKind.PLAY, ConnectionKind.SPEAK])
async def test_a_peer_outlives_an_outage_of_five_seconds_and_is_given_up_after_nine(kind):
    settings, peer = Settings(), QuietTransport()
    session = SimpleNamespace(
        transport=peer,
        settings=settings,
        media=None,
        is_resumed=False,
        playout=SimpleNamespace(sample_rate=16_000),
        spawn=lambda work, name: work.close(),
        send_ready=lambda connection, resumed: None,
        connections=Connections(1),
        attach=AsyncMock(),
    )
    connection, began_s = WebRTCConnection(session, kind, LOCAL), time.monotonic()
    await connection.open("")
    assert not connection.is_lost(began_s + settings.connect_timeout_s - 1)
    assert connection.is_lost(began_s + settings.connect_timeout_s + 1), "it never came"
    peer.state = PeerState.CONNECTED
    if kind is ConnectionKind.TALK:
        peer.handlers.channel()
        peer.handlers.message('{"type": "session.ping"}')
    else:
        peer.last_received_s = time.monotonic()
    last_received_s = time.monotonic()
    assert not connection.is_lost(last_received_s + 5 + 2)
    assert connection.is_lost(last_received_s + 9 - WATCH_INTERVAL_S)


async def test_a_session_that_has_ended_takes_no_more_connections():
    async with serving() as (app, client):
        await client.post("/v1/sessions")
        (session,) = app.state.sessions
        peer = Peer()
        offer = await peer.offer()
        connection = WebRTCConnection(session, ConnectionKind.TALK, LOCAL)
        session.end(EndReason.DELETED)
        with pytest.raises(UnknownSessionError):
            await connection.open(offer["sdp"])
        await peer.close()


async def test_two_sessions_of_one_size_share_the_models_calls():
    async with serving(pipeline=Painter()) as (app, client):
        names = [(await client.post("/v1/sessions")).json()["session"] for _ in range(2)]
        worker = app.state.avatar_service.worker
        await wait_for(lambda: worker.load.steps > 8)
        assert 0 < worker.busy_ratio() <= 1 and len(set(names)) == 2
        text = (await client.get("/metrics")).text
        assert "letstalk_step_seconds_bucket" in text and "letstalk_sessions 2.0" in text
        assert 'letstalk_stage_ms{quantile="p95",stage="step"}' in text
        assert 'letstalk_quality_level_sessions{level="0"} 2.0' in text
        assert "letstalk_quality_changes_total 0.0" in text


async def test_logs_hold_nothing_of_anybody(caplog):
    caplog.set_level("DEBUG")
    async with serving() as (_, client):
        made = await client.post("/v1/avatars?consent=true&label=Ann", content=portrait_jpeg())
        avatar = made.json()["id"]
        peer = await Peer(Voice(tone(0.5))).join(client, avatar=avatar)
        await peer.until(lambda: peer.said("avatar.speaking"))
        await peer.close()
    ours = [record for record in caplog.records if record.name.startswith("letstalk")]
    text = "\n".join(record.getMessage() for record in ours)
    for private in (avatar, "Ann", "candidate", "ufrag", "127.0.0.1", peer.session):
        assert private not in text


async def test_the_last_step_of_the_model_is_waited_for():
    avatar_service = await AvatarService.open(Settings(), model_of(Painter()))
    began, may_end = threading.Event(), threading.Event()
    threads = []

    def call():
        threads.append(threading.current_thread())
        began.set()
        may_end.wait()

    avatar_service.worker.submit(call)
    await asyncio.to_thread(began.wait)  # a call that waits in the queue would be dropped
    closing = asyncio.create_task(avatar_service.aclose())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done()
    may_end.set()
    await closing
    assert not threads[0].is_alive()
