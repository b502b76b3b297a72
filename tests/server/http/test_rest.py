"""The HTTP side: pages and pictures, and every refusal as a problem document in clear words."""

import io
import json
import logging
from contextlib import suppress

import numpy as np
from PIL import Image
from support.films import scene, write_film
from support.server_fakes import (
    BACKDROPS,
    Painter,
    Peer,
    group_jpeg,
    portrait_jpeg,
    problem,
    serving,
)

from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.portrait.consent import Consent
from letstalk_rt.portrait.library import AvatarLibrary
from letstalk_server.app import create_app
from letstalk_server.auth import LOCAL
from letstalk_server.session.avatar_service import LoadedModel
from letstalk_server.settings import Settings

UPLOAD = "/v1/avatars?consent=true"


def picture_bytes(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


async def test_the_page_is_served_whole_and_from_here_only():
    async with serving() as (_, client):
        page = await client.get("/")
        assert page.status_code == 200 and "AI" in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy
        for name in ("app.js", "style.css", "icon.svg"):
            answer = await client.get(f"/{name}")
            assert answer.status_code == 200
            assert "https://" not in answer.text and "@import" not in answer.text
        assert "//" not in page.text.replace("<!", "")


async def test_health_tells_how_many_places_are_taken():
    async with serving(Settings(max_sessions=3)) as (_, client):
        answer = (await client.get("/healthz")).json()
        assert answer == {"status": "ok", "sessions": 0, "max_sessions": 3}


async def test_default_avatars_come_with_their_pictures():
    async with serving() as (_, client):
        avatars = (await client.get("/v1/avatars")).json()["avatars"]
        assert [avatar["name"] for avatar in avatars] == list(BACKDROPS)
        for avatar in avatars:
            still = await client.get("/" + avatar["still"])
            image = Image.open(io.BytesIO(still.content))
            assert still.headers["content-type"] == "image/jpeg"
            assert image.size == (avatar["width"], avatar["height"])
            assert np.abs(np.array(image)[9, 9].astype(int) - BACKDROPS[avatar["name"]]).max() < 12
            thumbnail = await client.get("/" + avatar["thumbnail"])
            assert max(Image.open(io.BytesIO(thumbnail.content)).size) <= 192


async def test_an_uploaded_portrait_is_framed_and_can_be_seen():
    async with serving() as (_, client):
        answer = await client.post(UPLOAD, content=portrait_jpeg((10, 90, 30)))
        assert answer.status_code == 201
        body = answer.json()
        still = await client.get("/" + body["still"])
        image = np.array(Image.open(io.BytesIO(still.content)))
        assert image.shape[:2] == (body["height"], body["width"])
        assert np.abs(image[9, 9].astype(int) - (10, 90, 30)).max() < 12


async def test_of_several_faces_the_largest_is_taken_and_a_point_takes_another():
    group = group_jpeg([(10, 90, 30), (90, 10, 30)])
    async with serving() as (_, client):

        async def upload(query=""):
            answer = await client.post(UPLOAD + query, content=group)
            assert answer.status_code == 201, answer.text
            body = answer.json()
            picture = await client.get("/" + body["thumbnail"])
            return body, np.array(Image.open(io.BytesIO(picture.content)))[4, 4].astype(int)

        body, corner = await upload()
        assert "2 faces were found" in body["warnings"][0]
        assert body["faces"] == [[0.15, 0.3, 0.2, 0.45], [0.65, 0.3, 0.2, 0.45]]
        assert np.abs(corner - (10, 90, 30)).max() < 25
        left, top, width, height = body["faces"][1]
        body, corner = await upload(f"&face={left + width / 2},{top + height / 2}")
        assert not body["warnings"] and np.abs(corner - (90, 10, 30)).max() < 25
        for face, status in (("0.45,0.99", 422), ("0.5", 400), ("a,b", 400), ("2,0.5", 400)):
            answer = await client.post(f"{UPLOAD}&face={face}", content=group)
            assert answer.status_code == status, face


async def test_an_uploaded_film_becomes_an_avatar_that_moves(tmp_path):
    path = write_film(tmp_path / "a.mp4", scene(12, (200, 300)))
    async with serving(Settings(size=256)) as (app, client):
        answer = await client.post(UPLOAD, content=path.read_bytes())
        assert answer.status_code == 201, answer.text
        body = answer.json()
        assert (body["width"], body["height"]) == (256, 170)
        entry = app.state.avatar_service.find(LOCAL, body["id"])
        assert len(entry.portrait.footage.frames) == 12
        still = await client.get("/" + body["still"])
        assert Image.open(io.BytesIO(still.content)).size == (256, 170)


async def test_films_that_cannot_be_used_are_refused_in_clear_words(tmp_path):
    dark = write_film(tmp_path / "dark.mp4", [np.zeros((96, 128, 3), np.uint8)] * 12)
    short = write_film(tmp_path / "short.mp4", scene(3))
    broken = b"\x00\x00\x00\x18ftypisom" + bytes(100)
    async with serving() as (_, client):
        for data, code in (
            (dark.read_bytes(), "no-face"),
            (short.read_bytes(), "bad-portrait"),
            (broken, "bad-portrait"),
        ):
            answer = await client.post(UPLOAD, content=data)
            assert answer.status_code == 422 and code in answer.text


async def test_added_avatars_are_offered_and_prepared_once(tmp_path):
    library = AvatarLibrary(tmp_path)
    for name, data in (("ann", portrait_jpeg((90, 20, 90))), ("grey", GREY)):
        (tmp_path / f"{name}.png").write_bytes(data)
        with suppress(ConfigError, PortraitError):
            library.add(name, tmp_path / f"{name}.png", Consent.now("Anna"))
    paths = {entry.name: entry.path for entry in library.entries() if not entry.builtin}

    async def offered(pipeline):
        app = create_app(Settings(), lambda settings: LoadedModel(pipeline, paths, library))
        async with app.router.lifespan_context(app):
            return list(app.state.avatar_service.defaults)

    first, second = Painter(), Painter()
    assert await offered(first) == ["ann"], "a picture without a face is left out"
    second.finder.find_faces = lambda rgb: []  # would find nobody
    assert await offered(second) == ["ann"]


GREY = picture_bytes(np.full((200, 200, 3), 128, np.uint8))
WHOLE = portrait_jpeg()


BAD_PORTRAITS = [
    (b"", 422, "not-an-image"),
    (b"hello, I am a text", 422, "not-an-image"),
    (b"GIF89a", 422, "not-an-image"),
    (WHOLE[: len(WHOLE) // 2], 422, "image-damaged"),
    (GREY, 422, "no-face"),
    (portrait_jpeg(size=(100, 100)), 422, "bad-portrait"),
    (picture_bytes(np.full((8, 8, 3), 128, np.uint8)), 422, "bad-portrait"),
    (picture_bytes(np.full((501, 500), 128, np.uint8)), 422, "too-many-pixels"),
    (b"\xff" * 60_001, 413, "too-large"),
]


async def test_bad_portraits_are_refused_in_words():
    limits = Settings(max_upload_bytes=60_000, max_upload_pixels=250_000)
    async with serving(limits) as (_, client):
        for data, status, code in BAD_PORTRAITS:
            detail = problem(await client.post(UPLOAD, content=data), status, code)
            assert "Traceback" not in detail and "/tmp" not in detail
            after = await client.post(UPLOAD, content=portrait_jpeg())
            assert after.status_code == 201, "the next one is welcome"


async def test_an_upload_takes_another_name_and_a_default_avatar_does_not():
    async with serving() as (_, client):
        made = (await client.post(UPLOAD, content=portrait_jpeg())).json()
        path = f"/v1/avatars/{made['id']}"
        renamed = await client.patch(path, json={"label": " Ann "})
        assert renamed.json() == made | {"label": "Ann"}
        assert (await client.get(path)).json()["label"] == "Ann"
        for body in ({}, {"label": " "}, {"label": "x" * 61}, {"label": 5}, {"label": "a\nb"}):
            problem(await client.patch(path, json=body), 400, "bad-request")
        label = {"json": {"label": "Ann"}}
        problem(await client.patch("/v1/avatars/amber", **label), 409, "default-avatar")
        problem(await client.patch("/v1/avatars/none", **label), 404, "unknown-avatar")


async def test_only_the_latest_portraits_are_kept():
    async with serving(Settings(max_portraits=2)) as (_, client):
        bodies = [
            (await client.post(UPLOAD, content=portrait_jpeg((20 * i, 90, 30)))).json()
            for i in range(3)
        ]
        problem(await client.get("/" + bodies[0]["still"]), 404, "unknown-avatar")
        assert (await client.get("/" + bodies[2]["still"])).status_code == 200


async def valid_offer():
    peer = Peer()
    offer = await peer.offer()
    await peer.close()
    return offer


def without(offer, start):
    kept = [line for line in offer["sdp"].split("\r\n") if not line.startswith(start)]
    return offer | {"sdp": "\r\n".join(kept)}


def replaced(offer, old, new):
    assert old in offer["sdp"]
    return offer | {"sdp": offer["sdp"].replace(old, new)}


async def hostile_offers():
    offer = await valid_offer()
    sdp = offer["sdp"]
    yield offer | {"sdp": ""}
    yield offer | {"sdp": "\x00\xff" * 100}
    yield offer | {"sdp": "v=0\r\n" + "a=x\r\n" * 14_000}
    yield offer | {"sdp": sdp[: len(sdp) // 2]}
    yield offer | {"sdp": sdp + sdp[sdp.index("m=video") :]}
    yield offer | {"sdp": sdp + "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n" * 100}
    yield without(offer, "a=ice-ufrag")
    yield without(offer, "a=fingerprint")
    yield without(offer, "a=rtcp-mux")
    yield replaced(offer, "VP8", "XX8") | {"avatar": "amber"}
    yield replaced(offer, "opus/48000", "nopus/48000")
    yield replaced(offer, "UDP/TLS/RTP/SAVPF", "RTP/AVP\u2028")
    yield replaced(offer, "m=video ", "m=video -1e9 ")
    yield replaced(offer, "a=group:BUNDLE 0", "a=group:BUNDLE 77")


async def test_hostile_offers_are_refused_and_take_no_place(caplog):
    caplog.set_level(logging.DEBUG, logger="letstalk_server")
    async with serving(Settings(max_sessions=1, connect_timeout_s=0.1)) as (app, client):
        count = 0
        async for offer in hostile_offers():
            answer = await client.post("/v1/offer", json=offer)
            if answer.status_code != 201:  # a few are harmless: what is negotiated is enough
                problem(answer, 400, "bad-offer")
                count += 1
            for session in app.state.sessions:
                await app.state.sessions.close(session)
            assert len(app.state.sessions) == 0
        assert count >= 9
    assert "ufrag" not in caplog.text and "candidate" not in caplog.text


async def test_offers_must_be_complete():
    async with serving() as (_, client):
        for fields, status, code in (
            ({}, 400, "bad-request"),
            ({"type": "answer", "sdp": "v=0"}, 400, "bad-request"),
            ({"type": "offer", "sdp": 5}, 400, "bad-request"),
            ({"type": "offer", "sdp": "v=0", "avatar": {}}, 400, "bad-request"),
            ({"type": "offer", "sdp": "v=0", "avatar": "../secret"}, 404, "unknown-avatar"),
            ({"type": "offer", "sdp": "v=0", "portrait": "amber"}, 404, "unknown-portrait"),
        ):
            problem(await client.post("/v1/offer", json=fields), status, code)


async def test_bodies_must_be_json_objects():
    async with serving() as (_, client):
        as_json = {"content-type": "application/json"}
        for body in ("[]", "{", "[" * 50_000, "\x00"):
            answer = await client.post("/v1/offer", content=body, headers=as_json)
            problem(answer, 400, "bad-request")
        body = json.dumps({"type": "offer", "sdp": "v=0"})
        answer = await client.post(
            "/v1/offer", content=body, headers={"content-type": "text/plain"}
        )
        problem(answer, 400, "bad-request")
        answer = await client.post("/v1/offer", content="x" * 200_000, headers=as_json)
        problem(answer, 413, "too-large")


async def test_other_sites_are_refused():
    async with serving() as (_, client):
        for origin, status in (
            ("http://evil.example", 403),
            ("null", 403),
            ("http://localhost", 201),
        ):
            answer = await client.post(UPLOAD, content=portrait_jpeg(), headers={"origin": origin})
            assert answer.status_code == status


async def test_unknown_addresses_and_methods_are_problems_too():
    async with serving() as (_, client):
        problem(await client.get("/nowhere"), 404, "not-found")
        problem(await client.get("/overlay/../../app.py"), 404, "not-found")
        problem(await client.get("/v1/offer"), 405, "method-not-allowed")
        problem(await client.delete("/v1/sessions/none"), 404, "unknown-session")
        problem(await client.put("/v1/whip"), 405, "method-not-allowed")
        problem(await client.get("/v1/avatars/amber/secret.txt"), 404, "not-found")


async def test_a_bug_says_nothing_of_itself():
    pipeline = Painter()
    async with serving(pipeline=pipeline) as (_, client):
        pipeline.finder = None
        answer = await client.post(UPLOAD, content=portrait_jpeg())
        assert "NoneType" not in problem(answer, 500, "internal")
