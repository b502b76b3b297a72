"""The service that puts a talking avatar into a Pipecat pipeline."""

import asyncio
from typing import Any, TypeAlias

from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputTransportReadyFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings

from letstalk_rt import AudioFormatError, Avatar, ConfigError, LetsTalkError, SessionClosed
from letstalk_rt.session.options import SessionOptions
from pipecat_letstalk.performance import Direction
from pipecat_letstalk.player import AvatarPlayer
from pipecat_letstalk.transports import check_transports, output_rate

MAX_EARLY = 1_500
"""How many frames of speech may wait for the output transport: 15 s and more."""

Speech: TypeAlias = TTSAudioRawFrame | TTSStoppedFrame
Performed: TypeAlias = Speech | Direction


class LetsTalkVideoService(AIService):
    """Speaks what a TTS service says, as live video of a face.

    Stands between the TTS service and `transport.output()`::

        avatar = await asyncio.to_thread(Avatar.load, "portrait.jpg")
        params = TransportParams(audio_in_enabled=True, **output_params(avatar))
        transport = SmallWebRTCTransport(connection, params)
        face = LetsTalkVideoService(avatar=avatar)
        pipeline = Pipeline([transport.input(), ..., tts, face, transport.output(), ...])

    It keeps the `TTSAudioRawFrame`s that come in, and sends the same speech on as audio and images
    that belong together; between utterances the face idles. A `TTSStoppedFrame` goes on when its
    speech has been sent. An `InterruptionFrame` ends speech at once, except speech that is marked
    as uninterruptible. TTFB metrics count from the first audio of an utterance to its first frame.

    `AvatarMoodFrame`, `AvatarGestureFrame` and `AvatarListeningFrame` direct it.

    Speech that cannot be used is reported with an `ErrorFrame` and dropped. If the face fails, or
    the transport cannot show it, the service reports that, becomes unusable, and passes speech on
    unchanged: the agent is heard, though not seen.

    Args:
        avatar: whose face; any number of services may share one.
        session_options: options of `Avatar.session`, such as `motion`; all but `idle`, `playback`
            and `output_sample_rate`, which the service sets.
        kwargs: arguments of `AIService`, such as `name`.

    Raises:
        ConfigError: a session option is out of range, or set by the service.
    """

    def __init__(
        self, *, avatar: Avatar, session_options: SessionOptions | None = None, **kwargs: Any
    ) -> None:
        super().__init__(settings=ServiceSettings(model=None), **kwargs)
        options: SessionOptions = session_options or {}
        if taken := options.keys() & {"idle", "playback", "output_sample_rate"}:
            raise ConfigError(f"the service itself sets {', '.join(sorted(taken))}; leave it out")
        self._avatar = avatar
        self._options: SessionOptions = {**options, "idle": True, "playback": "reported"}
        avatar.session(**self._options)  # checks the options here, where a mistake is made
        self._player: AvatarPlayer | None = None
        self._playing: asyncio.Task[None] | None = None
        self._early: list[Performed] = []
        self._is_refusing = False  # the last speech could not be used, which was reported

    def can_generate_metrics(self) -> bool:
        """Return True: the service measures TTFB."""
        return True

    async def start(self, frame: StartFrame) -> None:
        """Create the session, if the output transport can show the face."""
        await super().start(frame)
        pipeline = self.pipeline_worker.pipeline
        try:
            check_transports(pipeline)
            rate = output_rate(pipeline, self.processor_setup.audio_out_sample_rate)
        except ConfigError as error:
            await self._fail(str(error), error)
            return
        options: SessionOptions = {**self._options, "output_sample_rate": rate}
        self._player = AvatarPlayer(self._avatar, options, self._send)

    async def stop(self, frame: EndFrame) -> None:
        """Say everything that waits, then close the session."""
        await super().stop(frame)
        if self._player is not None and self._playing is not None:
            try:
                await self._player.say_all()
            except (TimeoutError, SessionClosed) as error:
                await self.push_error("the last words were not spoken in time", error)
        await self._close()

    async def cancel(self, frame: CancelFrame) -> None:
        """Close the session."""
        await super().cancel(frame)
        await self._close()

    async def cleanup(self) -> None:
        """Close the session; may be called again."""
        await super().cleanup()  # type: ignore[no-untyped-call]
        await self._close()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take the speech out of the stream, react to turns, and pass everything else on."""
        if isinstance(frame, InterruptionFrame):
            # Or it would be reported, with the time until now.
            await self.cancel_ttfb_metrics()  # type: ignore[no-untyped-call]
        await super().process_frame(frame, direction)
        if isinstance(frame, Performed) and direction is FrameDirection.DOWNSTREAM:
            await self._take(frame)
            return
        if isinstance(frame, InterruptionFrame):
            self._interrupt()
        elif isinstance(frame, UserStartedSpeakingFrame | UserStoppedSpeakingFrame):
            self._listen(isinstance(frame, UserStartedSpeakingFrame))
        await self.push_frame(frame, direction)
        if isinstance(frame, OutputTransportReadyFrame):
            await self._begin()

    # Speech

    async def _take(self, frame: Performed) -> None:
        player = self._player
        if player is None:
            await self.push_frame(frame)
        elif self._playing is None:
            await self._hold(frame)
        elif isinstance(frame, Direction):
            await self._direct(player, frame)
        else:
            try:
                await self._say(player, frame)
            except SessionClosed:  # the face has failed, which is reported where frames are read
                await self.push_frame(frame)

    async def _say(self, player: AvatarPlayer, frame: Speech) -> None:
        if isinstance(frame, TTSStoppedFrame):
            await player.end_segment(frame)
            return
        if not player.in_segment:
            await self.start_ttfb_metrics()
        try:
            await player.push(frame)
            self._is_refusing = False
        except AudioFormatError as error:
            await self._refuse(f"speech was dropped: {error}", error)

    async def _direct(self, player: AvatarPlayer, frame: Direction) -> None:
        try:
            player.direct(frame)
        except ConfigError as error:
            await self.push_error(f"the avatar was not directed: {error}", error)

    async def _hold(self, frame: Performed) -> None:
        """Keep speech that comes before the output transport is ready."""
        if len(self._early) < MAX_EARLY:
            self._early.append(frame)
        else:
            await self._refuse(
                "speech was dropped, because the output transport is still not ready; let the "
                "agent speak when a client has connected"
            )

    async def _refuse(self, message: str, error: Exception | None = None) -> None:
        """Report speech that is dropped, once until speech is accepted again."""
        if not self._is_refusing:
            self._is_refusing = True
            await self.push_error(message, error)

    def _interrupt(self) -> None:
        self._early.clear()
        if self._player is not None:
            self._player.interrupt()

    def _listen(self, listening: bool) -> None:
        if self._player is not None:
            self._player.listen(listening)

    # The life of the session

    async def _begin(self) -> None:
        """Open the session when the output transport takes frames."""
        player = self._player
        if player is None or self._playing is not None:
            return
        await player.open()
        self._playing = self.create_task(self._play(player))
        early, self._early = self._early, []
        for frame in early:
            await self._take(frame)

    async def _play(self, player: AvatarPlayer) -> None:
        try:
            await player.run()
        except LetsTalkError as error:
            await self._fail(f"the model failed: {error}", error)

    async def _send(self, frame: Frame) -> None:
        if isinstance(frame, TTSAudioRawFrame):
            await self.stop_ttfb_metrics()
        await self.push_frame(frame)

    async def _fail(self, problem: str, error: Exception | None = None) -> None:
        """Report that there is no face, and let speech pass from now on."""
        player, self._player = self._player, None
        await self.push_error(
            f"{problem} (the agent is heard without its face)", error, force_treat_as_permanent=True
        )
        if player is not None:
            for frame in await player.aclose():
                await self.push_frame(frame)

    async def _close(self) -> None:
        player, self._player = self._player, None
        playing, self._playing = self._playing, None
        if playing is not None:
            await self.cancel_task(playing)
        if player is not None:
            await player.aclose()
