"""Who waits for a place: what they are told, when they may come in, and what they never learn."""

import asyncio

import httpx
from support.live_server import join, live
from support.server_fakes import patient, problem

from letstalk_server.auth import SCOPES, Auth
from letstalk_server.http import queueing
from letstalk_server.session import registry

SECRET = "s" * 40
FULL = {"max_sessions": 1, "grace_s": 60}
LOCKED = patient(auth="on", api_key="k" * 40, secret=SECRET, **FULL)
AUTH = Auth(LOCKED)


def bearer(subject, **bound):
    token, _ = AUTH.issue(subject, SCOPES, **bound)
    return {"authorization": f"Bearer {token}"}


class Visitor:
    """Somebody who asks the queue, with the ticket of the last answer."""

    def __init__(self, address, headers=None):
        self.http = httpx.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=30)
        self.address, self.headers = address, headers
        self.ticket = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.http.aclose()

    async def ask(self, *sessions):
        body = {"ticket": self.ticket, "sessions": sessions}
        answer = await self.http.post("/v1/queue", json=body)
        assert answer.status_code == 200, answer.text
        standing = answer.json()
        self.ticket = standing["ticket"]
        return standing

    async def open(self):
        return await self.http.post("/v1/sessions", json={"ticket": self.ticket})

    async def hold(self):
        """Open a session with a connection; return both."""
        made = await self.open()
        assert made.status_code == 201, made.text
        name = made.json()["session"]
        client = await join(self.address, f"session={name}", additional_headers=self.headers)
        await client.hear("session.ready")
        return name, client


async def test_a_queue_moves_up_and_lets_nobody_jump_in(monkeypatch):
    monkeypatch.setattr(registry, "RELOAD_S", 0.3)
    with live(patient(**FULL)) as (_, address):
        async with Visitor(address) as ann, Visitor(address) as bob, Visitor(address) as eve:
            _, client = await ann.hold()
            problem(await bob.open(), 503, "at-capacity")
            first = await bob.ask()
            assert (first["position"], first["ready"], first["places"], first["taken"]) == (
                1,
                False,
                1,
                1,
            )
            assert (await eve.ask())["position"] == 2
            waiting = asyncio.create_task(bob.ask())
            await client.close()  # the page has gone
            called = await waiting
            assert called["ready"] and called["taken"] == 0
            problem(await eve.open(), 503, "at-capacity")
            problem(await ann.open(), 503, "at-capacity")
            _, client = await bob.hold()
            moved = await eve.ask()
            assert (moved["position"], moved["ready"]) == (1, False)
            await client.close()


async def test_a_page_that_is_loaded_again_keeps_its_place(monkeypatch):
    monkeypatch.setattr(queueing, "ANSWER_S", 0.5)
    with live(patient(**FULL)) as (_, address):
        async with Visitor(address) as ann, Visitor(address) as bob:
            name, client = await ann.hold()
            await bob.ask()
            await client.close()
            assert not (await bob.ask())["ready"]
            client = await join(address, f"session={name}")
            await client.hear("session.ready")
            assert not (await bob.ask())["ready"]
            await client.close()


async def test_an_answer_waits_for_news(monkeypatch):
    monkeypatch.setattr(queueing, "ANSWER_S", 0.6)
    with live(patient(**FULL)) as (_, address):
        async with Visitor(address) as ann, Visitor(address) as bob:
            _, client = await ann.hold()
            loop = asyncio.get_running_loop()
            begin_s = loop.time()
            first = await bob.ask()
            told_s = loop.time()
            assert await bob.ask() == first
            assert told_s - begin_s < 0.5 < loop.time() - told_s
            await client.close()


async def test_without_tokens_only_who_knows_a_session_owns_it():
    with live(patient(**FULL)) as (_, address):
        async with Visitor(address) as ann, Visitor(address) as eve:
            name, client = await ann.hold()
            own = {"session": name, "avatar": "amber", "kinds": ["ws"]}
            assert (await ann.ask(name))["own"] == [own]
            assert (await eve.ask("guessed"))["own"] == []
            assert name not in str(await eve.ask())
            await client.close()


async def test_with_tokens_a_subject_finds_its_own_session_and_nobody_else_can_take_it_over():
    with live(LOCKED) as (_, address):
        ann_elsewhere = Visitor(address, bearer("ann"))
        async with (
            Visitor(address, bearer("ann")) as ann,
            ann_elsewhere,
            Visitor(address, bearer("eve")) as eve,
        ):
            name, client = await ann.hold()
            standing = await ann_elsewhere.ask()
            assert standing["own"] == [{"session": name, "avatar": "amber", "kinds": ["ws"]}]
            assert standing["ticket"] is None, (
                "who has all its sessions takes no place in the queue"
            )
            stranger = await eve.ask(name)
            assert stranger["own"] == [] and stranger["position"] == 1
            assert name not in str(stranger) and "ann" not in str(stranger)
            offer = {"type": "offer", "sdp": "v=0", "session": name}
            problem(await eve.http.post("/v1/offer", json=offer), 403, "not-allowed")
            await client.close()
            bound = bearer("ann", session=name)
            refused = await eve.http.post("/v1/queue", headers=bound)
            problem(refused, 403, "not-allowed")


async def test_a_ticket_of_somebody_else_opens_nothing():
    with live(LOCKED) as (_, address):
        async with (
            Visitor(address, bearer("ann")) as ann,
            Visitor(address, bearer("bob")) as bob,
            Visitor(address, bearer("eve")) as eve,
        ):
            name, client = await ann.hold()
            await bob.ask()
            await ann.http.delete(f"/v1/sessions/{name}")
            assert (await bob.ask())["ready"]
            eve.ticket = bob.ticket
            problem(await eve.open(), 503, "at-capacity")
            assert (await bob.open()).status_code == 201
            await client.close()


async def test_wishes_are_checked():
    with live(patient(**FULL)) as (_, address):
        async with Visitor(address) as ann:
            for body in (
                {"ticket": 5},
                {"sessions": "all"},
                {"sessions": [1]},
                {"sessions": ["x"] * 9},
                {"sessions": ["x" * 300]},
            ):
                problem(await ann.http.post("/v1/queue", json=body), 400, "bad-request")


async def test_tickets_and_sessions_of_a_subject_together_are_half_of_the_places():
    settings = patient(auth="on", api_key="k" * 40, secret=SECRET, max_sessions=4, grace_s=60)
    with live(settings) as (_, address):
        async with (
            Visitor(address, bearer("eve")) as eve,
            Visitor(address, bearer("bob")) as bob,
        ):
            for _ in range(2):  # nobody connects to them
                assert (await eve.open()).status_code == 201
            assert (await eve.ask())["ticket"] is None
            for _ in range(2):
                assert (await bob.open()).status_code == 201


async def test_a_subject_has_as_many_tickets_as_it_may_open_sessions(monkeypatch):
    monkeypatch.setattr(queueing, "ANSWER_S", 0.0)
    settings = patient(auth="on", api_key="k" * 40, secret=SECRET, max_sessions=4, grace_s=60)
    with live(settings) as (_, address):
        async with (
            Visitor(address, bearer("eve")) as eve,
            Visitor(address, bearer("bob")) as bob,
        ):
            tickets = set()
            for _ in range(8):
                eve.ticket = None
                tickets.add((await eve.ask())["ticket"])
            assert len(tickets - {None}) == 2
            standing = await bob.ask()
            assert (standing["position"], standing["ready"]) == (3, True)


async def test_who_asks_the_queue_all_the_time_is_refused_and_others_are_answered(monkeypatch):
    monkeypatch.setattr(queueing, "ANSWER_S", 0.0)
    with live(LOCKED) as (_, address):
        async with (
            Visitor(address, bearer("eve")) as eve,
            Visitor(address, bearer("bob")) as bob,
        ):
            asks = [eve.http.post("/v1/queue") for _ in range(60)]
            answers = [answer.status_code for answer in await asyncio.gather(*asks)]
            assert set(answers) == {200, 429} and answers.count(200) < 30
            await bob.ask()
            long = {"ticket": "x" * 100_000}
            assert (await bob.http.post("/v1/queue", json=long)).status_code in (400, 413)
