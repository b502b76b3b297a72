"""Whose portrait may be animated: only the owner's, whatever way somebody asks for it."""

import json

import httpx
import pytest
from support.live_server import join, live
from support.server_fakes import portrait_jpeg, problem, serving

from letstalk_server.settings import Settings

KEY = "k" * 40
LOCKED = Settings(auth="on", api_key=KEY, secret="s" * 40, grace_s=0.5, max_sessions=4)
UPLOAD = "/v1/avatars?consent=true"


def bearer(token):
    return {"authorization": f"Bearer {token}"}


async def token_of(client, subject, **fields):
    answer = await client.post(
        "/v1/tokens", json={"subject": subject, **fields}, headers=bearer(KEY)
    )
    return bearer(answer.json()["token"])


async def uploaded(client, who):
    return (await client.post(UPLOAD, content=portrait_jpeg((10, 90, 30)), headers=who)).json()


async def test_a_portrait_is_unknown_to_every_subject_but_its_owner():
    async with serving(LOCKED) as (_, client):
        ann, bob = [await token_of(client, name) for name in ("ann", "bob")]
        avatar = await uploaded(client, ann)
        for key, code in (("avatar", "unknown-avatar"), ("portrait", "unknown-portrait")):
            for name in (avatar["id"], avatar["images"]):
                made = await client.post("/v1/sessions", json={key: name}, headers=bob)
                problem(made, 404, code)
                offer = {"type": "offer", "sdp": "v=0", key: name}
                problem(await client.post("/v1/offer", json=offer, headers=bob), 404, code)
        for path in ("whep", "whip"):
            sdp = bob | {"content-type": "application/sdp"}
            answer = await client.post(
                f"/v1/{path}?avatar={avatar['id']}", content="v=0", headers=sdp
            )
            problem(answer, 404, "unknown-avatar")
        answer = await client.get(f"/v1/avatars/{avatar['id']}", headers=bob)
        problem(answer, 404, "unknown-avatar")
        for who in (ann, bearer(KEY)):
            assert (await client.get(f"/v1/avatars/{avatar['id']}", headers=who)).json() == avatar
        mine = await client.post("/v1/sessions", json={"avatar": avatar["id"]}, headers=ann)
        assert mine.status_code == 201 and mine.json()["avatar"] == avatar["id"]


async def test_an_uploads_id_opens_no_image_and_an_images_id_nothing_else():
    async with serving(LOCKED) as (_, client):
        ann = await token_of(client, "ann")
        avatar = await uploaded(client, ann)
        assert avatar["id"] != avatar["images"]
        for name in ("still.jpg", "thumbnail.jpg", "matte.png"):
            shown = await client.get(f"/v1/avatars/{avatar['images']}/{name}")
            assert shown.status_code == 200
            hidden = await client.get(f"/v1/avatars/{avatar['id']}/{name}")
            problem(hidden, 404, "unknown-avatar")
        made = await client.post("/v1/sessions", json={"avatar": avatar["images"]}, headers=ann)
        problem(made, 404, "unknown-avatar")
        gone = await client.delete(f"/v1/avatars/{avatar['images']}", headers=ann)
        problem(gone, 404, "unknown-avatar")


async def test_viewers_are_never_told_the_id_of_an_upload():
    with live(LOCKED) as (_, address):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            ann = await token_of(http, "ann")
            avatar = await uploaded(http, ann)
            made = await http.post("/v1/sessions", json={"avatar": avatar["id"]}, headers=ann)
            session = made.json()
            viewer = bearer(session["viewer_token"])
            told = [
                (await http.get(path, headers=viewer)).text
                for path in (
                    f"/v1/sessions/{session['session']}",
                    "/v1/avatars",
                    f"/v1/avatars/{avatar['images']}",
                )
            ]
            speaker = await join(address, additional_headers=bearer(session["token"]))
            watching = await join(address, additional_headers=viewer)
            ready = await watching.hear("session.ready")
            still = await http.get(f"/v1/avatars/{ready['images']}/still.jpg")
            assert still.status_code == 200
            await speaker.send({"type": "avatar.select", "avatar": avatar["id"]})
            told += [json.dumps(ready), json.dumps(await watching.hear("avatar.selected"))]
            assert (await speaker.hear("avatar.selected"))["avatar"] == avatar["id"]
            assert all(avatar["images"] in text for text in told)
            assert not any(avatar["id"] in text for text in told)
            await http.delete(f"/v1/sessions/{session['session']}", headers=ann)
            await speaker.ended()
            await watching.ended()


@pytest.mark.parametrize("key", ["avatar", "portrait"])
async def test_nobody_brings_anothers_portrait_into_a_session_of_their_own(key):
    with live(LOCKED) as (_, address):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            ann, bob = [await token_of(http, name) for name in ("ann", "bob")]
            avatar = await uploaded(http, ann)
            session = (await http.post("/v1/sessions", headers=bob)).json()
            speaker = await join(address, additional_headers=bearer(session["token"]))
            await speaker.send({"type": "avatar.select", key: avatar["id"]})
            assert (await speaker.hear("session.error"))["code"] == f"unknown-{key}"
            await http.delete(f"/v1/sessions/{session['session']}", headers=bob)
            await speaker.ended()


@pytest.mark.parametrize(
    ("scopes", "speaks", "views"),
    [
        (["sessions"], None, None),
        (["sessions", "view"], "view", "view"),
        (["sessions", "speak"], "speak", None),
        (["sessions", "speak", "view"], "speak view", "view"),
    ],
)
async def test_tokens_of_a_session_have_no_scope_that_the_caller_lacks(scopes, speaks, views):
    async with serving(LOCKED) as (app, client):
        ann = await token_of(client, "ann", scopes=scopes)
        session = (await client.post("/v1/sessions", headers=ann)).json()

        def scopes_of(token):
            if token is None:
                return None
            return " ".join(sorted(app.state.auth.authenticate(bearer(token)).scopes))

        assert scopes_of(session["token"]) == speaks
        assert scopes_of(session["viewer_token"]) == views


async def test_viewers_see_no_list_of_connections():
    with live(LOCKED) as (_, address):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            ann = await token_of(http, "ann")
            session = (await http.post("/v1/sessions", headers=ann)).json()
            speaker = await join(address, additional_headers=bearer(session["token"]))
            await speaker.hear("session.ready")
            path = f"/v1/sessions/{session['session']}"
            for who, count in (
                (ann, 1),
                (bearer(session["token"]), 1),
                (bearer(session["viewer_token"]), 0),
            ):
                assert len((await http.get(path, headers=who)).json()["connections"]) == count
            await http.delete(path, headers=ann)
            await speaker.ended()


@pytest.mark.parametrize("tls", [True, False])
async def test_with_tls_a_browser_is_told_to_stay_with_it(tls):
    files = {"tls_cert": "a.pem", "tls_key": "b.pem"} if tls else {}
    async with serving(Settings(auth="off", **files)) as (_, client):
        headers = (await client.get("/healthz")).headers
        assert headers.get("strict-transport-security") == ("max-age=31536000" if tls else None)
