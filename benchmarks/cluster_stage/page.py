"""The page in a real browser, whose worker stops or is killed while it is live."""

import signal
from itertools import pairwise
from typing import Any

import httpx
from browsing import FLAGS, executable

from cluster_stage.cluster import OPERATOR, Cluster
from cluster_stage.visitors import worker_of

LIVE = 'body[data-state="live"][data-video]'
SESSION = "new URL(document.getElementById('overlay-link').value).searchParams.get('session')"
NOTE_FRAMES = """
() => {
  window.shown = [];
  const video = document.getElementById("video");
  const note = (now) => {
    window.shown.push(now / 1000);
    video.requestVideoFrameCallback(note);
  };
  video.requestVideoFrameCallback(note);
}
"""
RESUMED = f"(first) => document.querySelector('{LIVE}') && ({SESSION} ?? first) !== first"
AFTER_MS = 1000


def resume_elsewhere(cluster: Cluster, proxy: str, number: signal.Signals) -> dict[str, Any]:
    """Open the page through a proxy, end its worker, and wait until it is live on another one.

    Args:
        cluster: has two workers or more.
        proxy: name of the proxy.
        number: the signal that the worker gets.

    Returns:
        Both workers, and the longest time between two frames of the video, s.
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
        page.evaluate(NOTE_FRAMES)
        page.wait_for_function("window.shown.length > 25")
        session = page.evaluate(SESSION)
        cluster.stop(worker_of(session), number)
        page.wait_for_function(RESUMED, arg=session)
        page.wait_for_timeout(AFTER_MS)
        second = worker_of(page.evaluate(SESSION))
        shown = page.evaluate("window.shown")
        browser.close()
    gaps = [after - before for before, after in pairwise(shown)]
    return {
        "stopped": worker_of(session),
        "resumed_on": second,
        "without_picture_s": round(max(gaps), 2),
    }
