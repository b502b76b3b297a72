"""The overlay for OBS, and the avatar embedded in a page of another site."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from support.browser_tools import (
    AMBER,
    CORNER_IS,
    PAINTED,
    live,
    needs_browser,
    running,
    visiting,
    watch_errors,
)

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

SQUARE = {"width": 400, "height": 400}
NEXT_FRAMES = """
() => new Promise((done) => {
  const video = document.getElementById("video");
  video.requestVideoFrameCallback(() => video.requestVideoFrameCallback(() =>
    requestAnimationFrame(() => requestAnimationFrame(done))));
})
"""
"""Resolves when two more frames of the video are drawn."""


def overlay_of(page, **changes):
    """Open the overlay at the address that the page shows, in a second tab."""
    link = page.input_value("#overlay-link")
    head, _, tail = link.partition("#")
    tab = page.context.new_page()
    tab.set_viewport_size(SQUARE)
    tab.errors = watch_errors(tab, link.partition("/overlay")[0])
    tab.goto(head + "".join(f"&{key}={value}" for key, value in changes.items()) + "#" + tail)
    live(tab)
    tab.wait_for_selector("body[data-avatar]")  # the matte is loaded
    return tab


def pixels(tab):
    """Return RGBA as OBS would receive it, `(H, W, 4)`."""
    tab.evaluate(NEXT_FRAMES)
    data = tab.screenshot(omit_background=True, animations="disabled")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)


def test_the_overlay_shows_the_person_without_background(browser, server):
    with visiting(browser, server) as page:
        live(page)
        tab = overlay_of(page, name="Amber", badge="on")
        seen = pixels(tab)
        assert (seen[:40, :60, 3] == 0).all() and (seen[:40, -60:, 3] == 0).all(), "background"
        assert (seen[190:260, 160:240, 3] > 250).all(), "face"
        assert tab.inner_text("#name") == "Amber"
        assert tab.is_visible("#badge"), "the server's badge was removed with the background"
        assert page.get_attribute("body", "data-state") == "live"
        assert tab.errors == []


def test_the_page_changes_the_overlay_while_it_runs(browser, server):
    with visiting(browser, server) as page:
        live(page)
        tab = overlay_of(page)
        page.click("#obs summary")
        page.select_option("select[name=bg]", "green")
        tab.wait_for_function(
            "getComputedStyle(document.body).backgroundColor === 'rgb(0, 177, 64)'"
        )
        assert np.abs(pixels(tab)[5, 5] - [0, 177, 64, 255]).max() < 3
        page.select_option("select[name=shape]", "circle")
        page.fill("input[name=name]", "Someone")
        page.keyboard.press("Enter")
        tab.wait_for_selector("body[data-shape=circle] #name:has-text('Someone')")
        page.select_option("select[name=bg]", "scene")
        tab.wait_for_selector("body[data-plain]")
        assert np.abs(pixels(tab)[16, 200, :3] - AMBER).max() < 40  # above the hair
        page.click("label.avatar:has-text('Blue')")
        tab.wait_for_function(CORNER_IS, arg=[40, 80, 160])


def test_position_size_and_border_are_set_in_the_address(browser, server):
    with visiting(browser, server) as page:
        live(page)
        settings = {"pos": "top-left", "size": 50, "bg": "%23102030", "border": 8}
        tab = overlay_of(page, **settings)
        assert tab.locator("#frame").bounding_box() == {"x": 0, "y": 0, "width": 200, "height": 200}
        seen = pixels(tab)
        assert np.abs(seen[2, 100, :3] - 255).max() < 3, "border"
        assert np.abs(seen[300, 300, :3] - [16, 32, 48]).max() < 3, "page"


@pytest.mark.parametrize("shape", ["none", "rounded", "squircle", "circle"])
@pytest.mark.parametrize("fill", ["transparent", "scene", "green"])
def test_the_badge_is_seen_in_every_shape_fill_and_size(browser, server, shape, fill):
    with visiting(browser, server) as page:
        live(page)
        tab = overlay_of(page, shape=shape, fill=fill)
        address = tab.url
        for place in (
            "&size=6",
            "&size=40&pos=top-left&flip=on",
            "&size=100",
            "&size=100&x=-60&y=70",
            "&size=300",
            "&size=400&pos=top&x=40",
        ):
            head, _, tail = address.partition("#")
            tab.goto("about:blank")
            tab.goto(f"{head}{place}#{tail}")
            live(tab)
            tab.wait_for_selector("body[data-video]")
            seen, box = pixels(tab), tab.locator("#badge").bounding_box()
            left, top = int(np.ceil(box["x"])), int(np.ceil(box["y"]))
            right, bottom = int(box["x"] + box["width"]), int(box["y"] + box["height"])
            assert 0 <= left < right <= 400 and 0 <= top < bottom <= 400, (place, box)
            assert right - left >= 50 and bottom - top >= 18, (place, box)
            part = seen[top:bottom, left:right]
            inside = part[(bottom - top) // 4 : -(bottom - top) // 4, (right - left) // 8 :]
            assert (inside[..., 3] > 230).mean() > 0.9, (place, "it is opaque")
            light = inside[..., :3].mean(-1)
            assert (light < 50).mean() > 0.4, (place, "its ground is dark")
            assert (light > 150).mean() > 0.05, (place, "its text is light")


def test_a_badge_that_is_switched_off_stays_away(browser, server):
    with visiting(browser, server) as page:
        tab = page.context.new_page()
        tab.goto(server + "overlay/?badge=off&shape=circle&fill=scene&size=30")
        tab.wait_for_selector("body[data-shape=circle]")
        assert tab.is_hidden("#badge")


def test_an_overlay_without_a_session_finds_that_of_the_page(browser, server):
    with visiting(browser, server) as page:
        live(page)
        session = page.evaluate(
            "new URL(document.getElementById('overlay-link').value).searchParams.get('session')"
        )
        tab = page.context.new_page()
        requests = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(server + "overlay/")
        live(tab)
        assert any(f"whep?session={session}" in url for url in requests)


EMBEDDING = """
<!doctype html><video id="video"></video>
<script type="module">
  import { LetsTalkAvatar } from "SERVERletstalk.js";
  const avatar = new LetsTalkAvatar(document.getElementById("video"), { avatar: "blue" });
  const events = (window.events = []);
  for (const type of ["state", "speaking", "idle", "finished", "interrupted", "selected"])
    avatar.addEventListener(type, ({ detail }) => events.push([type, detail]));
  window.avatar = avatar;
  document.body.dataset.url = avatar.api.url("");
  await avatar.connect();
  document.body.dataset.live = avatar.state;
</script>
"""
TONE = "Float32Array.from({ length: 16000 }, (_, i) => 0.2 * Math.sin(i / 8))"
INTERRUPT = f"""
async () => {{
  avatar.speak({TONE.replace("16000", "160000")});
  await new Promise((done) => avatar.addEventListener("speaking", done, {{ once: true }}));
  return [await avatar.interrupt(), await avatar.speak({TONE}, {{ sampleRate: 8000 }})];
}}
"""


def test_another_site_can_embed_the_avatar(browser):
    """As in docs/embedding.md: events, speak, interrupt, close."""
    site = "http://embed.test/"
    with running([*PAINTED, "allow_origins=http://embed.test"]) as address:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(60_000)
        html = EMBEDDING.replace("SERVER", address)
        page.route(site, lambda route: route.fulfill(body=html, content_type="text/html"))
        page.goto(site)
        page.wait_for_selector("body[data-live=live]")
        assert page.get_attribute("body", "data-url") == address
        page.wait_for_function(CORNER_IS, arg=[40, 80, 160])
        assert page.evaluate(f"avatar.speak({TONE})") is True
        page.wait_for_function("events.some(([type]) => type === 'finished')")
        names = [name for name, _ in page.evaluate("events")]
        assert names.index("speaking") < names.index("finished")
        # Only an idle avatar emits `speaking` again.
        page.wait_for_function("events.some(([type]) => type === 'idle')")
        interrupted, sent = page.evaluate(INTERRUPT)
        assert interrupted["droppedMs"] > 0 and sent is True
        stats = page.evaluate("avatar.stats()")
        assert stats["framesDecoded"] > 0 and stats["quality"] in (1, 2, 3, 4)
        page.evaluate("avatar.close()")
        states = [detail["state"] for name, detail in page.evaluate("events") if name == "state"]
        assert states == ["connecting", "live", "closed"]
        health = json.loads(page.evaluate(f"fetch('{address}healthz').then((a) => a.text())"))
        assert health["status"] == "ok"
        context.close()
