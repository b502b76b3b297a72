"""An agent that speaks recorded audio, and what it is told of its playback."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice.io import PlaybackFinishedEvent
from livekit.agents.voice.room_io import RoomOptions

_QUIET_ROOM = RoomOptions(
    audio_input=False, text_input=False, text_output=False, close_on_disconnect=False
)


async def tone(
    seconds: float, rate: int = 16_000, chunk_s: float = 0.05
) -> AsyncIterator[rtc.AudioFrame]:
    """Yield a tone as the chunks of a speech synthesis."""
    count = round(seconds * rate)
    wave = np.sin(np.arange(count) * 2 * np.pi * 440 / rate)
    pcm = (wave * 10_000).astype(np.int16)
    for start in range(0, count, round(chunk_s * rate)):
        chunk = pcm[start : start + round(chunk_s * rate)]
        yield rtc.AudioFrame(chunk.tobytes(), rate, 1, chunk.size)


@dataclass
class Playback:
    """What an audio output reports.

    Attributes:
        started_s: when playback has started, in monotonic seconds.
        finished: each end with its position, and when it was reported.
    """

    started_s: list[float] = field(default_factory=list)
    finished: list[tuple[PlaybackFinishedEvent, float]] = field(default_factory=list)

    def watch(self, session: AgentSession) -> "Playback":
        """Note what the output of a session reports from now on."""
        output = session.output.audio
        output.on(
            "playback_started",
            lambda event: self.started_s.append(event.created_at - time.time() + time.monotonic()),
        )
        output.on(
            "playback_finished", lambda event: self.finished.append((event, time.monotonic()))
        )
        return self


async def start_agent(session: AgentSession, room: rtc.Room) -> None:
    """Start an agent without ears and brain."""
    await session.start(agent=Agent(instructions=""), room=room, room_options=_QUIET_ROOM)
