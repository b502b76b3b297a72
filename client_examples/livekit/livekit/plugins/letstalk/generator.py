"""LiveKit's `VideoGenerator` on top of a session of letstalk_rt."""

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, VideoGenerator
from livekit.plugins.letstalk.log import logger
from livekit.plugins.letstalk.playback import NoReports, PlaybackMeter, PlaybackReports

from letstalk_rt import (
    AudioFormatError,
    AvatarSession,
    AVFrame,
    LetsTalkError,
    SegmentEnd,
    SessionClosed,
)
from letstalk_rt.performance import Listening, Style
from letstalk_rt.session.pacing import PlayoutClock
from letstalk_rt.session.user_voice import UserVoice
from letstalk_rt.types import FPS

_RESERVE_S = 0.05
"""How long the first frame is held, so that the model stays ahead by as much."""

_AUDIO_AHEAD_S = 1 / FPS
"""Frames within speech are released this much before they are due. The audio source plays what it
is given at once and has a gap when it runs empty, so it must not live from hand to mouth."""

MediaItem = rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd


class LetsTalkGenerator(VideoGenerator):
    """Generates the avatar's video, and plays its audio in sync with it, for an `AvatarRunner`.

    Every frame is released when it is due, because the runner's synchronizer paces video only, and
    plays audio at once: a waiting frame of an idle avatar would delay the lips behind the voice.
    Idle frames carry video only, because the runner counts every audio frame as played.

    Args:
        session: an open session with `playback="reported"`; the caller closes it.
        reports: who is told what was played; None leaves that to the runner.

    Attributes:
        av_sync: the synchronizer of the runner, which `clear_buffer` empties. The runner is made
            from this generator, so set it afterwards: `generator.av_sync = runner.av_sync`.
    """

    def __init__(self, session: AvatarSession, *, reports: PlaybackReports | None = None) -> None:
        self.av_sync: rtc.AVSynchronizer | None = None
        self._session = session
        self._user = UserVoice(session)
        self._reports = reports or NoReports()
        self._meter = PlaybackMeter()
        self._clock = PlayoutClock(FPS)
        self._is_pushing = False  # audio came since the last end or clear
        self._segments = 0  # whose audio was pushed, and whose end was not reported
        self._failure: Exception | None = None
        self._heard: tuple[int, int] | None = None  # segment and epoch of the last audio

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Push a frame of speech, or the end of a segment; wait while the session is behind.

        A frame that the session cannot use is dropped with a message in the log, and the segment
        goes on.

        Raises:
            SessionClosed: the session was closed or has failed.
        """
        if self._failure is not None:
            raise SessionClosed("the avatar has failed; start another") from self._failure
        try:
            if isinstance(frame, AudioSegmentEnd):
                await self._end_segment()
            else:
                await self._push(frame)
        except AudioFormatError as error:
            logger.error("audio of the agent was dropped: %s", error)
        except SessionClosed:
            pass  # the stream, which has frames to play yet, reports why

    def set_mood(self, mood: str | Style, strength: float = 1.0) -> None:
        """Change how the avatar feels; see `letstalk_rt.AvatarSession.set_mood`."""
        self._session.set_mood(mood, strength)

    def gesture(self, name: str, amount: float = 1.0, *, at: float | None = None) -> None:
        """Make a gesture; see `letstalk_rt.AvatarSession.gesture`."""
        self._session.gesture(name, amount, at=at)

    def set_listening(self, mode: Listening) -> None:
        """Change how the avatar listens; see `letstalk_rt.AvatarSession.set_listening`."""
        self._session.set_listening(mode)

    def set_user_speaking(self, speaking: bool) -> None:
        """Tell the avatar, which may listen, that the user begins to speak or has stopped."""
        self._session.listen(speaking)
        self._user.set_speaking(speaking)

    async def _push(self, frame: rtc.AudioFrame) -> None:
        if not self._is_pushing:
            self._is_pushing = True
            self._segments += 1
        pcm = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
        await self._session.push_audio(pcm, frame.sample_rate)

    async def _end_segment(self) -> None:
        if self._is_pushing:  # a receiver may end a segment that was cleared
            self._is_pushing = False
            await self._session.end_segment()

    async def clear_buffer(self) -> None:
        """Fall silent at once and drop all speech, also what waits in the synchronizer."""
        position_s, segments = self._meter.position_s, self._segments
        self._is_pushing, self._segments = False, 0
        self._session.interrupt()
        self._meter.clear()
        if self.av_sync is not None:
            await self.av_sync.clear_queue()
        self._reports.report_interrupted(position_s, segments)

    def __aiter__(self) -> AsyncIterator[MediaItem]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[MediaItem]:
        """Yield each frame when it is due, then its audio, and the end of a segment once heard."""
        ended: list[SegmentEnd] = []
        try:
            async for item in self._session:
                if isinstance(item, SegmentEnd):
                    if not item.interrupted:  # `clear_buffer` has reported the others
                        ended.append(item)
                    continue
                await self._wait_until_due(item, self._meter.remaining_s if ended else 0.0)
                for end in ended:
                    if self._finish_segment(end):
                        yield AudioSegmentEnd()
                ended.clear()
                yield _video_frame(item)
                self._session.notify_played(item)
                if item.spoken and item.epoch == self._session.epoch:
                    self._note_audio(item)
                    yield _audio_frame(item)
            self._fail(SessionClosed("the session was closed while the runner read it"))
        except LetsTalkError as error:
            self._fail(error)

    async def _wait_until_due(self, frame: AVFrame, at_least_s: float) -> None:
        now_s = time.monotonic()
        if not frame.index:
            self._clock.due_s(0, now_s + _RESERVE_S)
        delay_s = self._clock.delay_s(frame.index, now_s)
        if frame.spoken and self._heard == (frame.segment_id, frame.epoch):
            delay_s -= _AUDIO_AHEAD_S
        if not frame.spoken:
            self._heard = None
        await asyncio.sleep(max(at_least_s, delay_s))

    def _note_audio(self, frame: AVFrame) -> None:
        """Record the audio of a frame that is queued next."""
        spoken_s = frame.spoken / frame.sample_rate
        self._heard = (frame.segment_id, frame.epoch)
        is_first = self._meter.spoken_s == 0.0
        self._meter.note_queued(1 / FPS, spoken_s)
        if is_first:
            self._reports.report_started()

    def _finish_segment(self, end: SegmentEnd) -> bool:
        """Report the end of a segment; return False if an interrupt came first."""
        if end.epoch != self._session.epoch:
            return False
        position_s = self._meter.spoken_s
        self._meter.begin_segment()
        self._heard = None
        self._segments -= 1
        self._reports.report_finished(position_s)
        return True

    def _fail(self, error: Exception) -> None:
        self._user.close()
        logger.error("the avatar has failed", exc_info=error)
        self._failure = error
        self._reports.report_failure(error, self._meter.position_s, self._segments)
        self._segments = 0


def _video_frame(frame: AVFrame) -> rtc.VideoFrame:
    height, width, _ = frame.rgb.shape
    return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, frame.rgb.tobytes())


def _audio_frame(frame: AVFrame) -> rtc.AudioFrame:
    pcm = np.rint(np.clip(frame.pcm, -1, 1) * 32767).astype(np.int16)
    return rtc.AudioFrame(pcm.tobytes(), frame.sample_rate, 1, pcm.size)
