"""Names of one's own avatars: asked for, guessed from the file, and changed later."""

import pytest
from support.browser_tools import artefacts, live, needs_browser, visiting
from support.server_fakes import portrait_jpeg

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}


def add(page, file):
    """Make an avatar of a photo of this name, without giving it another one."""
    page.click("#add")
    image = {"name": file, "mimeType": "image/jpeg", "buffer": portrait_jpeg((20, 140, 40))}
    page.set_input_files("#file", image)
    page.check("#consent")
    page.click("#upload-next")
    page.wait_for_selector("#upload[data-step=crop]")
    page.click("#upload-next")


def own_names(page):
    return page.locator(".own-avatar .label").all_inner_texts()


def test_an_upload_has_a_name_of_its_own_which_can_be_changed(browser, server):
    with visiting(browser, server, **PHONE) as page:
        live(page)
        assert page.is_hidden("#avatar-name"), "default avatars have theirs"
        for file in ("aunt_mary.jpg", "aunt mary.png", "IMG_1234.jpg"):
            add(page, file)
        assert own_names(page) == ["aunt mary", "aunt mary 2", "Yours"]
        page.locator("#avatar-name").fill("Uncle Bob")
        with page.expect_response(lambda answer: answer.request.method == "PATCH") as renamed:
            page.keyboard.press("Enter")
        assert renamed.value.json()["label"] == "Uncle Bob"
        assert own_names(page)[2] == "Uncle Bob"
        page.locator("#avatar-name").scroll_into_view_if_needed()
        page.screenshot(path=artefacts() / "avatar-name-phone-dark.png")
        page.reload()
        live(page)
        assert own_names(page)[2] == "Uncle Bob"
        while page.locator(".remove").count():
            page.click(".remove >> nth=0")


def test_a_name_that_was_not_taken_is_put_back(browser, server):
    with visiting(browser, server, expect=["v1/avatars"]) as page:
        live(page)
        add(page, "mary.jpg")
        page.route("**/v1/avatars/*", lambda route: route.abort())
        page.fill("#avatar-name", "Bob")
        page.keyboard.press("Enter")
        page.wait_for_selector("#notice:has-text('was not renamed')")
        assert own_names(page) == ["mary"] and page.input_value("#avatar-name") == "mary"
        page.unroute("**/v1/avatars/*")
        page.fill("#avatar-name", " ")
        page.keyboard.press("Enter")
        assert page.input_value("#avatar-name") == "mary", "no name is no name"
        page.click(".remove")
        page.wait_for_selector(".own-avatar", state="detached")
