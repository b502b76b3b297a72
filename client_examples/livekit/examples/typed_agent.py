"""An agent that says what is typed into the room's chat, with a face. It needs espeak-ng.

    python typed_agent.py start

An agent that listens and thinks takes its other parts from LiveKit's plugins; the avatar stays the
same: `AgentSession(stt=..., llm=..., tts=...)`.
"""

import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from livekit import rtc
from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    JobContext,
    JobExecutorType,
    cli,
    room_io,
)
from livekit.plugins import letstalk

from letstalk_rt import Avatar, LetsTalkError
from letstalk_rt.avatars import list_avatars
from letstalk_rt.speech import TextToSpeech, open_speech

logger = logging.getLogger("typed-agent")


async def synthesize(voice: TextToSpeech, text: str) -> AsyncIterator[rtc.AudioFrame]:
    """Yield the speech of a text; nothing, with a message in the log, if it cannot be spoken."""
    try:
        async for pcm, sample_rate in voice.stream(text):
            yield rtc.AudioFrame(pcm.tobytes(), sample_rate, 1, pcm.size)
    except LetsTalkError as error:
        logger.error("a text was not spoken: %s", error)


def create_server(avatar: Avatar, voice: TextToSpeech, **options: Any) -> AgentServer:
    """Return a server whose agents share one avatar, in threads of this process."""
    server = AgentServer(job_executor_type=JobExecutorType.THREAD, **options)

    @server.rtc_session(agent_name="letstalk-example")
    async def serve(context: JobContext) -> None:
        await context.connect()
        session: AgentSession = AgentSession()

        def say_typed(session: AgentSession, event: room_io.TextInputEvent) -> None:
            session.interrupt()
            session.say(event.text, audio=synthesize(voice, event.text))

        await letstalk.AvatarSession(avatar).start(session, context.room)
        await session.start(
            agent=Agent(instructions=""),
            room=context.room,
            room_options=room_io.RoomOptions(
                audio_input=False, text_input=room_io.TextInputOptions(text_input_cb=say_typed)
            ),
        )
        greeting = "Hello! Type something, and I will say it."
        session.say(greeting, audio=synthesize(voice, greeting))

    return server


if __name__ == "__main__":
    portrait = os.environ.get("LETSTALK_PORTRAIT", list_avatars()["mira"])
    with Avatar.load(portrait) as loaded:
        cli.run_app(create_server(loaded, open_speech()))
