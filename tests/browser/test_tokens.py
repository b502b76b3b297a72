"""Tokens of the page and of pages that embed the avatar: asked for again, renewed, kept."""

import jwt
import pytest
from support.browser_tools import live, needs_browser, visiting

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

LINK = jwt.encode({"iat": 0, "exp": 600}, "k" * 32)
"""A token that a clock which is right, or fast, takes for one that has expired."""
RENEWED = '{ token: "renewed", expires_in_s: 600 }'

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


SHORTEN_WAITS = """
() => {
  const later = window.setTimeout;
  window.setTimeout = (run, ms, ...given) => later(run, ms >= 10_000 ? 50 : ms, ...given);
  const timeout = AbortSignal.timeout;
  AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms >= 10_000 ? 50 : ms);
}
"""


def test_a_token_function_and_a_server_that_never_answer_are_asked_again(page):
    page.evaluate(SHORTEN_WAITS)
    page.evaluate(EMBED.replace("throw window.refused", "await new Promise(() => {})"))
    page.wait_for_function("avatar.state === 'reconnecting'")
    code, cause = page.evaluate("[avatar.error.code, avatar.error.cause.message]")
    assert (code, cause) == ("unreachable", "no answer within 10 s")
    with page.expect_request("**/v1/sessions"):
        page.route("**/v1/sessions", lambda route: None)
        page.evaluate("window.refused = null")
    page.wait_for_function("avatar.error.message === 'The server cannot be reached.'")
    assert page.evaluate("[avatar.state, avatar.error.code]") == ["reconnecting", "unreachable"]
    page.evaluate("avatar.close()")


RENEW = (
    """
async (link) => {
  const { Api } = await import("/api.js");
  const waitsS = [];
  let renew = null;
  window.setTimeout = (run, ms) => {
    waitsS.push(Math.round(ms / 1000));
    renew = run;
  };
  let status = 503; // of the first answer
  window.fetch = async () => {
    const body = JSON.stringify(RENEWED);
    const answer = new Response(body, { status, headers: { "content-type": "application/json" } });
    status = 201;
    return answer;
  };
  const api = new Api(undefined, link);
  await renew();
  await renew();
  api.close();
  api.open();
  const renewing = renew();
  api.close(); // while a renewal runs
  await renewing;
  const closed = waitsS.length;
  api.open();
  return [waitsS, closed, api.latestToken];
}
"""
).replace("RENEWED", RENEWED)


def test_a_token_is_renewed_by_the_servers_time_again_after_errors_and_while_it_is_open(page):
    waits_s, closed, latest = page.evaluate(RENEW, LINK)
    assert waits_s == [1, 5, 360, 360, 360], "at once, after an error, twice opened again"
    assert (closed, latest) == (4, "renewed")


ANSWER_RENEWALS = """
const ask = window.fetch;
window.renewals = 0;
window.fetch = async (address, given) => {
  if (!String(address).endsWith("v1/tokens")) return ask(address, given);
  window.renewals++;
  const headers = { "content-type": "application/json" };
  return new Response(JSON.stringify(RENEWED), { status: 201, headers });
};
""".replace("RENEWED", RENEWED)


def bearer_after_a_reload(page):
    with page.expect_request("**/v1/avatars*") as asked:
        page.reload()
    return asked.value.headers["authorization"].removeprefix("Bearer ")


def test_a_reload_goes_on_with_the_renewed_token_but_not_after_a_new_link(browser, server):
    with visiting(browser, server, f"#token={LINK}", init=ANSWER_RENEWALS) as page:
        live(page)
        page.wait_for_function("window.renewals > 0")
        assert bearer_after_a_reload(page) == "renewed"
        assert bearer_after_a_reload(page) == "renewed"
        page.evaluate("location.hash = 'token=new-link'")
        assert bearer_after_a_reload(page) == "new-link"
