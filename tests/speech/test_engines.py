"""Speech by real programs, by programs that write files, and by an endpoint over HTTP."""

import asyncio
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
import wave
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from support.packages import needs
from support.speech_endpoint import TONE_HZ, endpoint

from letstalk_rt.errors import ConfigError, DependencyError, SynthesisError, TextError
from letstalk_rt.speech import open_speech
from letstalk_rt.speech.commands import Command, run_command
from letstalk_rt.speech.openai import OpenAISpeech
from letstalk_rt.speech.piper import PiperSpeech
from letstalk_rt.speech.system import SystemSpeech, find_program

needs_espeak = needs("espeak-ng")
TEXT = "Hello there, this is a test."


async def spoken(speech, text=TEXT):
    chunks = [chunk async for chunk in speech.stream(text)]
    assert all(pcm.dtype == np.int16 and pcm.ndim == 1 for pcm, _ in chunks)
    rates = {rate for _, rate in chunks}
    assert len(rates) == 1
    return np.concatenate([pcm for pcm, _ in chunks]), rates.pop(), len(chunks)


def is_speech(pcm, rate):
    return pcm.size > rate / 2 and np.abs(pcm).max() > 3000


def wav(samples, rate=22_050, channels=1):
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return data.getvalue()


# The system's


@needs_espeak
async def test_espeak_speaks_and_streams():
    speech = SystemSpeech(platform="linux")
    assert speech.name == "espeak-ng"
    pcm, rate, chunks = await spoken(speech, f"{TEXT} " * 10)
    assert is_speech(pcm, rate) and rate == 22_050
    assert chunks > 3, "the first comes before the last is made"


@needs_espeak
async def test_a_voice_changes_the_sound_and_an_unknown_one_is_refused():
    pcm, _, _ = await spoken(SystemSpeech("de", platform="linux"))
    other, _, _ = await spoken(SystemSpeech("en-us", platform="linux"))
    assert pcm.size != other.size
    with pytest.raises(ConfigError, match="no voice 'nobody'"):
        SystemSpeech("nobody", platform="linux")
    with pytest.raises(ConfigError, match="not the name of a voice"):
        SystemSpeech("-w/tmp/x", platform="linux")


@needs_espeak
@pytest.mark.parametrize("text", ["[[h@'loU]] one", "<speak>one</speak>", "--help one", "-v de"])
async def test_text_is_read_as_text(text):
    pcm, rate, _ = await spoken(SystemSpeech(platform="linux"), text)
    assert np.abs(pcm).max() > 3000 and rate == 22_050


@needs_espeak
@pytest.mark.parametrize("count", [2, 3, 4, 5])
async def test_no_number_of_brackets_makes_phonemes_of_a_text(count):
    engine, phonemes = SystemSpeech(platform="linux"), "h@'loU"
    bracketed, _, _ = await spoken(engine, f"{'[' * count}{phonemes}{']' * count}")
    read_out, _, _ = await spoken(engine, f"{'(' * count}{phonemes}{')' * count}")
    np.testing.assert_array_equal(bracketed, read_out)


@needs_espeak
async def test_closing_stops_the_program():
    async with aclosing(SystemSpeech(platform="linux").stream(f"{TEXT} " * 300)) as chunks:
        await anext(chunks)
    assert await asyncio.wait_for(asyncio.to_thread(children), 5) == []


def children():
    """Return the programs that this process has started and that still run."""
    task = Path(f"/proc/{os.getpid()}/task")
    lists = (
        [(thread / "children").read_text() for thread in task.iterdir()] if task.exists() else []
    )
    started = [child for each in lists for child in each.split()]
    return [child for child in started if b"espeak" in Path(f"/proc/{child}/cmdline").read_bytes()]


def has_flite():
    return sys.platform == "linux" and find_program("linux", flite_only) is not None


def flite_only(name):
    return shutil.which(name) if name == "ffmpeg" else None


@pytest.mark.skipif(not has_flite(), reason="no ffmpeg with flite")
async def test_flite_speaks_where_there_is_no_espeak():
    speech = SystemSpeech(platform="linux", which=flite_only)
    assert speech.name == "flite"
    pcm, rate, _ = await spoken(speech)
    assert is_speech(pcm, rate)


async def test_say_writes_a_file_that_is_streamed_and_removed(tmp_path, monkeypatch):
    """A stand-in with the options of macOS's program checks what it is given."""
    program = tmp_path / "say"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, wave\n"
        "words = sys.argv[1:]\n"
        "assert words[:2] == ['-v', 'Anna'] and '--data-format=LEI16@22050' in words, words\n"
        "assert words[words.index('-f') + 1] == '-'\n"
        "count = len(sys.stdin.read().strip())\n"
        "with wave.open(words[words.index('-o') + 1], 'wb') as file:\n"
        "    file.setparams((1, 2, 22050, 0, 'NONE', ''))\n"
        "    file.writeframes(b'\\x00\\x20' * 1000 * count)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    speech = SystemSpeech("Anna", platform="darwin", which=lambda name: str(tmp_path / name))
    pcm, rate, _ = await spoken(speech)
    assert (rate, pcm.size, set(pcm)) == (22_050, 1000 * len(TEXT), {0x2000})
    assert not list(tmp_path.glob("letstalk-*"))


@pytest.mark.parametrize(
    "platform, what", [("linux", "espeak-ng"), ("darwin", "say"), ("win32", "PowerShell")]
)
def test_what_to_install_is_said(platform, what):
    with pytest.raises(DependencyError, match=what):
        SystemSpeech(platform=platform, which=lambda name: None)


async def test_a_program_that_fails_is_an_error():
    for script in ("exit 3", "exit 0", "echo no sound"):
        with pytest.raises(SynthesisError):
            await anext(run_command(Command("it", ["/bin/sh", "-c", script]), "text"))
    with pytest.raises(SynthesisError, match="cannot be started"):
        await anext(run_command(Command("it", ["/no/such/program"]), "text"))


# An endpoint


async def test_an_endpoint_is_asked_as_openai_documents_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    async with endpoint() as served:
        speech = OpenAISpeech("nova", base_url=served.url, model="tts-1")
        pcm, rate, chunks = await spoken(speech)
    assert served.requests == [
        (
            "/v1/audio/speech",
            {"model": "tts-1", "voice": "nova", "input": TEXT, "response_format": "pcm"},
        )
    ]
    assert served.keys == ["bearer sk-test"]
    assert rate == 24_000 and pcm.size == 24_000 and chunks > 1
    spectrum = np.abs(np.fft.rfft(pcm))
    assert spectrum.argmax() == TONE_HZ


@pytest.mark.parametrize("channels", [1, 2])
async def test_an_endpoint_may_answer_with_wav_or_another_rate(channels):
    body = wav(np.repeat(np.arange(8000), channels), 16_000, channels)
    async with endpoint(body=body, content_type="audio/wav") as served:
        pcm, rate, _ = await spoken(OpenAISpeech(base_url=served.url))
    assert rate == 16_000
    np.testing.assert_array_equal(pcm, np.arange(8000))
    async with endpoint(content_type="audio/pcm;rate=44100;channels=1") as served:
        assert (await spoken(OpenAISpeech(base_url=served.url)))[1] == 44_100


@pytest.mark.parametrize(
    "options, message",
    [
        ({"status": 401}, "refused the key"),
        ({"status": 404}, "address or model"),
        ({"status": 400}, "check the voice and the model"),
        ({"status": 429}, "too many requests"),
        ({"status": 500}, "answered 500"),
        ({"body": b"ID3" + bytes(999), "content_type": "audio/mpeg"}, "PCM or WAV"),
        ({"body": b'{"error": "x"}'}, "PCM or WAV"),
        ({"body": b"\xff\xfb\x90" + bytes(999)}, "PCM or WAV"),
        ({"body": wav([1, 2], 4000)}, "4000 Hz"),
        ({"body": wav([1, 2])[:30]}, "without samples|damaged"),
        ({"body": b""}, "no audio"),
    ],
)
async def test_what_an_endpoint_does_wrong_is_said_without_text_or_key(options, message):
    async with endpoint(**options) as served:
        speech = OpenAISpeech(base_url=served.url, api_key="sk-secret")
        with pytest.raises(SynthesisError, match=message) as failed:
            await spoken(speech)
    assert TEXT not in str(failed.value) and "sk-secret" not in str(failed.value)


async def test_a_dead_endpoint_is_an_error():
    with pytest.raises(SynthesisError, match=r"127\.0\.0\.1 failed \(ConnectError\)"):
        await spoken(OpenAISpeech(base_url="http://127.0.0.1:9/v1"))
    for url in ("localhost:8000", "ftp://host/v1", "http://"):
        with pytest.raises(ConfigError, match="base URL"):
            OpenAISpeech(base_url=url)


async def test_closing_ends_the_request():
    async with endpoint(seconds=60, hold_s=0.01) as served:
        async with aclosing(OpenAISpeech(base_url=served.url).stream(TEXT)) as chunks:
            await anext(chunks)
        await asyncio.wait_for(served.aborted.wait(), 10)
        assert served.sent_bytes < len(served.body)


# Piper and the choice


def test_piper_needs_a_voice_file_and_its_description(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "piper", sys)  # as if it were installed
    with pytest.raises(ConfigError, match="needs a voice"):
        PiperSpeech(None)
    with pytest.raises(ConfigError, match="needs a voice"):
        PiperSpeech("mary")
    voice = tmp_path / "mary.onnx"
    voice.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"mary\.onnx\.json does not exist"):
        PiperSpeech(voice)
    (tmp_path / "mary.onnx.json").write_text("[]")
    with pytest.raises(ConfigError, match="not the description"):
        PiperSpeech(voice)
    (tmp_path / "mary.onnx.json").write_text(json.dumps({"audio": {"sample_rate": 22_050}}))
    assert PiperSpeech(voice).name == "piper"


def test_piper_says_how_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "voice.onnx").write_bytes(b"")
    (tmp_path / "voice.onnx.json").write_text(json.dumps({"audio": {"sample_rate": 22_050}}))
    with pytest.raises(DependencyError, match=r"pip install '\.\[piper\]'"):
        PiperSpeech(tmp_path / "voice.onnx")


@needs_espeak
def test_the_engine_is_chosen_by_what_is_wanted_and_installed(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert open_speech().name == "espeak-ng"
    assert open_speech(base_url="http://localhost:1/v1").name == "openai"
    with pytest.raises((ConfigError, DependencyError), match="onnx"):
        open_speech(voice="voice.onnx")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DependencyError, match="apt install espeak-ng.*OPENAI_BASE_URL"):
        open_speech()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert open_speech().name == "openai"
    with pytest.raises(ConfigError, match="engine must be"):
        open_speech("festival")


@needs_espeak
async def test_bad_text_is_refused_before_anything_runs():
    for text in ("", "\U0001f600", "x" * 1_000_000):
        with pytest.raises(TextError):
            await anext(SystemSpeech(platform="linux").stream(text))
