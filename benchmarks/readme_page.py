"""Takes the README's screenshot of the page: an avatar in the midst of a sentence.

    python benchmarks/readme_page.py               # writes docs/page.webp

Serves the page as `letstalk demo` does, and opens it in a headless Chromium whose microphone is a
sentence of espeak-ng. Needs both programs, and playwright from the extra `dev`.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from readme_picture import ROOT, speak

SENTENCE = "Hello! I am one portrait and your voice. Speak, and I will speak with you right away."
WIDTH, HEIGHT = 1200, 780
MOUTH = (370, 360, 480, 470)  # left, top, right, bottom: where the default avatars have theirs
FLAGS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
SPEAKING = 'document.body.hasAttribute("data-speaking")'


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page, talk to it, keep what it looks like."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--avatar", default="Mira", help="label of the avatar (%(default)s)")
    parser.add_argument("--shots", type=int, default=12, help="to choose from (%(default)s)")
    parser.add_argument("--settle-s", type=float, default=6.0, help="before it (%(default)s)")
    parser.add_argument("--quality", type=int, default=88, help="of the WebP (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "page.webp")
    options = parser.parse_args(argv)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is missing; install it with: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, serving() as address, sync_playwright() as web:
        speech = speak(SENTENCE, "en-us", Path(folder))
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={speech}"]
        browser = web.chromium.launch(executable_path=chromium, args=flags)
        page = open_page(browser, address, options.avatar)
        page.wait_for_timeout(1000 * options.settle_s)
        page.click("#talk")
        page.wait_for_function(SPEAKING, timeout=60_000)
        image = widest_open([shot(page) for _ in range(options.shots)])
        browser.close()
    image.save(options.output, quality=options.quality, method=6)
    print(f"{options.output}: {image.size}, {options.output.stat().st_size / 1024:.0f} kB")
    return 0


@contextmanager
def serving() -> Iterator[str]:
    """Run the server on a free port; yields its address."""
    command = [
        sys.executable,
        "-m",
        "letstalk_rt.cli.main",
        "demo",
        "--port",
        "0",
        "--max-sessions",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address, "the server did not start"
        try:
            yield address.group()
        finally:
            process.terminate()


def open_page(browser: Browser, address: str, avatar: str) -> Page:
    """Return the page with the avatar of that label shown live."""
    page = browser.new_page(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", bypass_csp=True
    )
    page.goto(address)
    page.wait_for_function("document.getElementById('video').currentTime > 0", timeout=60_000)
    page.get_by_text(avatar, exact=True).click()
    return page


def shot(page: Page) -> Image.Image:
    """Return what the page looks like now; a fifth of a second passes."""
    page.wait_for_timeout(200)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def widest_open(shots: Sequence[Image.Image]) -> Image.Image:
    """Return the screenshot whose mouth region differs most from the median of all."""
    mouths = np.stack([np.asarray(image.crop(MOUTH), np.float32) for image in shots])
    apart = np.abs(mouths - np.median(mouths, 0)).mean((1, 2, 3))
    return shots[int(apart.argmax())]


if __name__ == "__main__":
    sys.exit(main())
