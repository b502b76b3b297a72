"""An OpenAI-compatible server that hears, thinks and says what it was told to.

    python canned_openai.py 8000

It speaks with espeak-ng, if that is installed, and beeps otherwise.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from io import BytesIO

import av
import numpy as np
from aiohttp import web

RATE_HZ = 24_000
ANSWERS = (
    "Hello! I am a talking avatar, and my brain is a list of four sentences.",
    "That is interesting. Please tell me more.",
    "I would think so too, if I could think.",
    "You may interrupt me whenever you like, even in the middle of this rather long sentence.",
)


class CannedServer:
    """Answers in turn, whatever is said.

    Args:
        answers: what the brain says.
        heard: what the recogniser hears, however it is spoken to.

    Attributes:
        conversations: the messages of each request to the brain.
        said: the texts that were spoken.
    """

    def __init__(self, answers=ANSWERS, heard="What do you think?"):
        self.answers, self.heard = answers, heard
        self.conversations, self.said = [], []

    def app(self):
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self.think)
        app.router.add_post("/v1/audio/transcriptions", self.hear)
        app.router.add_post("/v1/audio/speech", self.say)
        return app

    async def think(self, request):
        self.conversations.append((await request.json())["messages"])
        answer = self.answers[(len(self.conversations) - 1) % len(self.answers)]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in answer.split(" "):
            await response.write(event({"role": "assistant", "content": f"{word} "}))
        await response.write(event({}, finish_reason="stop") + b"data: [DONE]\n\n")
        return response

    async def hear(self, request):
        await request.post()
        return web.json_response({"text": self.heard})

    async def say(self, request):
        text = (await request.json())["input"]
        self.said.append(text)
        return web.Response(body=(await speak(text)).tobytes(), content_type="audio/pcm")


def event(delta, finish_reason=None):
    """Return one event of a streamed answer."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "canned"}
    return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()


async def speak(text, rate_hz=RATE_HZ):
    """Return speech, int16 mono."""
    if shutil.which("espeak-ng") is None:
        time_s = np.arange(rate_hz * len(text) // 15) / rate_hz
        return (np.sin(2 * np.pi * 220 * time_s) * 12_000).astype(np.int16)
    words = ["espeak-ng", "--stdout", "--", text]
    spoken = await asyncio.to_thread(subprocess.run, words, capture_output=True, check=True)
    resampler = av.AudioResampler("s16", "mono", rate_hz)
    with av.open(BytesIO(spoken.stdout)) as container:
        frames = [frame for read in container.decode(audio=0) for frame in resampler.resample(read)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


if __name__ == "__main__":
    web.run_app(CannedServer().app(), host="127.0.0.1", port=int(sys.argv[1]))
