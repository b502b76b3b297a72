"""The background behind the avatar: blurred or a picture, on the page and in the overlay."""

import io

import numpy as np
import pytest
from PIL import Image
from support.browser_tools import AMBER, BLUE, CORNER_IS, artefacts, live, needs_browser, visiting

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
VIOLET = [150, 40, 200]
BACKDROP = """
(place) => {
  const canvas = document.getElementById("backdrop");
  const at = place.map((share, i) => Math.floor(share * [canvas.width, canvas.height][i]));
  return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
}
"""


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), tuple(colour)).save(buffer, "PNG")
    return {"name": "beach.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def stage(page):
    """Return the stage as it is seen, `(H, W, 3)`."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shown = page.locator("#stage").screenshot(animations="disabled")
    return np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).astype(int)


def colour_at(seen, across, down):
    height, width, _ = seen.shape
    return seen[int(down * height), int(across * width)]


def is_like(one, other):
    return np.abs(np.array(one) - other).max() < 40


def test_a_blur_leaves_no_halo_of_the_person_and_the_badge_stays(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.click("#look summary")
        page.select_option("#background", "blur")
        page.wait_for_selector("body[data-background=blur]")
        for place in ([0.05, 0.05], [0.5, 0.45], [0.3, 0.3]):
            seen = page.evaluate(BACKDROP, place)
            assert seen[3] == 255 and is_like(seen[:3], AMBER), (place, seen)
        seen = stage(page)
        assert is_like(colour_at(seen, 0.08, 0.08), AMBER)
        assert is_like(colour_at(seen, 0.5, 0.35), [224, 172, 140]), "the face is sharp"
        assert page.is_visible("#badge"), "that of the video went with its background"
        page.click("label.avatar:has-text('Blue')")
        page.wait_for_function(CORNER_IS, arg=BLUE)
        page.wait_for_function(f"(is => is([0.1, 0.1])[2] > 120)({BACKDROP})")
        assert is_like(colour_at(stage(page), 0.08, 0.08), BLUE)
        page.select_option("#background", "own")
        page.wait_for_selector("body:not([data-background])")
        assert page.is_hidden("#badge"), "that of the video is seen"


def test_a_picture_of_the_visitor_is_shown_behind_the_avatar_and_sent_to_nobody(browser, server):
    with visiting(browser, server, **PHONE) as page:
        live(page)
        page.click("#look summary")
        sent = []
        page.on("request", lambda request: sent.append(request.method))
        with page.expect_file_chooser() as chooser:
            page.select_option("#background", "picture")
        chooser.value.set_files(picture(VIOLET))
        page.wait_for_selector("body[data-background=picture]")
        assert "POST" not in sent
        page.evaluate("scrollTo(0, 0)")
        seen = stage(page)
        page.screenshot(path=artefacts() / "background-phone-dark.png")
        assert is_like(colour_at(seen, 0.08, 0.1), VIOLET)
        assert is_like(colour_at(seen, 0.5, 0.35), [224, 172, 140])
        letter = {"name": "letter.png", "mimeType": "image/png", "buffer": b"dear all"}
        page.set_input_files("#background-file", letter)
        page.wait_for_timeout(300)
        assert page.get_attribute("body", "data-background") == "picture", "the good one stays"


def test_the_overlay_blurs_the_background_too(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.click("#obs summary")
        page.select_option("select[name=bg]", "blur")
        overlay = page.context.new_page()
        overlay.set_viewport_size({"width": 400, "height": 400})
        overlay.goto(page.input_value("#overlay-link"))
        live(overlay)
        overlay.wait_for_selector("body[data-blurred]")
        assert is_like(overlay.evaluate(BACKDROP, [0.5, 0.45])[:3], AMBER)
        seen = np.asarray(Image.open(io.BytesIO(overlay.screenshot())).convert("RGB")).astype(int)
        assert is_like(seen[30, 30], AMBER) and is_like(seen[140, 200], [224, 172, 140])
        assert overlay.is_visible("#badge")
        page.select_option("select[name=bg]", "transparent")
        overlay.wait_for_selector("body:not([data-blurred])")
        overlay.close()
