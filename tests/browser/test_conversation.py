"""Talking with the avatar in a real browser: espeak-ng is the user, a stub the chat model."""

import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from support.browser_tools import (
    ALLOWED,
    PAINTED,
    ROOT,
    TRAINED,
    artefacts,
    launched,
    live,
    needs_browser,
    running,
    visiting,
    write_wav,
)

pytest.importorskip("playwright.sync_api")
pytest.importorskip("pocketsphinx")
pytestmark = [
    needs_browser,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng"),
]
RATE = 22_050
STUB = [sys.executable, str(ROOT / "benchmarks" / "chat_stub.py"), "--port", "0"]


@contextmanager
def chat_model(*arguments):
    """Run the stub of a chat model; yield its address."""
    with subprocess.Popen([*STUB, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


@pytest.fixture
def chat():
    with chat_model() as url:
        yield url


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    """A question, a pause, a second question while the avatar still answers."""

    def say(text):
        words = ["espeak-ng", "-v", "en-us", "-s", "150", "--stdout", text]
        done = subprocess.run(words, capture_output=True, check=True)
        return np.frombuffer(done.stdout[44:], np.int16) / 2

    parts = [np.zeros(2 * RATE), say("What is the weather like today?"), np.zeros(4 * RATE)]
    parts += [say("Stop. What is the time?"), np.zeros(60 * RATE)]
    path = tmp_path_factory.mktemp("microphone") / "questions.wav"
    return write_wav(path, np.concatenate(parts), RATE)


@pytest.fixture
def browser(microphone):
    with launched(microphone, ALLOWED) as browser:
        yield browser


def lines(page):
    """Return the transcript: `[speaker, words]` of each line."""
    line = "line => [line.dataset.speaker, line.textContent]"
    return page.evaluate(f"[...document.querySelectorAll('#transcript li')].map({line})")


def wait_for_caption(page, speaker):
    line = f"document.querySelector('.captions [data-speaker={speaker}]')"
    page.wait_for_function(f"{line}.textContent")


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_a_spoken_question_is_answered_and_the_answer_can_be_interrupted(browser, chat, look):
    options = {"color_scheme": "dark" if look == "dark" else "light"}
    if look == "phone":
        options["viewport"] = {"width": 390, "height": 844}
    command = [*TRAINED, "--chat-url", chat, "--chat-model", "stub"]
    with running(command) as address, visiting(browser, address, **options) as page:
        live(page)
        assert page.is_checked("#purpose input[value=with]")
        page.click("#talk")
        page.wait_for_function("document.getElementById('caption').textContent === 'Hearing you'")
        wait_for_caption(page, "user")
        page.wait_for_selector("body[data-speaking]")
        wait_for_caption(page, "avatar")
        page.screenshot(path=artefacts() / f"conversation-{look}.png")
        page.wait_for_function("document.querySelectorAll('#transcript li').length >= 4")
        page.screenshot(path=artefacts() / f"conversation-{look}-end.png", full_page=True)
        said = lines(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [speaker for speaker, _ in said[:4]] == ["user", "avatar", "user", "avatar"]
    assert "what" in said[0][1] and "I cannot look outside" in said[1][1]
    assert said[3][1].startswith("That is a good question.")


def test_a_typed_question_is_answered_and_prompt_and_voice_can_be_chosen(browser, chat):
    command = [*PAINTED, f"chat_url={chat}", "chat_model=stub"]
    with running(command) as address, visiting(browser, address) as page:
        live(page)
        page.select_option("#conversation-voice", "en-gb")
        page.fill("#conversation-prompt", "You are a gardener.")
        page.get_by_label("Text to say to the avatar").fill("How are you?")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelectorAll('#transcript li').length >= 2")
        assert lines(page)[0] == ["user", "How are you?"]
        page.click("text=Talk through it")
        assert page.is_hidden("#conversation")
        assert page.get_attribute("#say-text", "placeholder") == "Type what the avatar says"


def test_without_a_chat_model_the_page_says_in_one_line_how_to_get_it(browser):
    with running(PAINTED) as address, visiting(browser, address) as page:
        live(page)
        assert page.is_hidden("#purpose") and page.is_hidden("#conversation")
        assert "--chat-url URL --chat-model NAME" in page.inner_text("#purpose-hint")
        page.click("#talk")
        page.wait_for_selector("body[data-speaking]")


def test_a_chat_model_that_is_off_is_explained(browser):
    command = [*PAINTED, "chat_url=http://127.0.0.1:9/v1", "chat_model=stub"]
    with running(command) as address, visiting(browser, address) as page:
        live(page)
        page.fill("#say-text", "How are you?")
        page.keyboard.press("Enter")
        page.wait_for_selector("#notice:not([hidden])")
        assert "There is no answer." in page.inner_text("#notice")
