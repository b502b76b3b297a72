"""A user in the room: hears and sees the avatar through the real client."""

import asyncio
import time
from dataclasses import dataclass

import numpy as np
from livekit import rtc

from support.fake_avatar import BRIGHT, DARK
from support.waiting import until

_LOUD = 1500  # of 32768
_HEARD_S = 0.01  # length of the chunks that are judged


@dataclass(frozen=True, slots=True)
class Sight:
    """A video frame as it arrived."""

    at_s: float
    width: int
    height: int
    is_bright: bool


class Listener:
    """Receives the tracks of one participant; use it with `async with`.

    Args:
        room: a connected room.
        identity: whose tracks.

    Attributes:
        sights: the video frames.
        loud_s: when each loud chunk of 10 ms was heard, in monotonic seconds.
        heard: how many chunks were heard.
    """

    def __init__(self, room: rtc.Room, identity: str) -> None:
        self.sights: list[Sight] = []
        self.loud_s: list[float] = []
        self.heard = 0
        self._room, self._identity = room, identity
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Listener":
        self._room.on("track_subscribed", self._on_track)
        for participant in self._room.remote_participants.values():
            for publication in participant.track_publications.values():
                if publication.track is not None:
                    self._on_track(publication.track, publication, participant)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._room.off("track_subscribed", self._on_track)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until_seen(self, count: int = 1) -> None:
        """Wait until so many more video frames have arrived."""
        enough = len(self.sights) + count
        await until(lambda: len(self.sights) >= enough)

    async def until_loud(self, for_s: float = 0.0) -> None:
        """Wait until so much more speech was heard."""
        enough = len(self.loud_s) + max(1, round(for_s / _HEARD_S))
        await until(lambda: len(self.loud_s) >= enough)

    async def until_quiet(self, for_s: float = 0.3) -> None:
        """Wait until no speech was heard for so long."""
        await until(lambda: not self.loud_s or time.monotonic() - self.loud_s[-1] >= for_s)

    def loud_since(self, at_s: float) -> float:
        """Return how many seconds of speech were heard since a time."""
        return sum(loud_s > at_s for loud_s in self.loud_s) * _HEARD_S

    def _on_track(
        self,
        track: rtc.Track,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        if participant.identity == self._identity:
            is_audio = track.kind == rtc.TrackKind.KIND_AUDIO
            task = asyncio.create_task(self._hear(track) if is_audio else self._see(track))
            self._tasks.add(task)

    async def _hear(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=48_000, num_channels=1)
        try:
            async for event in stream:
                self.heard += 1
                if np.abs(np.frombuffer(event.frame.data, np.int16).astype(int)).max() > _LOUD:
                    self.loud_s.append(time.monotonic())
        finally:
            await stream.aclose()

    async def _see(self, track: rtc.Track) -> None:
        stream = rtc.VideoStream(track, format=rtc.VideoBufferType.RGB24)
        try:
            async for event in stream:
                frame = event.frame
                middle = frame.data[len(frame.data) // 2]
                bright = middle > (DARK + BRIGHT) // 2
                self.sights.append(Sight(time.monotonic(), frame.width, frame.height, bright))
        finally:
            await stream.aclose()
