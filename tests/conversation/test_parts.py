"""Chat models and recognisers: over real HTTP, and in a real process."""

import asyncio
import email
import io
import logging
import os
import shutil
import signal
import subprocess
import wave

import numpy as np
import pytest
from chat_stub import serving
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from support.chat_server import chat_model

from letstalk_rt.audio.resample import Resampler
from letstalk_rt.conversation import recogniser_worker
from letstalk_rt.conversation.openai_chat import MAX_TOOL_ROUNDS, OpenAIChat
from letstalk_rt.conversation.openai_recogniser import OpenAIRecogniser
from letstalk_rt.conversation.parts import open_chat, open_recogniser
from letstalk_rt.conversation.recogniser_process import ProcessRecogniser
from letstalk_rt.errors import ChatError, ConfigError, RecognitionError

QUESTION = [{"role": "user", "content": "Hello"}]
SECRET = "sk-secret-of-the-operator"
NOBODY = "http://127.0.0.1:9/v1"
TOOL = {"type": "function", "function": {"name": "time", "parameters": {}}}
needs_sphinx = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng")


async def text_of(chat, messages=None):
    return [piece async for piece in chat.answer(list(messages or QUESTION))]


async def test_an_answer_comes_piece_by_piece(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    caplog.set_level(logging.DEBUG, logger="letstalk_rt")
    async with chat_model("Hello to you, too.") as (stub, url):
        assert await text_of(open_chat(url + "/", "small")) == ["Hello", " to", " you,", " too."]
    assert stub.requests == [{"model": "small", "stream": True, "messages": QUESTION}]
    assert stub.keys == [f"Bearer {SECRET}"]
    assert SECRET not in caplog.text and "Hello" not in caplog.text


async def test_who_stops_reading_stops_the_model():
    async with chat_model("word " * 1000, tokens_per_s=200) as (stub, url):
        stream = OpenAIChat(url, "small").answer(list(QUESTION))
        assert await anext(stream) == "word"
        await stream.aclose()
        for _ in range(500):
            if stub.aborted:
                break
            await asyncio.sleep(0.01)
        assert stub.aborted == 1


def call(**function):
    return {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}


async def test_a_tool_is_run_and_its_result_answered():
    called = []

    async def run(name, arguments):
        called.append((name, arguments))
        return "noon"

    async with chat_model(call(name="time", arguments='{"zone": 1}'), "It is noon.") as (stub, url):
        messages = list(QUESTION)
        chat = open_chat(url, "small", tools=[TOOL], on_tool_call=run)
        assert "".join([piece async for piece in chat.answer(messages)]) == "It is noon."
    assert called == [("time", {"zone": 1})]
    assert stub.requests[0]["tools"] == [TOOL]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[2] == {"role": "tool", "tool_call_id": "c1", "content": "noon"}
    assert stub.requests[1]["messages"] == messages


async def test_a_tool_that_fails_tells_the_model_and_loops_end():
    async def run(name, arguments):
        raise OSError("no clock")

    async with chat_model(call(name="time", arguments="{")) as (stub, url):
        with pytest.raises(ChatError, match="called tools"):
            await text_of(OpenAIChat(url, "small", tools=[TOOL], on_tool_call=run))
    assert len(stub.requests) == MAX_TOOL_ROUNDS
    assert "JSONDecodeError" in stub.requests[1]["messages"][-1]["content"]


OWN = {"type": "function", "function": {"name": "own", "parameters": {}}}


async def test_more_tools_are_run_beside_those_of_the_program():
    called = []

    async def run(name, arguments):
        called.append(("own", name))
        return "own"

    async def run_more(name, arguments):
        called.append(("more", name))
        return "more"

    calls = [call(name=name, arguments="{}") for name in ("time", "own", "nobody")]
    async with chat_model(*calls, "Done.") as (stub, url):
        chat = OpenAIChat(url, "small", tools=[OWN], on_tool_call=run)
        more = chat.with_tools([TOOL], run_more)
        messages = list(QUESTION)
        assert "".join([piece async for piece in more.answer(messages)]) == "Done."
        assert await text_of(chat)
    assert called[:2] == [("more", "time"), ("own", "own")]
    assert [body["tools"] for body in stub.requests[:2]] == [[OWN, TOOL]] * 2
    assert stub.requests[-1]["tools"] == [OWN], "the chat model itself has not changed"


async def test_a_model_that_takes_no_tools_answers_without_those_it_may_do_without(caplog):
    async def run(name, arguments):
        raise AssertionError("it is not called")

    async with chat_model("Hello.", refuses_tools=True) as (stub, url):
        chat = OpenAIChat(url, "small")
        for _ in range(2):  # two conversations
            assert "".join(await text_of(chat.with_tools([TOOL], run))) == "Hello."
        with pytest.raises(ChatError, match="answered 400"):
            await text_of(OpenAIChat(url, "small", tools=[TOOL], on_tool_call=run))
    assert ["tools" in body for body in stub.requests] == [True, False, False, True]
    assert caplog.text.count("takes no tools") == 1


async def test_a_server_that_fails_with_and_without_tools_has_failed():
    async def run(name, arguments):
        raise AssertionError("it is not called")

    async with chat_model(status=500) as (stub, url):
        with pytest.raises(ChatError, match="500"):
            await text_of(OpenAIChat(url, "small").with_tools([TOOL], run))
        with pytest.raises(ChatError):
            await text_of(OpenAIChat(url, "small").with_tools([TOOL], run))
    assert ["tools" in body for body in stub.requests] == [True, False] * 2, "nothing was learnt"


def test_tools_need_a_callback():
    with pytest.raises(ConfigError, match="on_tool_call"):
        OpenAIChat(NOBODY, "small", tools=[TOOL])


@pytest.mark.parametrize(
    "status, reason", [(401, "OPENAI_API_KEY"), (404, "check the URL and the model"), (500, "500")]
)
async def test_a_refusal_says_what_to_do(status, reason, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    async with chat_model(status=status) as (_, url):
        with pytest.raises(ChatError, match=reason) as failure:
            await text_of(OpenAIChat(url, "small"))
    assert SECRET not in str(failure.value) and "Hello" not in str(failure.value)


async def test_a_server_that_is_off_or_something_else_says_so():
    with pytest.raises(ChatError, match="cannot be reached"):
        await text_of(OpenAIChat(NOBODY, "small"))
    with pytest.raises(ConfigError, match="not an address"):
        OpenAIChat("localhost:11434", "small")

    async def other(request):
        return JSONResponse({})

    app = Starlette(routes=[Route("/v1/chat/completions", other, methods=["POST"])])
    async with serving(app) as url:
        with pytest.raises(ChatError, match="not OpenAI's interface"):
            await text_of(OpenAIChat(url, "small"))


# Recognisers


async def chunks(pcm, size=1600):
    for start in range(0, len(pcm), size):
        yield pcm[start : start + size]


def speech(text):
    words = ["espeak-ng", "-v", "en-us", "-s", "150", "--stdout", text]
    done = subprocess.run(words, capture_output=True, check=True)
    resampler = Resampler(22_050)
    pcm = np.frombuffer(done.stdout[44:], np.int16)
    pcm = np.concatenate([resampler.push(pcm), resampler.flush()]) / 2
    return (np.concatenate([np.zeros(8000), pcm, np.zeros(8000)]) * 32_767).astype(np.int16)


async def test_an_utterance_is_sent_as_a_wav_file_with_its_language():
    sent = {}

    async def transcribe(request):
        head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
        for part in email.message_from_bytes(head + await request.body()).get_payload():
            name = part.get_param("name", header="content-disposition")
            sent[name] = part.get_payload(decode=True)
        with wave.open(io.BytesIO(sent.pop("file"))) as file:
            sent["pcm"] = np.frombuffer(file.readframes(10**9), "<i2")
            sent["rate"] = file.getframerate()
        return JSONResponse({"text": " Hello there. "})

    pcm = np.arange(5000, dtype=np.int16)
    app = Starlette(routes=[Route("/v1/audio/transcriptions", transcribe, methods=["POST"])])
    async with serving(app) as url:
        recogniser = open_recogniser(url=url, model="whisper-large", language="de")
        assert [text async for text in recogniser.transcribe(chunks(pcm))] == [" Hello there. "]
        await recogniser.aclose()
    assert sent["model"] == b"whisper-large" and sent["language"] == b"de"
    assert sent["rate"] == 16_000 and np.array_equal(sent["pcm"], pcm)


async def test_an_endpoint_that_refuses_or_is_off_says_so():
    with pytest.raises(RecognitionError, match="cannot be reached"):
        async for _ in OpenAIRecogniser(NOBODY).transcribe(chunks(np.zeros(10, np.int16))):
            pass
    async with serving(Starlette()) as url:
        with pytest.raises(RecognitionError, match="check the URL and the model"):
            async for _ in OpenAIRecogniser(url).transcribe(chunks(np.zeros(10, np.int16))):
                pass


@needs_sphinx
async def test_pocketsphinx_understands_word_by_word_in_a_process_of_its_own():
    pytest.importorskip("pocketsphinx")
    recogniser = open_recogniser()
    try:
        pcm = speech("what is the weather like")
        texts = [text async for text in recogniser.transcribe(chunks(pcm))]
        assert len(texts) > 2 and "weather" in texts[-1], texts
        again = [text async for text in recogniser.transcribe(chunks(pcm))]
        assert again[-1] == texts[-1]
    finally:
        await recogniser.aclose()


@needs_sphinx
async def test_an_utterance_that_is_abandoned_does_not_disturb_the_next_one():
    pytest.importorskip("pocketsphinx")
    recogniser = open_recogniser()
    try:
        held = asyncio.Event()

        async def endless():
            yield speech("what is the weather like")
            await held.wait()

        stream = recogniser.transcribe(endless())
        assert "weather" in await anext(stream)
        await stream.aclose()
        texts = [text async for text in recogniser.transcribe(chunks(speech("hello")))]
        assert texts and "weather" not in " ".join(texts)
    finally:
        await recogniser.aclose()


def child_of(program):
    done = subprocess.run(["pgrep", "-f", "-P", str(os.getpid()), program], capture_output=True)
    return int(done.stdout.split()[0])


async def test_a_process_that_dies_is_an_error_and_is_started_again():
    pytest.importorskip("pocketsphinx")
    recogniser = open_recogniser()
    silence = np.zeros(16_000, np.int16)
    try:
        await recogniser.start()
        os.kill(child_of("recogniser_worker"), signal.SIGKILL)
        with pytest.raises(RecognitionError, match="has ended"):
            async for _ in recogniser.transcribe(chunks(silence)):
                pass
        assert [text async for text in recogniser.transcribe(chunks(silence))][-1] == ""
    finally:
        await recogniser.aclose()
        await recogniser.aclose()


async def test_a_recogniser_that_cannot_be_loaded_says_why(tmp_path):
    for words, reason in ((["ears"], "no recogniser 'ears'"), (["whisper", "x"], "no folder 'x'")):
        recogniser = ProcessRecogniser(words[0], words)
        with pytest.raises(RecognitionError, match=reason):
            await recogniser.start()


def test_a_recogniser_is_chosen_by_what_is_given(tmp_path):
    assert isinstance(open_recogniser(url=NOBODY), OpenAIRecogniser)
    with pytest.raises(ConfigError, match="one of auto, openai"):
        open_recogniser("ears")
    with pytest.raises(ConfigError, match="URL of its endpoint"):
        open_recogniser("openai")


def test_what_the_first_pass_of_pocketsphinx_understood_is_not_lost():
    class Decoder:
        hypothesis = type("Hypothesis", (), {"hypstr": "can you tell me"})()

        def hyp(self):
            return self.hypothesis

        def end_utt(self):
            self.hypothesis = None

    sphinx = object.__new__(recogniser_worker.Sphinx)
    sphinx._decoder = Decoder()
    assert sphinx.end() == "can you tell me"
