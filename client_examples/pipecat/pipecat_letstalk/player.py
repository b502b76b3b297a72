"""Plays one avatar session into a Pipecat pipeline."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from loguru import logger
from pipecat.frames.frames import Frame, TTSAudioRawFrame, TTSStoppedFrame

from letstalk_rt import AudioFormatError, Avatar, AvatarSession, AVFrame, Event, SegmentEnd
from letstalk_rt.session.options import SessionOptions
from letstalk_rt.session.pacing import PlayoutClock
from letstalk_rt.session.playout import in_epoch
from letstalk_rt.session.user_voice import UserVoice
from pipecat_letstalk.frames import SpokenVideo, pcm_of
from pipecat_letstalk.performance import (
    AvatarGestureFrame,
    AvatarListeningFrame,
    AvatarMoodFrame,
    Direction,
)

_SLACK_S = 10.0
"""How much longer than its own duration speech may take to be said."""


class AvatarPlayer:
    """A session that is fed with the speech of a TTS service and played at 25 frames per second.

    Args:
        avatar: whose face.
        options: options of the session, which must be live, with `playback="reported"`.
        send: called with each frame that the pipeline is given, in order.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self, avatar: Avatar, options: SessionOptions, send: Callable[[Frame], Awaitable[None]]
    ) -> None:
        self._session: AvatarSession = avatar.session(**options)
        self._video, self._user = SpokenVideo(), UserVoice(self._session)
        self._send = send
        self._in_segment = False
        self._pushed_s = 0.0  # of this segment
        self._is_protected = False  # some of the speech is uninterruptible
        self._stops: deque[TTSStoppedFrame] = deque()  # of segments that have not been played yet
        self._all_said = asyncio.Event()
        self._all_said.set()

    @property
    def in_segment(self) -> bool:
        """Whether speech was pushed and its end was not."""
        return self._in_segment

    async def open(self) -> None:
        """Open the session; speech can be pushed from now on."""
        self._session.on_event(_log_warning)
        await self._session.__aenter__()

    async def run(self) -> None:
        """Send frames, each when it is due, until the session is closed.

        Raises:
            EngineError: a step of the model failed.
        """
        clock = PlayoutClock()
        async for item in self._session:
            if isinstance(item, SegmentEnd):
                if not item.interrupted:
                    await self._finish_segment()
            else:
                await self._show(item, clock)

    async def push(self, frame: TTSAudioRawFrame) -> None:
        """Push speech; wait while more than half a second of it waits for the model.

        Raises:
            AudioFormatError: it cannot be used; nothing was pushed.
            SessionClosed: the session was closed or has failed.
        """
        pcm, was_protected = pcm_of(frame), self._is_protected
        self._is_protected |= not frame.interruptible  # also while it waits in the next line
        try:
            await self._session.push_audio(pcm, frame.sample_rate)
        except AudioFormatError:
            self._is_protected = was_protected
            raise
        self._in_segment = True
        self._pushed_s += len(pcm) / frame.sample_rate
        self._all_said.clear()

    def direct(self, frame: Direction) -> None:
        """Direct the avatar, within speech at the end of what was pushed.

        Raises:
            ConfigError: there is no such mood, gesture or mode, a number is out of range, or the
                model cannot be directed.
        """
        at_s = self._pushed_s if self._in_segment else None
        match frame:
            case AvatarMoodFrame():
                self._session.set_mood(frame.mood, frame.strength, at=at_s)
            case AvatarGestureFrame():
                self._session.gesture(frame.gesture, frame.amount, at=at_s)
            case AvatarListeningFrame():
                self._session.set_listening(frame.mode)

    async def end_segment(self, stop: TTSStoppedFrame) -> None:
        """End the utterance; `stop` is sent after its last frame.

        Raises:
            SessionClosed: the session was closed or has failed.
        """
        epoch = self._session.epoch
        await self._session.end_segment()
        if epoch == self._session.epoch:  # else there is no segment to end any more
            self._in_segment, self._pushed_s = False, 0.0
            self._stops.append(stop)
            self._all_said.clear()

    def interrupt(self) -> None:
        """End all speech at once, unless some of it is uninterruptible."""
        if self._is_protected:
            return
        self._session.interrupt()
        self._video.interrupt()
        self._stops.clear()
        self._in_segment, self._pushed_s = False, 0.0
        self._all_said.set()

    def listen(self, listening: bool) -> None:
        """Record that the user begins to speak, or stops."""
        self._session.listen(listening)
        self._user.set_speaking(listening)

    async def say_all(self) -> None:
        """Wait until everything that was pushed has been sent.

        Raises:
            TimeoutError: it takes seconds longer than it should.
            SessionClosed: the session was closed or has failed.
        """
        if self._in_segment:
            await self.end_segment(TTSStoppedFrame())
        async with asyncio.timeout(self._session.backlog_ms / 1000 + _SLACK_S):
            await self._all_said.wait()

    async def aclose(self) -> list[TTSStoppedFrame]:
        """Close the session; return the ends of the segments that were not played."""
        self._user.close()
        await self._session.aclose()
        unsaid = list(self._stops)
        self._stops.clear()
        self._all_said.set()
        return unsaid

    async def _show(self, item: AVFrame, clock: PlayoutClock) -> None:
        now_s = asyncio.get_running_loop().time()
        await asyncio.sleep(clock.delay_s(item.index, now_s))
        frame = in_epoch(item, self._session.epoch)
        for converted in self._video.convert(frame):
            converted.interruptible = not self._is_protected
            await self._send(converted)
        self._session.notify_played(frame)

    async def _finish_segment(self) -> None:
        self._video.end_segment()
        if self._stops:
            await self._send(self._stops.popleft())
        if not self._stops and not self._in_segment:
            self._is_protected = False
            self._all_said.set()


def _log_warning(event: Event) -> None:
    if event.type == "session.warning":
        logger.warning(event.message)
