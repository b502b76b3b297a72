"""Screenshots of every state of the page: desktop and phone, light and dark.

They are saved in `out/browser` (or `LETSTALK_ARTEFACTS`) for people to look at. The tests check
that nothing is cut off at the side, that no text overflows, and that text has enough contrast.
"""

import json

import pytest
from support.browser_tools import artefacts, live, needs_browser, visiting
from support.server_fakes import portrait_jpeg

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
VARIANTS = [(size, colour) for size in SIZES for colour in ("light", "dark")]

CUT_OFF = """
() => [...document.querySelectorAll("button, label, h2, p, dt, dd, summary, input")]
  .filter((one) => one.checkVisibility() && !one.closest(".hidden, .avatars, .chip"))
  .filter((one) => {
    const { left, right } = one.getBoundingClientRect();
    return left < -1 || right > innerWidth + 1 || one.scrollWidth > one.clientWidth + 2
      && getComputedStyle(one).overflow === "visible" && one.clientWidth > 0
      && one.tagName !== "INPUT";
  })
  .map((one) => one.outerHTML.slice(0, 120))
"""
LOW_CONTRAST = """
() => {
  const style = getComputedStyle(document.documentElement);
  const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((at) => channel(parseInt(hex.slice(at, at + 2), 16) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const pairs = [["--ink", "--background"], ["--ink", "--surface"], ["--soft", "--background"],
    ["--soft", "--surface"], ["--soft", "--raised"], ["--accent-ink", "--accent"],
    ["--bad", "--surface"]];
  return pairs.filter((pair) => contrast(...pair) < 4.5).map(String);
}
"""


class Screenshots:
    """Takes screenshots of one variant of the page, and collects what overflows in them."""

    def __init__(self, page, name):
        self._page, self._name = page, name
        self.overflowing = {}

    def take(self, state):
        path = artefacts() / f"{self._name}-{state}.png"
        self._page.screenshot(path=path, animations="disabled")
        if cut := self._page.evaluate(CUT_OFF):
            self.overflowing[state] = cut


def take_upload(page, screenshots):
    page.click("#add")
    screenshots.take("upload-pick")
    image = {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": portrait_jpeg((20, 140, 40))}
    page.set_input_files("#file", image)
    screenshots.take("upload-ask")
    page.check("#consent")
    page.click("#upload-next")
    page.wait_for_selector("#upload[data-step=crop]")
    screenshots.take("upload-crop")
    page.click("#upload-other")
    bad = {"name": "letter.jpg", "mimeType": "image/jpeg", "buffer": b"dear all"}
    page.set_input_files("#file", bad)
    page.check("#consent")
    page.click("#upload-next")
    page.wait_for_selector("#upload[data-step=failed]")
    screenshots.take("upload-failed")
    page.click("#upload-close")


def take_talking(page, screenshots):
    screenshots.take("live")
    page.click("#talk")
    page.wait_for_selector('body[data-mic="on"]')
    screenshots.take("talking")
    page.click("#mute")
    page.wait_for_selector('body[data-mic="muted"]')
    screenshots.take("muted")
    page.click("#talk")
    page.click("#talk")
    page.check("input[value=hold]", force=True)
    screenshots.take("hold")
    page.check("input[value=open]", force=True)


def take_panels(page, screenshots):
    page.click("#quality")
    page.wait_for_function("document.querySelectorAll('#stats dt').length > 5")
    screenshots.take("stats")
    page.keyboard.press("Escape")
    page.click("#look summary")
    page.locator("#look").scroll_into_view_if_needed()
    screenshots.take("look")
    page.click("#look summary")
    page.click("#obs summary")
    page.locator("#obs").scroll_into_view_if_needed()
    screenshots.take("obs")
    page.click("#obs summary")
    page.evaluate("scrollTo(0, 0)")
    letter = {"name": "letter.wav", "mimeType": "audio/wav", "buffer": b"dear all"}
    page.set_input_files("#audio-file", letter)
    page.wait_for_selector("#notice:not([hidden])")
    screenshots.take("notice")
    page.click("#notice-close")


def take_failures(page, screenshots):
    def refuse(route):
        body = json.dumps({"code": "token-expired", "detail": "The token has expired."})
        route.fulfill(status=401, content_type="application/problem+json", body=body)

    page.route("**/v1/offer", lambda route: route.abort())
    page.evaluate(HANG_UP)
    page.wait_for_selector('body[data-state="reconnecting"]')
    screenshots.take("reconnecting")
    page.unroute("**/v1/offer")
    page.route("**/v1/avatars*", refuse)
    page.reload()
    page.wait_for_selector("#failure:not([hidden])")
    screenshots.take("failed")


HANG_UP = """
async () => {
  const link = new URL(document.getElementById("overlay-link").value);
  const session = `v1/sessions/${link.searchParams.get("session")}`;
  const { connections } = await (await fetch(session)).json();
  const end = { method: "DELETE" };
  for (const { id } of connections) await fetch(`${session}/connections/${id}`, end);
}
"""


@pytest.mark.parametrize("size, colour", VARIANTS, ids=["-".join(one) for one in VARIANTS])
def test_no_state_of_the_page_overflows_or_lacks_contrast(browser, server, size, colour):
    width, height = SIZES[size]
    options = {
        "viewport": {"width": width, "height": height},
        "color_scheme": colour,
        "has_touch": size == "phone",
    }
    with visiting(browser, server, expect=["v1/"], **options) as page:
        screenshots = Screenshots(page, f"{size}-{colour}")
        screenshots.take("connecting")
        live(page)
        assert page.evaluate(LOW_CONTRAST) == []
        take_talking(page, screenshots)
        take_panels(page, screenshots)
        take_upload(page, screenshots)
        take_failures(page, screenshots)
    assert screenshots.overflowing == {}
