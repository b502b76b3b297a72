"""The page in a real browser: a fake microphone plays a file, and the received video is checked."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.browser_tools import (
    AMBER,
    BLUE,
    CORNER_IS,
    RATE,
    TRAINED,
    artefacts,
    live,
    needs_browser,
    running,
    split,
    visiting,
    wait_for_frames,
    watch_mouth,
    write_wav,
)
from support.server_fakes import portrait_jpeg

import letstalk_rt

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

WEIGHTS = Path(letstalk_rt.__file__).parent / "weights" / "tiny.safetensors"


def talk(page):
    """Start talking by keyboard, wait until the file was spoken, and return what was seen."""
    page.focus("#talk")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-speaking]")
    page.wait_for_function(SILENT_FOR_60_FRAMES)
    return page.evaluate("window.seen")


SILENT_FOR_60_FRAMES = """
() => {
  const first = window.seen.findIndex(([, , speaking]) => speaking);
  const last = window.seen.findLastIndex(([, , speaking]) => speaking);
  return first >= 0 && window.seen.length - last > 60;
}
"""


def shown_stats(page):
    """Return the statistics that the page shows."""
    page.click("#quality")
    page.wait_for_function("document.querySelectorAll('#stats dt').length > 5")
    names = page.eval_on_selector_all("#stats dt", "all => all.map(one => one.textContent)")
    values = page.eval_on_selector_all("#stats dd", "all => all.map(one => one.textContent)")
    return dict(zip(names, values, strict=True))


STATS = """
async () => {
  const report = await window.pc.getStats();
  const video = [...report.values()].find((s) => s.type === "inbound-rtp" && s.kind === "video");
  const { framesDecoded, framesDropped, freezeCount, jitter, framesPerSecond } = video;
  return { framesDecoded, framesDropped, freezeCount, jitter, framesPerSecond };
}
"""
KEEP_PEER_CONNECTION = """
const Native = RTCPeerConnection;
window.RTCPeerConnection = class extends Native {
  constructor(...given) { super(...given); window.pc = this; }
};
window.firstFrame = null;
addEventListener("DOMContentLoaded", () => document.getElementById("video")
  ?.requestVideoFrameCallback(() => (window.firstFrame = performance.now())));
"""


def test_the_avatar_speaks_what_the_microphone_records(browser, server):
    with visiting(browser, server, init=KEEP_PEER_CONNECTION) as page:
        page.wait_for_function("document.getElementById('still').complete")
        live(page)
        watch_mouth(page)
        moving, resting = split(talk(page))
        assert page.inner_text("#talk-label") == "Stop talking"
        stats = page.evaluate(STATS) | {"first_frame_ms": page.evaluate("window.firstFrame")}
        shown = shown_stats(page)
    (artefacts() / "stats.json").write_text(json.dumps(stats | {"shown": shown}, indent=1))
    assert len(moving) > 10 and len(resting) > 10, (len(moving), len(resting))
    assert moving.mean() > 4 * resting.mean(), (moving.mean(), resting.mean())
    assert stats["framesDecoded"] > 50 and stats["framesPerSecond"] > 10, stats
    assert "256 × 256" in shown["Video"], shown
    # The first words after opening are not measured, so there may be no delay yet.
    assert re.fullmatch(r"speak to measure|\d+ ms", shown["Voice to lips"]), shown


WITHOUT_HEAD_MOTION = """
const ask = window.fetch;
window.fetch = (address, given) => {
  if (given?.method === "POST" && String(address).endsWith("v1/sessions")) {
    const body = JSON.parse(given.body);
    body.options = { ...body.options, motion: { head_motion: false, blinks_per_min: 0 } };
    given = { ...given, body: JSON.stringify(body) };
  }
  return ask(address, given);
};
"""


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the model is not trained yet")
def test_the_embedded_model_moves_the_mouth(browser):
    # Head motion would move the mouth in silence too, so it is switched off here.
    with running(TRAINED) as address, visiting(browser, address, init=WITHOUT_HEAD_MOTION) as page:
        live(page)
        watch_mouth(page)
        moving, resting = split(talk(page))
        page.screenshot(path=artefacts() / "trained.png")
    assert len(moving) > 10 and len(resting) > 10, (len(moving), len(resting))
    assert moving.mean() > 1.5 * resting.mean(), (moving.mean(), resting.mean())


SKEW = """
async () => {
  const video = document.getElementById("video");
  const context = new AudioContext();
  await context.resume();
  const analyser = new AnalyserNode(context, { fftSize: 4096 });
  context.createMediaStreamSource(video.srcObject).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const eye = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  window.flashes = [];
  window.beeps = [];
  let isBright = false, quietSince = 0;
  const look = (now, frame) => {
    eye.drawImage(video, 0, 0, 1, 1);
    const bright = Math.min(...eye.getImageData(0, 0, 1, 1).data) > 200;
    if (bright && !isBright) window.flashes.push(frame.expectedDisplayTime);
    isBright = bright;
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
  setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    const now = performance.now();
    const first = samples.findIndex((value) => Math.abs(value) > 0.2);
    if (first < 0) return;
    const at = now - ((samples.length - first) / context.sampleRate) * 1000;
    if (at - quietSince > 400) window.beeps.push(at);
    quietSince = now;
  }, 10);
}
"""


def beeps(count):
    """Return PCM with a beep of 200 ms each second."""
    t = np.arange(RATE) / RATE
    second = np.sin(2 * np.pi * 440 * t) * (t < 0.2) * 0.7 * 32_767
    return np.concatenate([np.zeros(RATE // 2), np.tile(second, count)]).astype(np.int16)


def play(page, path):
    page.set_input_files("#audio-file", path)
    page.wait_for_selector("#playing:not([hidden])")


def test_audio_and_video_of_a_file_are_in_sync(browser, server, tmp_path):
    count = 8
    audio = write_wav(tmp_path / "beeps.wav", beeps(count))
    with visiting(browser, server) as page:
        live(page)
        page.evaluate(SKEW)
        play(page, audio)
        assert page.inner_text("#playing-name") == "beeps.wav"
        page.wait_for_function(f"window.flashes.length >= {count - 1}")
        page.wait_for_selector("#playing", state="hidden")
        flashes, heard = page.evaluate("[window.flashes, window.beeps]")
    nearest = [min(heard, key=lambda at: abs(at - flash)) - flash for flash in flashes[1:]]
    skew_ms = {"p50": float(np.median(nearest)), "all": nearest}
    (artefacts() / "skew.json").write_text(json.dumps(skew_ms, indent=1))
    assert abs(skew_ms["p50"]) < 150, skew_ms


def test_interrupt_and_mute_take_effect_at_once(browser, server, tmp_path):
    audio = write_wav(tmp_path / "long.wav", np.tile(beeps(1)[RATE // 2 :], 20))
    with visiting(browser, server) as page:
        live(page)
        assert page.is_disabled("#interrupt")
        play(page, audio)
        page.wait_for_selector("body[data-speaking]")
        page.keyboard.press("Escape")
        page.wait_for_selector("body:not([data-speaking])")
        assert page.is_hidden("#playing")
        watch_mouth(page)
        wait_for_frames(page, 15)
        assert not any(speaking for _, _, speaking in page.evaluate("window.seen"))
        page.click("#talk")
        page.wait_for_selector('body[data-mic="on"]')
        page.click("#mute")
        page.wait_for_selector('body[data-mic="muted"]')
        assert page.inner_text("#mute-label") == "Unmute"


def test_push_to_talk_records_only_while_the_space_bar_is_held(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.check("input[value=hold]", force=True)
        page.evaluate("document.activeElement.blur()")
        page.keyboard.down(" ")
        page.wait_for_selector('body[data-mic="on"]')
        assert page.inner_text("#talk-label") == "Listening"
        page.keyboard.up(" ")
        page.wait_for_selector('body[data-mic="muted"]')
        assert page.inner_text("#talk-label") == "Hold to talk"


def test_avatars_can_be_switched_added_with_consent_and_removed(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.wait_for_function(CORNER_IS, arg=AMBER)
        page.click("label.avatar:has-text('Blue')")
        page.wait_for_function(CORNER_IS, arg=BLUE)
        page.click("#add")
        green = (20, 140, 40)
        image = {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": portrait_jpeg(green)}
        page.set_input_files("#file", image)
        assert page.is_disabled("#upload-next"), "consent comes first"
        page.fill("#label", "Me")
        page.check("#consent")
        page.click("#upload-next")
        page.wait_for_selector("#upload[data-step=crop]")
        crop, preview = (
            page.locator(f"#{name}").bounding_box() for name in ("crop", "preview-image")
        )
        assert 0.5 < crop["width"] / preview["width"] <= 1.6
        page.screenshot(path=artefacts() / "crop.png")
        page.click("#upload-next")
        page.wait_for_function(CORNER_IS, arg=list(green))
        assert page.is_checked("label.avatar:has-text('Me') input:focus"), (
            "not lost with the dialog"
        )
        page.click(".remove")
        page.wait_for_function(CORNER_IS, arg=AMBER)
        assert page.locator(".avatar", has_text="Me").count() == 0


SMALL = """
() => [...document.querySelectorAll("button, summary, select, label:has(input), input[type=text]")]
  .filter((one) => one.checkVisibility())
  .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
  .filter(([, { width, height }]) => width < 44 || height < 44)
  .map(([html]) => html)
"""


def test_fingers_find_targets_of_44_px(browser, server):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visiting(browser, server, **phone) as page:
        live(page)
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert page.evaluate(SMALL) == []


def session_of(page):
    return page.input_value("#overlay-link").partition("session=")[2].partition("&")[0]


def test_a_reload_resumes_the_session_and_a_second_tab_has_its_own(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.click("label.avatar:has-text('Blue')")
        page.wait_for_function(CORNER_IS, arg=BLUE)
        first = session_of(page)
        page.reload()
        live(page)
        assert session_of(page) == first
        page.wait_for_function(CORNER_IS, arg=BLUE)
        with visiting(browser, server) as other:
            live(other)
            assert session_of(other) != first
            other.wait_for_function(CORNER_IS, arg=AMBER)
        assert page.get_attribute("body", "data-state") == "live"


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(browser, server):
    with visiting(browser, server) as page:
        live(page)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, video, a")]
              .filter((one) => one.checkVisibility() && !one.closest("[aria-hidden=true]"))
              .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim()
                || one.labels?.[0]?.textContent.trim()))
              .map((one) => one.outerHTML)"""
        )
        assert nameless == []
        reached = set()
        for _ in range(24):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
        assert {
            "quality",
            "talk",
            "audio-toggle",
            "play-file",
            "avatar",
            "add",
            "mode",
        } <= reached, reached
        page.click("#talk")
        page.wait_for_selector('body[data-mic="on"]')
        page.click("#mute")
        for name in ("Unmute", "Muted", "Sound on"):
            assert page.get_by_role("button", name=name, exact=True).count() == 1, name
        assert page.locator("[aria-pressed]").count() == 0, "the names tell the state"


def test_the_page_does_not_violate_its_security_policy(browser, server):
    with visiting(browser, server, bypass_csp=False) as page:
        messages = []
        page.on("console", lambda message: messages.append(message.text))
        page.reload()
        live(page)
        page.click("#talk")
        page.wait_for_selector('body[data-mic="on"]')
        assert not [text for text in messages if "Security Policy" in text]
