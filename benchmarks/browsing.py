"""Headless Chromium on a page of a benchmark, which a server of ours seems to serve."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def executable() -> str:
    """Return the path of the browser.

    Raises:
        SystemExit: It is missing.
    """
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise SystemExit("Chromium is missing; install it with: apt-get install chromium")


@contextmanager
def browsing(
    address: str, body: str, modules: Mapping[str, Path], flags: Sequence[str] = ()
) -> Iterator[Any]:
    """Open a page at a server's address; yield it.

    Args:
        address: of the server, `http://HOST:PORT`.
        body: HTML of the page.
        modules: scripts that the page loads from the server's root, by name.
        flags: further flags of the browser.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=[*FLAGS, *flags])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: print(message.text, file=sys.stderr))
        page.on("pageerror", lambda error: print(error, file=sys.stderr))
        page.route("**/bench", lambda route: route.fulfill(body=body, content_type="text/html"))
        for name, path in modules.items():
            page.route(f"**/{name}", _serving(path))
        page.goto(f"{address}/bench")
        yield page
        browser.close()


def _serving(path: Path) -> Callable[[Any], None]:
    return lambda route: route.fulfill(path=path, content_type="text/javascript")
