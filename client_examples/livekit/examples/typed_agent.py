"""An agent that says what is typed into the room's chat, with a face. It needs espeak-ng.

    python typed_agent.py dev

An agent that listens and thinks takes its other parts from LiveKit's plugins; the avatar stays the
same: `AgentSession(stt=..., llm=..., tts=...)`.
"""

import asyncio
import os
import wave
from collections.abc import AsyncIterator
from io import BytesIO
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

from letstalk_rt import Avatar
from letstalk_rt.avatars import list_avatars

_CHUNK_S = 0.1


async def synthesize(text: str) -> AsyncIterator[rtc.AudioFrame]:
    """Yield the speech of a text.

    Raises:
        FileNotFoundError: espeak-ng is not installed.
    """
    process = await asyncio.create_subprocess_exec(
        "espeak-ng",
        "--stdin",
        "--stdout",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    spoken, _ = await process.communicate(text.encode())
    with wave.open(BytesIO(spoken)) as audio:
        rate = audio.getframerate()
        while chunk := audio.readframes(round(rate * _CHUNK_S)):
            yield rtc.AudioFrame(chunk, rate, 1, len(chunk) // 2)


def create_server(avatar: Avatar, **options: Any) -> AgentServer:
    """Return a server whose agents share one avatar, in threads of this process."""
    server = AgentServer(job_executor_type=JobExecutorType.THREAD, **options)

    @server.rtc_session(agent_name="letstalk-example")
    async def serve(context: JobContext) -> None:
        await context.connect()
        session: AgentSession = AgentSession()

        def say_typed(session: AgentSession, event: room_io.TextInputEvent) -> None:
            session.interrupt()
            session.say(event.text, audio=synthesize(event.text))

        await letstalk.AvatarSession(avatar).start(session, context.room)
        await session.start(
            agent=Agent(instructions=""),
            room=context.room,
            room_options=room_io.RoomOptions(
                audio_input=False, text_input=room_io.TextInputOptions(text_input_cb=say_typed)
            ),
        )
        session.say("Hello!", audio=synthesize("Hello! Type something, and I will say it."))

    return server


if __name__ == "__main__":
    portrait = os.environ.get("LETSTALK_PORTRAIT", list_avatars()["mira"])
    with Avatar.load(portrait) as loaded:
        cli.run_app(create_server(loaded))
