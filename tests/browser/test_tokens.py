"""Tokens of the page and of pages that embed the avatar: asked for again, renewed, kept."""

import pytest
from support.browser_tools import needs_browser, visiting

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

EMBED = """
async () => {
  const module = (window.module = await import("/letstalk.js"));
  window.refused = new TypeError("Failed to fetch");
  const token = async () => {
    if (window.refused) throw window.refused;
    return "a-token";
  };
  const video = document.createElement("video");
  window.avatar = new module.LetsTalkAvatar(video, { token });
  avatar.connect().catch(() => {});
}
"""


@pytest.fixture
def page(browser, server):
    """A page of the server's origin without a session."""
    with visiting(browser, server, "healthz") as page:
        yield page


def test_a_token_that_cannot_be_fetched_is_asked_for_again(page):
    page.evaluate(EMBED)
    page.wait_for_function("avatar.state === 'reconnecting'")
    code, cause = page.evaluate("[avatar.error.code, avatar.error.cause.message]")
    assert (code, cause) == ("unreachable", "Failed to fetch")
    page.evaluate("window.refused = null")
    page.wait_for_function("avatar.state === 'live'")
    page.evaluate("avatar.close()")


def test_an_error_of_the_token_function_is_final_if_it_says_so(page):
    page.evaluate(EMBED)
    page.wait_for_function("avatar.state === 'reconnecting'")
    page.evaluate("window.refused = new module.LetsTalkError('signed-out', 'You left.')")
    page.wait_for_function("avatar.state === 'failed'")
    assert page.evaluate("avatar.error.code") == "signed-out"
