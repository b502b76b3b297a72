"""The page in a real browser, whose worker is told to stop while it is live."""

from typing import Any

import httpx
from browsing import FLAGS, executable

from cluster_stage.cluster import OPERATOR, Cluster
from cluster_stage.visitors import worker_of

LIVE = 'body[data-state="live"][data-video]'
SESSION = "new URL(document.getElementById('overlay-link').value).searchParams.get('session')"
NOTE_STATES = """
() => {
  window.states = [];
  const note = () => {
    const { state, video } = document.body.dataset;
    window.states.push([performance.now() / 1000, state, video !== undefined]);
  };
  new MutationObserver(note).observe(document.body, {
    attributes: true,
    attributeFilter: ["data-state", "data-video"],
  });
}
"""
RESUMED = "window.states.some(([, state, video]) => state === 'live' && video)"


def resume_elsewhere(cluster: Cluster, proxy: str) -> dict[str, Any]:
    """Open the page through a proxy, stop its worker, and wait until it is live on another one.

    Returns:
        Both workers, and the time from the end of the picture to the next one, s.
    """
    from playwright.sync_api import sync_playwright

    url = cluster.url(proxy)
    fields = {"subject": "visitor-1", "scopes": ["sessions", "speak", "view", "avatars"]}
    token = httpx.post(f"{url}/v1/tokens", json=fields, headers=OPERATOR).json()["token"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        page = browser.new_page(bypass_csp=True)  # Playwright waits by `eval`
        page.set_default_timeout(90_000)
        page.goto(f"{url}/#token={token}")
        page.wait_for_selector(LIVE)
        page.wait_for_function(f"{SESSION} !== null")
        first = worker_of(page.evaluate(SESSION))
        page.evaluate(NOTE_STATES)
        cluster.stop(first)
        page.wait_for_function(RESUMED)
        second = worker_of(page.evaluate(SESSION))
        states = page.evaluate("window.states")
        browser.close()
    lost_s = next(at_s for at_s, state, video in states if state != "live" or not video)
    live_s = next(
        at_s for at_s, state, video in states if at_s > lost_s and state == "live" and video
    )
    return {"stopped": first, "resumed_on": second, "without_picture_s": round(live_s - lost_s, 2)}
