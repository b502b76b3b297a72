"""The Python examples speak a file with a real server and save a video, by both transports."""

import ast
import asyncio
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from support.browser_tools import PAINTED, RATE, running, write_wav
from support.chat_server import chat_model
from support.packages import needs
from websockets.asyncio.server import serve

from letstalk_rt.recording.file import Recording
from letstalk_rt.sources import FileSource

CLIENTS = Path(__file__).parents[2] / "client_examples" / "python"
SPOKEN_S = 2.0


@pytest.fixture(scope="module")
def server():
    """Address of a server with the painted avatar."""
    with running(PAINTED) as address:
        yield address


@pytest.fixture
def audio(tmp_path):
    t = np.arange(int(RATE * SPOKEN_S)) / RATE
    return write_wav(tmp_path / "voice.wav", np.sin(2 * np.pi * 200 * t) * 6000)


def run(script, *arguments):
    command = [sys.executable, str(CLIENTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def read_video(path):
    """Return the dark pixels of the mouth in each frame, the length and the audio of a video."""
    with av.open(str(path)) as video:
        decoded = list(video.decode(video=0))
        frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
    with av.open(str(path)) as video:
        audio = np.concatenate([f.to_ndarray().mean(0).ravel() for f in video.decode(audio=0)])
    height, width = frames[0].shape[:2]
    mouths = [f[height // 2 : -height // 8, width // 3 : -width // 3] for f in frames]
    return np.array([(mouth.max(-1) < 110).sum() for mouth in mouths]), decoded[-1].time, audio


def test_a_file_is_spoken_over_websocket_and_saved_as_video(server, audio, tmp_path):
    video = tmp_path / "video.mp4"
    done = run("speak_websocket.py", audio, video, "--url", server, "--avatar", "blue")
    assert done.returncode == 0, done.stderr
    mouth, length_s, heard = read_video(video)
    assert length_s > SPOKEN_S, length_s
    assert np.ptp(mouth) > 30, "the mouth opens and closes"
    assert np.abs(heard).max() > 0.1


def test_a_file_is_spoken_over_webrtc_and_saved_as_video(server, audio, tmp_path):
    video = tmp_path / "video.mp4"
    done = run("speak_webrtc.py", audio, video, "--url", server)
    assert done.returncode == 0, done.stderr
    mouth, length_s, heard = read_video(video)
    assert length_s > SPOKEN_S, length_s
    assert np.ptp(mouth) > 30, "the mouth opens and closes"
    assert np.abs(heard).max() > 0.05


@pytest.mark.parametrize("script", ["speak_websocket.py", "speak_webrtc.py"])
def test_an_error_is_one_line(script, audio, tmp_path):
    done = run(script, audio, tmp_path / "video.mp4", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["speak_websocket.py", "speak_webrtc.py"])
def test_the_reason_of_a_refusal_is_printed(server, script, audio, tmp_path):
    done = run(script, audio, tmp_path / "video.mp4", "--url", server, "--avatar", "nobody")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "avatar" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


async def test_a_lost_connection_is_an_error_that_says_so(monkeypatch):
    monkeypatch.syspath_prepend(str(CLIENTS))

    async def lose(connection):
        await connection.send(json.dumps({"type": "session.created"}))
        connection.transport.abort()

    client = importlib.import_module("letstalk_client")
    async with serve(lose, "127.0.0.1", 0, subprotocols=["letstalk.v1"]) as server:
        port = server.sockets[0].getsockname()[1]
        async with client.Client(f"http://127.0.0.1:{port}") as session:
            with pytest.raises(ConnectionError, match="connection to the server was lost"):
                async for _ in session:
                    pass


async def test_a_long_utterance_is_sent_at_most_20_s_ahead_of_its_playing(monkeypatch):
    monkeypatch.syspath_prepend(str(CLIENTS))
    received = []

    async def listen(connection):
        async for data in connection:
            received.append(data)

    def received_s():
        return sum(len(data) for data in received if isinstance(data, bytes)) / 2 / RATE

    async def at_least(seconds):
        for _ in range(6000):
            if received_s() >= seconds:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"only {received_s()} s arrived")

    client = importlib.import_module("letstalk_client")
    async with serve(listen, "127.0.0.1", 0, subprotocols=["letstalk.v1"]) as server:
        port = server.sockets[0].getsockname()[1]
        started_s = time.monotonic()
        async with client.Client(f"http://127.0.0.1:{port}") as session:
            await session.say(np.zeros(12 * RATE, np.int16))
            saying = asyncio.create_task(session.say(np.zeros(60 * RATE, np.int16)))
            await at_least(20)
            await asyncio.sleep(0.3)  # in which all could have arrived
            assert received_s() <= 20.4 + time.monotonic() - started_s, "of both utterances"
            assert not saying.done()
            await session.interrupt()
            await at_least(40)
            await asyncio.sleep(0.3)
            assert received_s() <= 40.8 + time.monotonic() - started_s
            saying.cancel()
            await asyncio.wait([saying])


@needs("espeak-ng")
async def test_a_spoken_question_is_answered_by_the_avatar(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pocketsphinx")
    monkeypatch.syspath_prepend(str(CLIENTS))
    voice_agent = importlib.import_module("voice_agent")
    question, video = tmp_path / "question.wav", tmp_path / "answer.mp4"
    words = ["espeak-ng", "-w", str(question), "what is the weather like"]
    await asyncio.to_thread(subprocess.run, words, check=True)
    async with chat_model("It is sunny and warm.", tokens_per_s=40) as (stub, url):
        await voice_agent.talk(FileSource(question), [Recording(video)], url, "small")
    said = capsys.readouterr().out
    assert "speaker='user'" in said and "It is sunny and warm." in said
    assert stub.requests[0]["messages"][-1]["content"].strip()
    mouth, length_s, heard = read_video(video)
    assert length_s > 2 and np.abs(heard).max() > 0.1, "the avatar speaks the answer"


def test_the_voice_agent_is_short():
    tree = ast.parse((CLIENTS / "voice_agent.py").read_text())
    lines = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    assert len(lines) - 1 < 20, "statements beside the docstring"


@needs("libportaudio2")
def test_a_missing_microphone_is_reported_in_one_line(server):
    pytest.importorskip("sounddevice")
    done = run("microphone.py", "--url", server, "--input", "no such microphone")
    assert done.returncode == 1
    assert (
        done.stderr.startswith("error: cannot open a microphone") and "Traceback" not in done.stderr
    )


def test_the_microphone_example_has_help():
    done = run("microphone.py", "--help")
    assert done.returncode == 0 and "--camera" in done.stdout
