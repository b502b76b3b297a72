"""The runner of a session: what the local and the remote form share."""

from livekit import rtc
from livekit.agents.voice.avatar import AvatarOptions, AvatarRunner
from livekit.plugins.letstalk.audio_io import LocalAudioOutput, RemoteAudioReceiver
from livekit.plugins.letstalk.generator import LetsTalkGenerator

from letstalk_rt import Avatar, AvatarSession, ConfigError
from letstalk_rt.session.options import SessionOptions
from letstalk_rt.types import FPS

_SYNCHRONIZER_FPS = 2 * FPS
"""At the rate of the frames, the runner's synchronizer would never work off the three frames that
wait in it when a session begins, and lips would be 120 ms behind the voice. The generator paces
them."""


def open_session(avatar: Avatar, sample_rate: int, options: SessionOptions) -> AvatarSession:
    """Create a session whose frames a generator can play.

    Raises:
        ConfigError: an option is out of range, or one that the generator sets.
    """
    for name in ("idle", "playback", "output_sample_rate"):
        if name in options:
            raise ConfigError(f"{name} is set by the plugin; leave it out")
    complete = options.copy()
    complete["playback"], complete["output_sample_rate"] = "reported", sample_rate
    return avatar.session(**complete)


def make_runner(
    room: rtc.Room,
    avatar: Avatar,
    session: AvatarSession,
    audio: LocalAudioOutput | RemoteAudioReceiver,
    sample_rate: int,
) -> tuple[AvatarRunner, LetsTalkGenerator]:
    """Create the runner that plays a session in a room, and the generator of its frames.

    Args:
        room: the room to publish the avatar's tracks in.
        avatar: whose session it is.
        session: an open session from `open_session`.
        audio: where the agent's speech arrives.
        sample_rate: of the audio that is published, in Hz.
    """
    height, width, _ = avatar.portrait.canvas.shape
    generator = LetsTalkGenerator(session, reports=audio)
    runner = AvatarRunner(
        room,
        audio_recv=audio,
        video_gen=generator,
        options=AvatarOptions(width, height, _SYNCHRONIZER_FPS, sample_rate, 1),
    )
    generator.av_sync = runner.av_sync
    return runner, generator
