"""What one subject may take: of the sessions, and of the memory of uploads."""

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import numpy as np
from support.films import scene, write_film
from support.live_server import join, live
from support.server_fakes import PaintedFinder, patient, portrait_jpeg, problem, serving

from letstalk_rt.portrait import image
from letstalk_rt.portrait.face_search import SEARCH_PX
from letstalk_server.auth import LOCAL
from letstalk_server.session import avatar_service

KEY = "k" * 40
LOCKED = patient(auth="on", api_key=KEY, secret="s" * 40, max_sessions=4, grace_s=600)


def bearer(token):
    return {"authorization": f"Bearer {token}"}


async def token_of(client, subject):
    made = await client.post("/v1/tokens", json={"subject": subject}, headers=bearer(KEY))
    return bearer(made.json()["token"])


@asynccontextmanager
async def live_with(settings):
    """Serve in a thread; yield an HTTP client and the address."""
    with live(settings) as (_, address):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            yield http, address


async def test_a_subject_takes_half_of_the_places_and_others_get_in():
    async with live_with(LOCKED) as (http, address):
        mallory, ann = [await token_of(http, name) for name in ("mallory", "ann")]
        open_ones = [await join(address, additional_headers=mallory) for _ in range(2)]
        for each in open_ones:
            await each.hear("session.ready")
        detail = problem(await http.post("/v1/sessions", headers=mallory), 429, "too-many-requests")
        assert "2 of 2 sessions" in detail
        for who in (ann, bearer(KEY)):
            assert (await http.post("/v1/sessions", headers=who)).status_code == 201
        for each in open_ones:
            await each.close()


async def test_a_session_without_connections_gives_way_to_a_new_one_of_its_subject():
    async with serving(LOCKED) as (app, client):
        ann = await token_of(client, "ann")
        names = [
            (await client.post("/v1/sessions", headers=ann)).json()["session"] for _ in range(4)
        ]
        left = [session.id for session in app.state.sessions if not session.is_ending]
        assert left == names[2:]


async def left(http, name, who):
    """Wait until the server has seen that a session has no connection any more."""
    for _ in range(500):
        if not (await http.get(f"/v1/sessions/{name}", headers=who)).json()["connections"]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the session still has a connection")


async def test_who_has_left_gives_way_to_a_new_session_of_the_same_subject_first():
    async with live_with(replace(LOCKED, max_sessions=2, max_subject_sessions=2)) as (
        http,
        address,
    ):
        bob, ann = [await token_of(http, name) for name in ("bob", "ann")]
        names = []
        for who in (bob, ann):
            made = (await http.post("/v1/sessions", headers=who)).json()
            names.append(made["session"])
            client = await join(address, f"session={made['session']}", additional_headers=who)
            await client.hear("session.ready")
            await client.close()
            await left(http, made["session"], who)
        assert (await http.post("/v1/sessions", headers=ann)).status_code == 201
        assert (await http.get(f"/v1/sessions/{names[0]}", headers=bob)).status_code == 200


def own_ids(service, subject):
    return [entry.id for entry in service.list_avatars(subject) if entry.owner == subject]


@asynccontextmanager
async def service_of(**options):
    async with serving(patient(**options)) as (app, _):
        yield app.state.avatar_service


async def test_uploads_of_one_subject_push_out_none_of_somebody_who_has_fewer():
    async with service_of(max_portraits=4) as service:
        first = [(await service.upload(portrait_jpeg(), "ann")).id for _ in range(2)]
        made = [(await service.upload(portrait_jpeg(), "mallory")).id for _ in range(8)]
        assert own_ids(service, "ann") == first
        assert own_ids(service, "mallory") == made[-2:]
        bob = await service.upload(portrait_jpeg(), "bob")
        assert own_ids(service, "bob") == [bob.id]
        assert len(own_ids(service, "ann")) + len(own_ids(service, "mallory")) == 3


async def test_the_own_portrait_that_was_used_last_stays():
    async with service_of(max_portraits=2) as service:
        first, second = [await service.upload(portrait_jpeg()) for _ in range(2)]
        service.find(LOCAL, first.id)
        third = await service.upload(portrait_jpeg())
        assert own_ids(service, "local") == [first.id, third.id]


async def test_films_of_one_subject_push_out_none_of_somebody_who_has_fewer(tmp_path, monkeypatch):
    def film(frames):
        return write_film(tmp_path / "a.mp4", scene(frames, (200, 300))).read_bytes()

    async with service_of(size=256) as service:
        ann = await service.upload(film(12), "ann")
        size = sum(map(len, ann.portrait.footage.frames))
        monkeypatch.setattr(avatar_service, "MAX_FOOTAGE_BYTES", 4 * size)
        still = await service.upload(portrait_jpeg(), "mallory")
        made = [(await service.upload(film(12), "mallory")).id for _ in range(5)]
        assert own_ids(service, "ann") == [ann.id]
        assert own_ids(service, "mallory") == [still.id, *made[-3:]], "pictures take no such memory"
        monkeypatch.setattr(avatar_service, "MAX_FOOTAGE_BYTES", 1)
        only = await service.upload(film(12), "bob")
        assert own_ids(service, "bob") == [only.id], "the newest one stays, however large"
        assert own_ids(service, "mallory") == [still.id] and not own_ids(service, "ann")


async def test_a_large_picture_is_scaled_beside_the_steps_of_sessions(monkeypatch):
    """Only its faces are found between them."""
    scaling, finding = [], []
    scale, find = image.prepare_portrait, PaintedFinder.find_faces
    here = threading.current_thread

    def prepare(*arguments, **options):
        scaling.append(here().name)
        return scale(*arguments, **options)

    def find_faces(finder, rgb):
        finding.append(here().name)
        return find(finder, rgb)

    async with service_of() as service:
        worker = await asyncio.wrap_future(service.worker.submit(lambda: here().name))
        monkeypatch.setattr(image, "prepare_portrait", prepare)
        monkeypatch.setattr(PaintedFinder, "find_faces", find_faces)
        entry = await service.upload(portrait_jpeg(), "ann")
    assert finding == [worker] and worker not in scaling and len(scaling) == 1
    assert entry.portrait.canvas.shape[2] == 3


async def test_faces_of_a_large_picture_are_looked_for_in_a_smaller_one(monkeypatch):
    """No session is held up while 40 million pixels go to the model's process."""
    searched, find = [], PaintedFinder.find_faces

    def find_faces(finder, rgb):
        searched.append(rgb.shape)
        return find(finder, rgb)

    async with service_of() as service:
        monkeypatch.setattr(PaintedFinder, "find_faces", find_faces)
        small = await service.upload(portrait_jpeg(size=(1600, 1200)), "ann")
        large = await service.upload(portrait_jpeg(size=(4800, 3600)), "ann")
    assert searched == [(1200, 1600, 3), (1536, SEARCH_PX, 3)]
    assert large.portrait.box == small.portrait.box
    assert large.portrait.canvas.shape == small.portrait.canvas.shape
    difference = np.abs(large.portrait.crop.astype(int) - small.portrait.crop)
    assert difference.mean() < 3, "the crop is the same part of the picture"
