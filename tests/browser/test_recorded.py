"""The page says whether the server records it, before anything is said, and when that ends."""

import shutil

import pytest
from support.browser_tools import PAINTED, artefacts, live, needs_browser, running, visiting
from support.certificates import issue
from support.server_fakes import portrait_jpeg

pytest.importorskip("playwright.sync_api")
pytest.importorskip("c2pa")
pytestmark = needs_browser


def upload_text(page):
    """Return what the upload dialog says about where the photo is kept."""
    page.click("#add")
    image = {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": portrait_jpeg()}
    page.set_input_files("#file", image)
    text = page.inner_text("#upload-privacy")
    page.click("#upload-close")
    return text


def test_the_page_says_that_it_is_recorded_and_when_it_is_not_any_more(browser, tmp_path):
    keys, folder = issue(tmp_path), tmp_path / "recordings"
    chosen = {"record_folder": folder, "sign_cert": keys.chain, "sign_key": keys.key}
    command = [*PAINTED, *(f"{name}={value}" for name, value in chosen.items())]
    with running(command) as address:
        with visiting(browser, address) as page:
            live(page)
            assert page.inner_text("#recorded") == "Recorded, signed"
            page.screenshot(path=artefacts() / "recorded.png")
            assert "records its sessions" in upload_text(page)
        shutil.rmtree(folder)
        folder.write_text("no folder")
        with visiting(browser, address) as page:
            page.wait_for_selector("#recorded[data-failed]")
            assert page.inner_text("#recorded") == "Not recorded any more"
            live(page)


def test_a_page_that_is_not_recorded_does_not_say_so(browser, server):
    with visiting(browser, server) as page:
        live(page)
        assert page.is_hidden("#recorded")
        assert "never written to disk" in upload_text(page)
