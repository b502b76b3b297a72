"""Texts of strangers are texts on the page: names, files, messages and pictures that hold markup.

The content security policy is off in these tests, so that markup that got into the page would run.
"""

import json

import pytest
from support.browser_tools import live, needs_browser, visiting
from support.server_fakes import portrait_jpeg

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

RUNS = "window.hit = (window.hit ?? 0) + 1"
MARKUP = f'"><img src=x onerror="{RUNS}">'
SCRIPT = f"</span><script>{RUNS}</script>"
SVG = f"""<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64" onload="{RUNS}">
<script>{RUNS}</script><rect width="64" height="64" fill="red"/></svg>"""


def is_untouched(page):
    """Return whether no markup of these tests is in the page, and none has run."""
    page.wait_for_timeout(200)  # a picture that is not there fails later
    strange = page.locator("img[src=x], script:not([src]), [onerror], [onload]").count()
    return page.evaluate("window.hit ?? 0") == 0 and strange == 0


def test_a_name_that_holds_markup_is_shown_as_it_is(browser, server):
    with visiting(browser, server) as page:
        live(page)
        before = page.locator("script:not([src])").count()
        assert before == 0, "the page has no scripts of its own in its text"
        page.click("#add")
        image = {"name": f"{MARKUP}.jpg", "mimeType": "image/jpeg", "buffer": portrait_jpeg()}
        page.set_input_files("#file", image)
        page.fill("#label", MARKUP)
        page.check("#consent")
        page.click("#upload-next")
        page.wait_for_selector("#upload[data-step=crop]")
        page.click("#upload-next")
        assert page.inner_text(".own-avatar .label") == MARKUP
        assert page.get_attribute(".remove", "aria-label") == f"Remove {MARKUP}"
        assert page.get_attribute("#still", "alt") == f"Portrait of {MARKUP}"
        page.fill("#avatar-name", SCRIPT)
        with page.expect_response(lambda answer: answer.request.method == "PATCH"):
            page.keyboard.press("Enter")
        page.reload()
        live(page)
        assert page.inner_text(".own-avatar .label") == SCRIPT
        assert is_untouched(page)
        page.click(".remove")


def test_what_a_server_or_a_file_says_is_no_markup(browser, server):
    with visiting(browser, server, expect=["v1/avatars"]) as page:
        live(page)
        problem = {"code": "bad-portrait", "title": MARKUP, "detail": MARKUP, "status": 422}

        def refuse(route):
            route.fulfill(
                status=422, content_type="application/problem+json", body=json.dumps(problem)
            )

        page.route("**/v1/avatars?*", refuse)
        page.click("#add")
        image = {"name": "mary.jpg", "mimeType": "image/jpeg", "buffer": portrait_jpeg()}
        page.set_input_files("#file", image)
        page.check("#consent")
        page.click("#upload-next")
        page.wait_for_selector("#upload[data-step=failed]")
        assert MARKUP in page.inner_text("#upload-error")
        page.click("#upload-close")
        sound = {"name": f"{MARKUP}.wav", "mimeType": "audio/wav", "buffer": b"no sound"}
        page.set_input_files("#audio-file", sound)
        page.wait_for_selector("#notice:not([hidden])")
        assert is_untouched(page)


def test_scripts_in_a_picture_for_the_background_do_not_run(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.click("#look summary")
        with page.expect_file_chooser() as chooser:
            page.select_option("#background", "picture")
        picture = {"name": "a.svg", "mimeType": "image/svg+xml", "buffer": SVG.encode()}
        chooser.value.set_files(picture)
        page.wait_for_selector("body[data-background=picture]")
        assert is_untouched(page)


def test_an_overlay_shows_a_name_that_holds_markup_as_it_is(browser, server):
    with visiting(browser, server) as page:
        live(page)
        overlay = page.context.new_page()
        overlay.goto(page.input_value("#overlay-link"))
        overlay.wait_for_selector('body[data-state="live"]')
        session = overlay.evaluate("new URL(location).searchParams.get('session')")
        page.evaluate(
            """async ([session, name]) => {
              const socket = new WebSocket(`ws://${location.host}/v1/ws?session=${session}`);
              const settings = { name, border_color: "red;background:url(//evil)", bg: "x" };
              const message = { type: "overlay.update", overlay: settings };
              await new Promise((done) => (socket.onopen = done));
              socket.send(JSON.stringify(message));
            }""",
            [session, MARKUP],
        )
        overlay.wait_for_selector("#name:not([hidden])")
        assert overlay.inner_text("#name") == MARKUP
        style = overlay.get_attribute("body", "style")
        assert "evil" not in style and "transparent" in style
        assert is_untouched(overlay)
        overlay.close()
