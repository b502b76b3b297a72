"""Talk with an avatar in a window: microphone, recogniser, chat model, voice, avatar.

    pip install -e '.[mic,talk]'                                 # in a clone
    python voice_agent.py http://localhost:11434/v1 llama3.2   # any OpenAI-compatible one

The key of the chat model is read from OPENAI_API_KEY. Wear headphones: nothing cancels echo here.
"""

import asyncio
import sys

from letstalk_rt import Avatar, Conversation
from letstalk_rt.conversation import open_chat, open_recogniser, open_speech
from letstalk_rt.sinks.play import play
from letstalk_rt.sinks.speaker import Speaker
from letstalk_rt.sinks.window import PreviewWindow
from letstalk_rt.sources import Microphone


async def talk(source, sinks, url, model):
    parts = open_recogniser(), open_chat(url, model), open_speech()
    with Avatar.load("mira") as avatar:
        async with source, avatar.session(playback="reported") as session:
            playing = asyncio.create_task(play(session, sinks, avatar.size))
            async with Conversation(session, *parts, on_event=print) as conversation:
                await conversation.listen(source)
        await playing


if __name__ == "__main__":
    window = PreviewWindow("Mira")
    window.run_beside(talk(Microphone(), [window, Speaker()], *sys.argv[1:]))
