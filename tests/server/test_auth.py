"""Tokens, origins and TURN credentials: who may do what, and that no secret is told."""

import hashlib
import hmac
import json
import logging
import time
from base64 import b64encode
from dataclasses import replace

import httpx
import jwt
import pytest
from support.live_server import join, live
from support.server_fakes import BACKDROPS, portrait_jpeg, problem, serving
from websockets.exceptions import InvalidStatus

from letstalk_server.auth import MAX_LOGIN_S, SCOPES, Auth, Caller
from letstalk_server.errors import AuthenticationError
from letstalk_server.http.middleware import is_local
from letstalk_server.server import PAGE_SCOPES
from letstalk_server.settings import IceServer, Settings
from letstalk_server.webrtc import turn

KEY = "k" * 40
LOCKED = Settings(auth="on", api_key=KEY, secret="s" * 40, grace_s=0.5)
UPLOAD = "/v1/avatars?consent=true"


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def code_of(call):
    with pytest.raises(AuthenticationError) as refused:
        call()
    return refused.value.code


def unchecked(token):
    return jwt.decode(token, options={"verify_signature": False})


class Now:
    def __init__(self):
        self.s = 1_800_000_000.0

    def __call__(self):
        return self.s


def test_a_token_tells_who_it_is_for_until_it_ends():
    now = Now()
    auth = Auth(LOCKED, now)
    token, expires_s = auth.issue("ann", ["view", "speak"], ttl_s=60, session="s1")
    caller = auth.authenticate(bearer(token))
    assert (caller.subject, caller.scopes, caller.session) == ("ann", {"view", "speak"}, "s1")
    assert expires_s == 60 and not caller.is_operator
    now.s += 66
    assert code_of(lambda: auth.authenticate(bearer(token))) == "token-expired"


@pytest.mark.parametrize(
    "forge",
    [
        lambda token: token[:-4] + "AAAA",
        lambda token: "x",
        lambda token: "\udcff",
        lambda token: jwt.encode({"sub": "a", "exp": 2e9, "iat": 0}, "another" * 6),
        lambda token: jwt.encode({"sub": "a", "exp": 2e9, "iat": 0, "iss": "letstalk"}, "s" * 40),
        lambda token: jwt.encode(
            jwt.decode(token, options={"verify_signature": False}), "", "none"
        ),
    ],
)
def test_forged_tokens_are_refused(forge):
    auth = Auth(LOCKED)
    token, _ = auth.issue("ann", SCOPES)
    assert code_of(lambda: auth.authenticate(bearer(forge(token)))) == "token-invalid"


def test_tokens_of_another_start_are_not_of_this_one():
    token, _ = Auth(Settings(auth="on")).issue("ann", SCOPES)
    assert code_of(lambda: Auth(Settings(auth="on")).authenticate(bearer(token))) == "token-invalid"


def test_a_token_is_renewed_for_half_a_day_and_no_more():
    now = Now()
    auth = Auth(LOCKED, now)
    token, _ = auth.issue("ann", ["view"])
    began_s = now.s
    while now.s < began_s + MAX_LOGIN_S - 500:
        caller = auth.authenticate(bearer(token))
        assert caller.scopes == {"view"} and caller.login_s == began_s
        token, expires_s = auth.renew(caller)
        now.s += 500
    assert now.s + expires_s - 500 <= began_s + MAX_LOGIN_S + 1
    now.s = began_s + MAX_LOGIN_S - 1
    token, expires_s = auth.renew(caller)
    assert expires_s <= 1
    now.s += 2
    assert code_of(lambda: auth.renew(caller)) == "token-expired"


def test_turn_credentials_are_what_coturn_checks():
    settings = Settings(
        turn_urls=("turn:t.example:3478",),
        turn_secret="north",
        ice_servers=(IceServer("stun:s.example"),),
    )
    ann, bob = Caller("ann", frozenset()), Caller("bob", frozenset())
    first, second = turn.ice_servers(settings, ann, 1000), turn.ice_servers(settings, bob, 1000)
    assert [server.url for server in first] == ["stun:s.example", "turn:t.example:3478"]
    made = first[1]
    digest = hmac.new(b"north", made.username.encode(), hashlib.sha1).digest()
    assert made.credential == b64encode(digest).decode()
    assert made.username.split(":")[0] == str(1000 + settings.turn_ttl_s)
    assert made.username != second[1].username
    link = turn.as_links(first)[1]
    assert link.startswith('<turn:t.example:3478>; rel="ice-server"; username="4600:')
    assert turn.as_json(first)[0] == {"urls": ["stun:s.example"]}


def test_a_subject_has_one_name_at_the_turn_server_whose_quota_counts_it():
    settings = Settings(turn_urls=("turn:t",), turn_secret="north")

    def name(now_s=1000, **who):
        caller = Caller(**({"subject": "ann", "scopes": frozenset()} | who))
        (server,) = turn.ice_servers(settings, caller, now_s)
        return server.username.partition(":")[2]

    assert name() == name(2000) == name(scopes=frozenset({"view"}), token_id="another")
    assert len({name(), name(subject="bob"), name(session="s1"), name(session="s2")}) == 4
    assert name(is_operator=True) != name(is_operator=True)
    assert "ann" not in name()


async def test_everything_but_the_page_asks_for_a_token():
    async with serving(LOCKED) as (_, client):
        for path in ("/", "/healthz", "/readyz", "/v1/config", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        for method, path in (
            ("GET", "/metrics"),
            ("GET", "/v1/avatars"),
            ("POST", UPLOAD),
            ("POST", "/v1/tokens"),
            ("POST", "/v1/sessions"),
            ("GET", "/v1/sessions/x"),
            ("POST", "/v1/offer"),
            ("POST", "/v1/whep"),
            ("POST", "/v1/whip"),
            ("PATCH", "/v1/sessions/x/connections/y"),
            ("DELETE", "/v1/sessions/x/connections/y"),
        ):
            answer = await client.request(method, path)
            problem(answer, 401, "token-missing")
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_the_operator_makes_tokens_and_their_holders_do_what_they_allow(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving(LOCKED) as (_, client):
        wanted = {"subject": "ann", "scopes": ["sessions", "view"], "ttl_s": 60}
        made = await client.post("/v1/tokens", json=wanted, headers=bearer(KEY))
        assert made.status_code == 201 and made.headers["cache-control"] == "no-store"
        ann = bearer(made.json()["token"])
        assert made.json()["expires_in_s"] == 60 and made.json()["scopes"] == ["sessions", "view"]
        renewed = await client.post("/v1/tokens", json={}, headers=ann)
        assert renewed.json()["scopes"] == ["sessions", "view"]
        problem(await client.get("/metrics", headers=ann), 403, "not-allowed")
        assert (await client.get("/metrics", headers=bearer(KEY))).status_code == 200
        problem(await client.post(UPLOAD, headers=ann), 403, "not-allowed")
        session = (await client.post("/v1/sessions", headers=ann)).json()
        name = session["session"]
        bob = bearer((await minted(client, subject="bob"))["token"])
        problem(await client.get(f"/v1/sessions/{name}", headers=bob), 403, "not-allowed")
        viewer = bearer(session["viewer_token"])
        shown = (await client.get(f"/v1/sessions/{name}", headers=viewer)).json()
        assert shown["session"] == name
        problem(await client.delete(f"/v1/sessions/{name}", headers=viewer), 403, "not-allowed")
        problem(await client.post("/v1/sessions", headers=viewer), 403, "not-allowed")
        watching = bearer(session["token"])  # ann may not speak, so neither may its holder
        problem(await client.delete(f"/v1/sessions/{name}", headers=watching), 403, "not-allowed")
        assert (await client.delete(f"/v1/sessions/{name}", headers=ann)).status_code == 204
    for secret in (KEY, "s" * 40, made.json()["token"], session["token"]):
        assert secret not in caplog.text


async def minted(client, **fields):
    return (await client.post("/v1/tokens", json=fields, headers=bearer(KEY))).json()


async def test_a_renewed_token_may_do_less_and_never_more():
    async with serving(LOCKED) as (_, client):
        ann = bearer((await minted(client, subject="ann", scopes=["sessions", "view"]))["token"])

        async def renewed(who, **fields):
            return await client.post("/v1/tokens", json=fields, headers=who)

        for scopes in (["metrics"], ["view", "speak"]):
            detail = problem(await renewed(ann, scopes=scopes), 403, "not-allowed")
            assert scopes[-1] in detail
        problem(await renewed(ann, scopes=["fly"]), 400, "bad-request")
        less = (await renewed(ann, scopes=["view"])).json()
        assert less["scopes"] == ["view"] and less["session"] is None
        before, after = unchecked(ann["authorization"].split()[1]), unchecked(less["token"])
        assert after["scope"] == "view" and after["login"] == before["login"]
        viewer = bearer(less["token"])
        problem(await client.post("/v1/sessions", headers=viewer), 403, "not-allowed")
        problem(await renewed(viewer, scopes=["sessions"]), 403, "not-allowed")


async def test_a_token_is_renewed_for_a_session_that_its_holder_may_use():
    async with serving(replace(LOCKED, max_sessions=3)) as (_, client):
        ann, bob = [bearer((await minted(client, subject=s))["token"]) for s in ("ann", "bob")]
        first, second = [
            (await client.post("/v1/sessions", headers=ann)).json()["session"] for _ in range(2)
        ]

        async def renewed(who, **fields):
            return await client.post("/v1/tokens", json=fields, headers=who)

        problem(await renewed(bob, session=first), 403, "not-allowed")
        problem(await renewed(ann, session="none"), 404, "unknown-session")
        narrow = (await renewed(ann, session=first, scopes=["view"])).json()
        assert (narrow["session"], narrow["scopes"]) == (first, ["view"])
        token = bearer(narrow["token"])
        assert (await client.get(f"/v1/sessions/{first}", headers=token)).status_code == 200
        problem(await client.get(f"/v1/sessions/{second}", headers=token), 403, "not-allowed")
        problem(await renewed(token, session=second), 403, "not-allowed")
        for fields in ({}, {"session": first}, {"session": None}):
            assert (await renewed(token, **fields)).json()["session"] == first


async def test_a_viewer_asking_about_a_session_gets_no_right_to_speak():
    async with serving(LOCKED) as (_, client):
        session = (await client.post("/v1/sessions", headers=bearer(KEY))).json()
        name, viewer = session["session"], bearer(session["viewer_token"])
        shown = (await client.get(f"/v1/sessions/{name}", headers=viewer)).json()
        claims = unchecked(shown["token"])
        assert claims["scope"] == "view"


async def test_tokens_of_a_session_end_when_the_one_that_asked_can_no_longer_be_renewed():
    async with serving(LOCKED) as (app, client):
        first_s = int(time.time()) - MAX_LOGIN_S + 100
        token, _ = app.state.auth.issue("ann", PAGE_SCOPES, login_s=first_s)
        session = (await client.post("/v1/sessions", headers=bearer(token))).json()
        path = f"/v1/sessions/{session['session']}"
        shown = (await client.get(path, headers=bearer(session["token"]))).json()
        for answer in (session, shown):
            assert 90 < answer["expires_in_s"] <= 100
            for kind in ("token", "viewer_token"):
                assert unchecked(answer[kind])["login"] == first_s
        operator = (await client.get(path, headers=bearer(KEY))).json()
        assert operator["expires_in_s"] == LOCKED.token_ttl_s


async def test_one_sees_and_deletes_ones_own_portraits_only():
    async with serving(LOCKED) as (_, client):
        ann, bob = [
            bearer((await minted(client, subject=name))["token"]) for name in ("ann", "bob")
        ]
        made = await client.post(UPLOAD + "&label=Me", content=portrait_jpeg(), headers=ann)
        avatar = made.json()
        assert made.headers["location"] == f"/v1/avatars/{avatar['id']}"
        assert avatar["label"] == "Me" and not avatar["default"]

        async def listed(who):
            answer = await client.get("/v1/avatars", headers=who)
            return [one["id"] for one in answer.json()["avatars"]]

        assert avatar["id"] in await listed(ann) and avatar["id"] not in await listed(bob)
        address = f"/v1/avatars/{avatar['id']}"
        problem(await client.delete(address, headers=bob), 404, "unknown-avatar")
        problem(await client.delete("/v1/avatars/amber", headers=ann), 409, "default-avatar")
        assert (await client.get("/" + avatar["still"])).status_code == 200
        assert (await client.delete(address, headers=ann)).status_code == 204
        assert (await client.get("/" + avatar["still"])).status_code == 404
        other = (await client.post(UPLOAD, content=portrait_jpeg(), headers=ann)).json()
        address = f"/v1/avatars/{other['id']}"
        assert (await client.delete(address, headers=bearer(KEY))).status_code == 204
        problem(await client.delete(address, headers=bearer(KEY)), 404, "unknown-avatar")


async def test_a_token_for_one_session_is_for_nothing_else():
    async with serving(replace(LOCKED, max_sessions=3)) as (app, client):
        ann = bearer((await minted(client, subject="ann"))["token"])
        avatar = (await client.post(UPLOAD, content=portrait_jpeg(), headers=ann)).json()["id"]
        session = (await client.post("/v1/sessions", headers=ann)).json()
        name = session["session"]
        made = await minted(client, subject="ann", session=name, scopes=SCOPES)
        token = bearer(made["token"])
        for method, path in (
            ("POST", "/v1/sessions"),
            ("POST", UPLOAD),
            ("DELETE", f"/v1/avatars/{avatar}"),
            ("GET", "/metrics"),
        ):
            answer = await client.request(method, path, headers=token)
            assert "one session" in problem(answer, 403, "not-allowed")
        other = (await client.post("/v1/sessions", headers=ann)).json()["session"]
        for method in ("GET", "DELETE"):
            answer = await client.request(method, f"/v1/sessions/{other}", headers=token)
            problem(answer, 403, "not-allowed")
        assert (await client.delete(f"/v1/sessions/{name}", headers=token)).status_code == 204
        sdp = token | {"content-type": "application/sdp"}
        for path in ("/v1/whep", "/v1/whip"):  # no other session is created in its place
            problem(await client.post(path, content="v=0", headers=sdp), 404, "unknown-session")
        offer = {"type": "offer", "sdp": "v=0"}
        answer = await client.post("/v1/offer", json=offer, headers=token)
        problem(answer, 404, "unknown-session")
        assert [one.id for one in app.state.sessions] == [other]


async def test_a_token_for_one_session_sees_no_portrait_but_the_one_that_is_shown():
    async with serving(LOCKED) as (_, client):
        ann = bearer((await minted(client, subject="ann"))["token"])
        shown, hidden = [
            (await client.post(UPLOAD, content=portrait_jpeg((i, 90, 30)), headers=ann)).json()
            for i in (10, 200)
        ]
        defaults = list(BACKDROPS)
        listing = (await client.get("/v1/avatars", headers=ann)).json()["avatars"]
        assert [one["id"] for one in listing] == [*defaults, shown["id"], hidden["id"]]
        made = await client.post("/v1/sessions", json={"avatar": shown["id"]}, headers=ann)
        session = made.json()
        for token, name in (
            (session["viewer_token"], shown["images"]),  # viewers learn no id of an upload
            (session["token"], shown["id"]),
        ):
            listing = (await client.get("/v1/avatars", headers=bearer(token))).json()["avatars"]
            assert [one["id"] for one in listing] == [*defaults, name]
        await client.delete(f"/v1/sessions/{session['session']}", headers=ann)
        listing = (await client.get("/v1/avatars", headers=bearer(session["token"]))).json()
        assert [one["id"] for one in listing["avatars"]] == defaults


async def test_an_upload_needs_the_persons_consent():
    async with serving() as (_, client):
        sentence = (await client.get("/v1/config")).json()["consent"]
        for path in ("/v1/avatars", "/v1/avatars?consent=false"):
            detail = problem(
                await client.post(path, content=portrait_jpeg()), 400, "consent-missing"
            )
            assert sentence in detail
        answer = await client.post("/v1/avatars?consent=perhaps", content=portrait_jpeg())
        problem(answer, 400, "bad-request")


async def test_tokens_are_made_of_sound_wishes_only():
    async with serving(LOCKED) as (_, client):
        for body, detail in (
            ({"scopes": ["fly"]}, "scopes"),
            ({"scopes": "view"}, "scopes"),
            ({"scopes": [["view"]]}, "scopes"),
            ({"ttl_s": 5}, "ttl_s"),
            ({"ttl_s": True}, "ttl_s"),
            ({"subject": "x" * 200}, "subject"),
        ):
            answer = await client.post("/v1/tokens", json=body, headers=bearer(KEY))
            assert detail in problem(answer, 400, "bad-request")


async def test_named_origins_are_let_in_and_others_are_not():
    settings = Settings(allow_origins=("https://app.example",))
    async with serving(settings) as (_, client):
        friend = {"origin": "https://app.example"}
        answer = await client.post("/v1/sessions", headers=friend)
        assert answer.status_code == 201
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "location" in answer.headers["access-control-expose-headers"]
        ask = friend | {"access-control-request-method": "DELETE"}
        preflight = await client.options("/v1/sessions/x", headers=ask)
        assert preflight.status_code == 204
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        stranger = {"origin": "https://evil.example"}
        answer = await client.get("/v1/avatars", headers=stranger)
        assert "access-control-allow-origin" not in answer.headers
        problem(await client.post("/v1/sessions", headers=stranger), 403, "foreign-origin")
        problem(await client.options("/v1/sessions", headers=stranger), 403, "foreign-origin")


async def test_a_name_that_points_here_does_not_make_a_page_ours():
    async with serving() as (_, client):
        rebound = {"host": "evil.example:8080"}
        problem(await client.get("/v1/avatars", headers=rebound), 403, "foreign-origin")
    async with serving(LOCKED) as (_, client):
        named = bearer(KEY) | {"host": "talk.example"}
        assert (await client.get("/v1/avatars", headers=named)).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost:8080", True), ("127.0.0.1", True), ("[::1]:80", True), ("[::1]", True)]
    + [("localhost.evil.example", False), ("evil:80", False), ("", False)],
)
def test_which_hosts_are_this_machine(host, expected):
    assert is_local(host) is expected


async def test_sockets_ask_for_tokens_too_and_viewers_only_watch():
    with live(LOCKED) as (_, address):
        with pytest.raises(InvalidStatus) as refused:
            await join(address)
        assert json.loads(refused.value.response.body)["code"] == "token-missing"
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            session = (await http.post("/v1/sessions", headers=bearer(KEY))).json()
        names = ["letstalk.v1", "bearer." + session["viewer_token"]]
        viewer = await join(address, subprotocols=names)
        assert viewer.socket.subprotocol == "letstalk.v1"
        assert (await viewer.hear("session.ready"))["session"] == session["session"]
        await viewer.send({"type": "avatar.interrupt"})
        assert (await viewer.hear("session.error"))["code"] == "not-allowed"
        await viewer.send(bytes(320))
        assert (await viewer.hear("session.error", 2))["code"] == "not-allowed"
        speaker = await join(address, additional_headers=bearer(session["token"]))
        await speaker.send({"type": "session.close"})
        assert await viewer.ended() == 1000
        await speaker.ended()
