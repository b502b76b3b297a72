"""Frames that direct the face: each takes its place among the frames of speech."""

from fakes import ReadyOutput, tone, utterance
from pipecat.frames.frames import (
    ErrorFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.tests.utils import SleepFrame, run_test

from letstalk_rt.performance.direction import channel
from pipecat_letstalk import (
    AvatarGestureFrame,
    AvatarListeningFrame,
    AvatarMoodFrame,
    LetsTalkVideoService,
)


async def run(service, frames):
    return await run_test(Pipeline([service, ReadyOutput()]), frames_to_send=frames)


def shown(avatar, name):
    """Return when a channel was changed first, in frames, and the most that was added to it."""
    place = channel(name)
    changed = [
        (number, float(window.added[:, place].max()))
        for number, window in avatar.pipeline.directed
        if abs(window.added[:, place]).max() > 0.01
    ]
    return (changed[0][0], max(value for _, value in changed)) if changed else (None, 0.0)


async def test_a_mood_before_speech_and_a_gesture_within_it_come_in_time(avatar):
    started, *said, stopped = utterance(tone(2.0))
    half = len(said) // 2
    frames = [
        AvatarMoodFrame("cheerful", 0.8),
        started,
        *said[:half],
        AvatarGestureFrame("nod", 1.5),
        *said[half:],
        stopped,
    ]
    down, up = await run(LetsTalkVideoService(avatar=avatar), [*frames, SleepFrame(0.5)])
    began, smile = shown(avatar, "smile")
    nodded, pitch = shown(avatar, "pitch")
    assert smile > 0.2 and pitch > 0.15
    assert 15 <= nodded - began <= 40, "a second of speech lies between"
    assert not [frame for frame in down if isinstance(frame, AvatarMoodFrame | AvatarGestureFrame)]
    assert not [frame for frame in up if isinstance(frame, ErrorFrame)]


async def test_wrong_frames_are_reported_and_speech_goes_on(avatar):
    wrong = [
        AvatarMoodFrame("furious"),
        AvatarMoodFrame("warm", float("nan")),
        AvatarGestureFrame("somersault"),
        AvatarListeningFrame("asleep"),
    ]
    service = LetsTalkVideoService(avatar=avatar)
    _, up = await run(service, [SleepFrame(0.2), *wrong, *utterance(tone(0.4))])
    errors = [frame.error for frame in up if isinstance(frame, ErrorFrame)]
    assert len(errors) == 4 and all("not directed" in error for error in errors)
    assert service.is_usable


async def test_the_face_listens_while_the_user_speaks(avatar):
    frames = [
        SleepFrame(0.2),
        AvatarListeningFrame("attentive"),
        UserStartedSpeakingFrame(),
        SleepFrame(1.5),
        UserStoppedSpeakingFrame(),
        SleepFrame(0.2),
    ]
    await run(LetsTalkVideoService(avatar=avatar), frames)
    gaze = channel("gaze_x")
    assert any(window.kept[:, gaze].min() < 0.5 for _, window in avatar.pipeline.directed)
