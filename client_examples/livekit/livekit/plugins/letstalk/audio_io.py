"""Where the agent's speech arrives, beside it or from another process; both report what was heard.

The notifications of `AvatarRunner` are ignored: `LetsTalkGenerator` reports more precisely, see
`playback`.
"""

from livekit import rtc
from livekit.agents.voice.avatar import (
    DataStreamAudioOutput,
    DataStreamAudioReceiver,
    QueueAudioOutput,
)

from letstalk_rt import SessionClosed
from letstalk_rt.audio.resample import check_rate


class LocalAudioOutput(QueueAudioOutput):
    """The audio output of an agent whose avatar runs in the same process.

    Args:
        sample_rate: to which the agent converts its speech, in Hz.
    """

    def __init__(self, *, sample_rate: int) -> None:
        super().__init__(sample_rate=sample_rate, wait_playback_start=True)
        self._cleared = 0  # segments that the last clear ends
        self._failure: Exception | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Queue a frame of speech.

        Raises:
            AudioFormatError: its sample rate is not supported.
            SessionClosed: the avatar has failed or was closed.
        """
        if self._failure is not None:
            raise SessionClosed(f"the avatar cannot speak: {self._failure}") from self._failure
        check_rate(frame.sample_rate)
        await super().capture_frame(frame)

    def clear_buffer(self) -> None:
        """Drop all speech that was not heard yet."""
        self._cleared = self._pending_playback_count
        super().clear_buffer()

    def notify_playback_started(self) -> None:
        """Ignore the runner."""

    def notify_playback_finished(self, playback_position: float, interrupted: bool) -> None:
        """Ignore the runner."""

    def report_started(self) -> None:
        """Tell the agent that a segment becomes audible."""
        super().notify_playback_started()

    def report_finished(self, position_s: float) -> None:
        """Tell the agent that a segment has been played to its end."""
        super().notify_playback_finished(position_s, interrupted=False)

    def report_interrupted(self, position_s: float, segments: int) -> None:
        """Tell the agent that all segments captured before the clear are over.

        The generator may not have seen all of them.
        """
        ended, self._cleared = self._cleared, 0
        for _ in range(min(ended, self._pending_playback_count)):
            super().notify_playback_finished(position_s, interrupted=True)
            position_s = 0.0

    def report_failure(self, error: Exception, position_s: float = 0.0, segments: int = 0) -> None:
        """Refuse further speech, and end what the agent waits for."""
        self._failure = error
        self._cleared = self._pending_playback_count
        self.report_interrupted(position_s, segments)


class RemoteAudioOutput(DataStreamAudioOutput):
    """The audio output of an agent whose avatar runs in a worker.

    Args:
        room: the agent's room.
        identity: identity of the avatar.
        sample_rate: to which the agent converts its speech, in Hz.
    """

    def __init__(self, room: rtc.Room, *, identity: str, sample_rate: int) -> None:
        super().__init__(
            room,
            destination_identity=identity,
            sample_rate=sample_rate,
            wait_remote_track=rtc.TrackKind.KIND_VIDEO,
            wait_playback_start=True,
        )
        self._failure: Exception | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Send a frame of speech.

        Raises:
            SessionClosed: the avatar has left.
        """
        if self._failure is not None:
            raise SessionClosed(f"the avatar cannot speak: {self._failure}") from self._failure
        await super().capture_frame(frame)

    def report_failure(self, error: Exception) -> None:
        """Refuse further speech, and end what the agent waits for."""
        self._failure = error
        for _ in range(self._pending_playback_count):
            self.on_playback_finished(playback_position=0.0, interrupted=True)


class RemoteAudioReceiver(DataStreamAudioReceiver):
    """Receives an agent's speech in the process of an avatar that has joined on its behalf."""

    def notify_playback_started(self) -> None:
        """Ignore the runner."""

    def notify_playback_finished(self, playback_position: float, interrupted: bool) -> None:
        """Ignore the runner."""

    def report_started(self) -> None:
        """Tell the agent that a segment becomes audible."""
        super().notify_playback_started()

    def report_finished(self, position_s: float) -> None:
        """Tell the agent that a segment has been played to its end."""
        super().notify_playback_finished(position_s, interrupted=False)

    def report_interrupted(self, position_s: float, segments: int) -> None:
        """Tell the agent that all segments that have arrived are over."""
        for _ in range(segments):
            super().notify_playback_finished(position_s, interrupted=True)
            position_s = 0.0

    def report_failure(self, error: Exception, position_s: float, segments: int) -> None:
        """Tell the agent what was heard; then the worker leaves the room, which the agent sees."""
        self.report_interrupted(position_s, segments)
