"""Whose connections may be changed: one's own, and those of one's own session."""

from contextlib import asynccontextmanager

from support.server_fakes import problem, serving
from support.transport_stage import Guest

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
