"""Connections: whose may be changed, how many there are, and what an offer may cost."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

from support.server_fakes import problem, serving
from support.transport_stage import Guest

from letstalk_server.auth import OPERATOR
from letstalk_server.session.limits import RateLimiter
from letstalk_server.settings import Settings

KEY = "k" * 40
LOCKED = Settings(auth="on", api_key=KEY, secret="s" * 40, grace_s=0.5, max_sessions=4)
FRAGMENT = "application/trickle-ice-sdpfrag"
SDP = {"content-type": "application/sdp"}
RESTART = f"a=ice-ufrag:abcd\r\na=ice-pwd:{22 * 'x'}\r\n"


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@asynccontextmanager
async def session_of_ann(settings=LOCKED):
    """Yield the application, an HTTP client, ann's header and her session."""
    async with serving(settings) as (app, client):
        made = await client.post("/v1/tokens", json={"subject": "ann"}, headers=bearer(KEY))
        ann = bearer(made.json()["token"])
        yield app, client, ann, (await client.post("/v1/sessions", headers=ann)).json()


async def watch(client, session, who):
    """Connect a player; return it, the path of its connection, and its ETag."""
    guest = Guest()
    answer = await client.post(
        f"/v1/whep?session={session}", content=await guest.offer(), headers=who | SDP
    )
    assert answer.status_code == 201, answer.text
    return guest, answer.headers["location"], answer.headers["etag"]


async def viewers(client, session, count):
    """Return tokens with the right to view, each with an id of its own."""
    made = [await client.get(f"/v1/sessions/{session}", headers=bearer(KEY)) for _ in range(count)]
    return [bearer(answer.json()["viewer_token"]) for answer in made]


async def test_a_connection_is_changed_by_the_token_that_opened_it_and_by_the_sessions_owner():
    async with session_of_ann() as (_, client, ann, session):
        name = session["session"]
        first, second = await viewers(client, name, 2)
        guest, path, etag = await watch(client, name, first)
        trickle = {"content-type": FRAGMENT, "if-match": etag}
        restart = {"content-type": FRAGMENT, "if-match": "*"}
        for other in (second, bearer(session["token"])):
            for headers, body in ((trickle, "a=mid:0\r\n"), (restart, RESTART)):
                answer = await client.patch(path, content=body, headers=other | headers)
                problem(answer, 403, "not-allowed")
            problem(await client.delete(path, headers=other), 403, "not-allowed")
        for own in (first, ann, bearer(KEY)):
            answer = await client.patch(path, content="a=mid:0\r\n", headers=own | trickle)
            assert answer.status_code == 204
        assert (await client.delete(path, headers=first)).status_code == 200
        await guest.close()


async def test_a_renewed_token_still_changes_what_it_opened():
    async with session_of_ann() as (_, client, _ann, session):
        name = session["session"]
        (viewer,) = await viewers(client, name, 1)
        guest, path, _ = await watch(client, name, viewer)
        renewed = (await client.post("/v1/tokens", headers=viewer)).json()["token"]
        shown = await client.get(f"/v1/sessions/{name}", headers=bearer(renewed))
        again = bearer(shown.json()["viewer_token"])
        assert (await client.delete(path, headers=again)).status_code == 200
        await guest.close()


async def count_peers(app, session):
    """Return a list that grows with each peer which the session's transport makes."""
    transport, opened = app.state.sessions.find(session, OPERATOR).transport, []
    make = transport.open
    transport.open = lambda *given: opened.append(given) or make(*given)
    return opened


async def test_offers_beyond_the_limit_make_no_peer():
    async with session_of_ann(replace(LOCKED, max_connections=2)) as (app, client, ann, session):
        name = session["session"]
        opened = await count_peers(app, name)
        guests = [Guest() for _ in range(6)]
        answers = await asyncio.gather(
            *[
                client.post(
                    f"/v1/whep?session={name}", content=await guest.offer(), headers=ann | SDP
                )
                for guest in guests
            ]
        )
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [201, 201, 503, 503, 503, 503]
        assert len(opened) == 2
        problem(next(one for one in answers if one.status_code == 503), 503, "at-capacity")
        for guest in guests:
            await guest.close()


async def test_an_offer_that_fails_gives_its_place_back():
    async with session_of_ann(replace(LOCKED, max_connections=1)) as (_, client, ann, session):
        path = f"/v1/whep?session={session['session']}"
        problem(await client.post(path, content="v=0", headers=ann | SDP), 400, "bad-offer")
        guest, _, _ = await watch(client, session["session"], ann)
        await guest.close()


async def test_viewers_leave_places_for_those_who_speak():
    async with session_of_ann(replace(LOCKED, max_connections=4)) as (_, client, _ann, session):
        name, viewer = session["session"], bearer(session["viewer_token"])
        guests = [(await watch(client, name, viewer))[0] for _ in range(2)]
        late = Guest()
        content = await late.offer()
        for who, status in ((viewer, 503), (bearer(session["token"]), 201)):
            answer = await client.post(
                f"/v1/whep?session={name}", content=content, headers=who | SDP
            )
            assert answer.status_code == status
        for guest in (*guests, late):
            await guest.close()


async def test_a_token_cannot_send_offers_all_the_time():
    async with session_of_ann() as (app, client, ann, session):
        app.state.connection_limiter = RateLimiter(0.3, clock=lambda: 0.0)
        name = session["session"]
        opened = await count_peers(app, name)
        viewer = bearer(session["viewer_token"])

        async def offer(who):
            path = f"/v1/whep?session={name}"
            return (await client.post(path, content="v=0", headers=who | SDP)).json()["code"]

        assert [await offer(viewer) for _ in range(5)] == 3 * ["bad-offer"] + 2 * [
            "too-many-requests"
        ]
        assert len(opened) == 3
        assert await offer(ann) == "bad-offer", "others are not held up"
