"""A full server: the page says who holds the places, waits in the queue, and takes over its own."""

import json

import pytest
from support.browser_tools import BLUE, CORNER_IS, artefacts, live, needs_browser, visiting
from support.live_server import live as serving
from support.server_fakes import patient

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
OVERFLOWS = """
() => [...document.querySelectorAll("#waiting *")]
  .filter((one) => one.checkVisibility())
  .filter((one) => {
    const box = one.getBoundingClientRect();
    const stage = document.getElementById("stage").getBoundingClientRect();
    return box.left < stage.left || box.right > stage.right || box.top < stage.top
      || box.bottom > stage.bottom;
  })
  .map((one) => one.outerHTML)
"""


@pytest.fixture
def full():
    """Address of a server with one place."""
    with serving(patient(max_sessions=1, grace_s=60)) as (_, address):
        yield f"http://{address}/"


def waits(page, *words):
    """Wait until the card says these words."""
    page.wait_for_selector('body[data-state="waiting"]')
    for each in words:
        page.wait_for_function(
            "(words) => document.getElementById('waiting').innerText.includes(words)", arg=each
        )
    return page


def test_a_second_visitor_waits_in_the_queue_and_starts_by_itself(browser, full):
    with visiting(browser, full) as holder:
        live(holder)
        with visiting(browser, full) as second, visiting(browser, full, **PHONE) as third:
            waits(second, "In use: 1 of 1 places", "somebody else", "You are next")
            assert second.inner_text("#status") == "Waiting"
            assert second.is_hidden("#take-over"), "it is not theirs"
            assert second.is_hidden("#notice") and second.is_disabled("#talk")
            waits(third, "You are number 2 in the queue")
            assert third.evaluate(OVERFLOWS) == []
            third.screenshot(path=artefacts() / "waiting-phone-dark.png")
            second.screenshot(path=artefacts() / "waiting-desktop.png")
            holder.goto("about:blank")
            live(second)
            assert second.is_hidden("#waiting")
            waits(third, "somebody else", "You are next")
        holder.goto(full)  # the fixture ends the session of the page that is shown
        live(holder)


GONE = {"code": "unknown-session", "detail": "The worker of this session is gone."}


def test_a_ticket_whose_worker_is_gone_is_replaced(browser, full):
    with visiting(browser, full) as holder, visiting(browser, full, expect=["v1/"]) as page:
        live(holder)
        lost = []

        def lose(route):
            lost.append(route.request.url)
            route.fulfill(
                status=404, content_type="application/problem+json", body=json.dumps(GONE)
            )

        page.route("**/v1/queue?session=*", lose)
        page.reload()
        waits(page, "somebody else")
        page.wait_for_timeout(1000)
        page.unroute("**/v1/queue?session=*")
        assert lost
        waits(page, "You are ")
        holder.evaluate("location.replace('about:blank')")
        live(page)
        holder.goto(full + "healthz")


REFUSED = """
async () => {
  const { LetsTalkAvatar } = await import("/letstalk.js");
  const avatar = new LetsTalkAvatar(document.createElement("video"), { reconnect: false });
  return avatar.connect().then(() => "live", ({ code }) => `${avatar.state}: ${code}`);
}
"""


def test_an_embedded_avatar_that_does_not_reconnect_does_not_wait(browser, full):
    with visiting(browser, full) as page:
        live(page)
        assert page.evaluate(REFUSED) == "failed: at-capacity"


def test_ones_own_session_in_another_tab_can_be_taken_over_and_back(browser, full):
    with visiting(browser, full) as first:
        live(first)
        first.click("label.avatar:has-text('Blue')")
        first.wait_for_function(CORNER_IS, arg=BLUE)
        second = first.context.new_page()
        second.goto(full)
        waits(second, "Held by your other tab.")
        assert second.get_attribute("#take-over", "aria-describedby") == "take-over-hint"
        second.screenshot(path=artefacts() / "waiting-own.png")
        second.click("#take-over")
        live(second)
        second.wait_for_function(CORNER_IS, arg=BLUE)
        assert second.is_checked("label.avatar:has-text('Blue') input"), "the avatar is the same"
        first.wait_for_selector('body[data-state="failed"]')
        assert "open in another tab" in first.inner_text("#failure")
        first.click("#retry")
        live(first)
        second.close()


def test_an_overlay_that_holds_the_place_is_named(browser, full):
    with visiting(browser, full) as page:
        live(page)
        overlay = page.context.new_page()
        overlay.goto(page.input_value("#overlay-link"))
        overlay.wait_for_selector('body[data-state="live"]')
        page.goto("about:blank")
        other = page.context.new_page()
        other.goto(full)
        waits(other, "Held by your overlay.")
        other.click("#take-over")
        live(other)
        assert overlay.get_attribute("body", "data-state") == "live"
        other.close()
        overlay.close()
        page.goto(full)
        live(page)


def test_an_overlay_says_that_the_places_are_in_use(browser, full):
    with visiting(browser, full) as page:
        live(page)
        with visiting(browser, full, "overlay/") as overlay:
            overlay.wait_for_selector("#failure:not([hidden])")
            assert "All places are in use" in overlay.inner_text("#failure")
