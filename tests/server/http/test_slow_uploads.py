"""Uploads that stall or trickle: they hold up their own subject, and only for a while."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import httpx
import pytest
from support.live_server import live
from support.server_fakes import portrait_jpeg, problem

from letstalk_server.http import request_reading
from letstalk_server.session.limits import UploadPlaces
from letstalk_server.settings import Settings

KEY = "k" * 40
LOCKED = Settings(auth="on", api_key=KEY, secret="s" * 40)
UPLOAD = "/v1/avatars?consent=true"


async def token_of(http, subject):
    answer = await http.post(
        "/v1/tokens", json={"subject": subject}, headers={"authorization": f"Bearer {KEY}"}
    )
    return {"authorization": f"Bearer {answer.json()['token']}"}


class Upload:
    """An upload whose body is sent as the test says."""

    @classmethod
    async def begin(cls, address, who, size):
        self = cls()
        host, port = address.split(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        head = f"POST {UPLOAD} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {size}\r\n"
        await self.send(head + f"authorization: {who['authorization']}\r\n\r\n")
        return self

    async def send(self, data):
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def answer(self):
        """Return status and headers of the answer, and whether the connection was closed."""
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()
        return int(head.split()[1]), head


async def test_stalled_uploads_hold_up_their_own_subject_only(monkeypatch, caplog):
    monkeypatch.setattr(request_reading, "STALL_S", 60.0)
    with live(LOCKED) as (_, address):
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=20) as http:
            mallory, ann = [await token_of(http, name) for name in ("mallory", "ann")]
            stalled = [await Upload.begin(address, mallory, 1_000_000) for _ in range(4)]
            answers = [asyncio.create_task(each.answer()) for each in stalled]
            made = await http.post(UPLOAD, content=portrait_jpeg(), headers=ann)
            assert made.status_code == 201
            for refused in islice(asyncio.as_completed(answers, timeout=30), 3):
                assert (await refused)[0] == 429
            for each, waiting in zip(answers, stalled, strict=True):
                waiting.writer.close()
                if not each.done():
                    with pytest.raises(asyncio.IncompleteReadError):
                        await each
    assert not caplog.records, "somebody who goes away is no failure of the server"


async def test_a_body_that_trickles_is_given_up_and_one_that_is_slow_is_not(monkeypatch):
    monkeypatch.setattr(request_reading, "STALL_S", 1.0)
    with live(LOCKED) as (_, address):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            mallory, ann = [await token_of(http, name) for name in ("mallory", "ann")]
            trickling = await Upload.begin(address, mallory, 1_000_000)
            answer = asyncio.create_task(trickling.answer())
            while not answer.done():
                with suppress(ConnectionError):
                    await trickling.send(b"x")
                await asyncio.sleep(0.05)
            status, head = answer.result()
            assert status == 408 and "connection: close" in head
            picture = portrait_jpeg().ljust(60_000, b"\0")  # what follows a JPEG is ignored
            slow = await Upload.begin(address, ann, len(picture))
            for begin in range(0, len(picture), 5000):
                await slow.send(picture[begin : begin + 5000])
                await asyncio.sleep(0.15)
            assert (await slow.answer())[0] == 201


async def test_a_subject_uploads_again_when_an_upload_has_failed():
    with live(LOCKED) as (_, address):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            ann = await token_of(http, "ann")
            for content, status in ((b"text", 422), (portrait_jpeg(), 201)):
                made = await http.post(UPLOAD, content=content, headers=ann)
                assert made.status_code == status


async def test_a_full_server_takes_no_more_bodies_into_memory():
    with live(replace(LOCKED, auth="off")) as (app, address):
        app.state.upload_places = UploadPlaces(1)
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            slow = await Upload.begin(address, {"authorization": "none"}, 1000)
            while (answer := await http.post(UPLOAD, content=b"text")).status_code == 422:
                continue  # the first one has not come yet
            problem(answer, 503, "at-capacity")
            await slow.send(bytes(1000))
            assert (await slow.answer())[0] == 422
            assert (await http.post(UPLOAD, content=portrait_jpeg())).status_code == 201
