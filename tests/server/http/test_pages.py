"""The pages are served whole, from here only, and other sites may import the module."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from support.server_fakes import serving

from letstalk_server.http import pages

LINK = re.compile(r'(?:src|href)="(\.[^"#]+)"|from "(\.[^"]+)"')


async def crawl(client, start):
    """Follow the links of a page and its modules; gives the text of each file."""
    found, waiting = {}, [start]
    while waiting:
        address = waiting.pop()
        if address in found:
            continue
        answer = await client.get(address)
        assert answer.status_code == 200, address
        found[address] = answer.text
        for match in LINK.finditer(answer.text):
            waiting.append(str(answer.url.join(match[1] or match[2])).removeprefix("http://server"))
    return found


@pytest.mark.parametrize("start, count", [("/", 12), ("/overlay/", 8)])
async def test_every_file_that_a_page_needs_is_here(start, count):
    async with serving() as (_, client):
        found = await crawl(client, start)
        assert len(found) >= count, sorted(found)
        for address, text in found.items():
            assert "@import" not in text, address
            assert not re.search(r'(?:src|href)="(?:https?:)?//', text), address


async def test_every_file_of_the_folders_is_used():
    async with serving() as (_, client):
        used = {address.rpartition("/")[2] for address in await crawl(client, "/")}
        used |= {address.rpartition("/")[2] for address in await crawl(client, "/overlay/")}
        there = {
            path.name for name in ("browser", "overlay") for path in pages.folder(name).iterdir()
        }
        assert there - used == {"index.html"}


async def test_the_module_may_be_imported_by_other_sites():
    async with serving() as (_, client):
        answer = await client.get("/letstalk.js", headers={"origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["content-type"].startswith("text/javascript")
        assert answer.headers["cache-control"] == "no-cache"


async def test_the_overlay_is_found_with_its_query():
    async with serving() as (_, client):
        answer = await client.get("/overlay?session=abc&bg=green")
        assert answer.status_code in (307, 308)
        assert answer.headers["location"].endswith("/overlay/?session=abc&bg=green")


@pytest.mark.parametrize("address", ["/overlay/../app.py", "/browser/..%2f..%2fpyproject.toml"])
async def test_nothing_beside_the_pages_is_served(address):
    async with serving() as (_, client):
        assert (await client.get(address)).status_code == 404


async def test_each_avatar_has_a_matte_as_large_as_its_still():
    pytest.importorskip("cv2")
    async with serving() as (_, client):
        avatar = (await client.get("/v1/avatars")).json()["avatars"][0]
        matte, still = [
            Image.open(io.BytesIO((await client.get("/" + avatar[name])).content))
            for name in ("matte", "still")
        ]
        assert matte.mode == "L" and matte.size == still.size
        pixels = np.asarray(matte)
        height, width = pixels.shape
        assert pixels[:20, :20].max() < 20, "the wall"
        assert pixels[height // 2, width // 2] > 235, "the face"
