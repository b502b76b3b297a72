"""The service by itself, between a TTS service and an output transport that are simulated."""

import numpy as np
import pytest
from fakes import (
    RATE,
    PaintedModel,
    ReadyOutput,
    WatchedAvatar,
    audio_frame,
    samples_of,
    tone,
    utterance,
)
from loguru import logger
from pipecat.frames.frames import (
    ErrorFrame,
    InterruptionFrame,
    MetricsFrame,
    OutputImageRawFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams
from pipecat.tests.utils import SleepFrame, run_test

from letstalk_rt import ConfigError
from pipecat_letstalk import LetsTalkVideoService
from pipecat_letstalk.video import MAX_EARLY


async def run(service, frames, after_s=0.0, **options):
    """Return what leaves a pipeline of the service downstream and upstream."""
    pipeline = Pipeline([service, ReadyOutput(after_s)])
    return await run_test(pipeline, frames_to_send=frames, **options)


def of(kind, frames):
    return [frame for frame in frames if isinstance(frame, kind)]


def spoken(frames):
    """Return the audio that left, without silence around it."""
    samples = samples_of(frames)
    (loud,) = np.nonzero(samples)
    return samples[loud[0] : loud[-1] + 1] if loud.size else samples[:0]


def words(seconds):
    """Return audio without zeros at its ends."""
    pcm = tone(seconds)
    pcm[[0, -1]] = 1000
    return pcm


async def test_speech_leaves_unchanged_with_an_image_for_each_frame(avatar):
    pcm = words(1.0)
    down, _ = await run(LetsTalkVideoService(avatar=avatar), utterance(pcm))
    assert np.abs(spoken(down).astype(int) - pcm).max() <= 1
    speaking = [image for image in of(OutputImageRawFrame, down) if is_white(image)]
    assert len(speaking) == 25
    assert all(image.sync_with_audio for image in speaking)


def is_white(image):
    pixels = np.frombuffer(image.image, np.uint8).reshape(*image.size, 3)
    return pixels[0, -1, 0] == 255


async def test_an_image_comes_before_the_audio_that_belongs_to_it(avatar):
    down, _ = await run(LetsTalkVideoService(avatar=avatar), utterance(words(0.4)))
    frames = of((OutputImageRawFrame, TTSAudioRawFrame), down)
    for image, audio in zip(frames, frames[1:], strict=False):
        if isinstance(image, OutputImageRawFrame) and isinstance(audio, TTSAudioRawFrame):
            assert is_white(image) == bool(np.abs(samples_of([audio])).max() > 8000)


async def test_the_end_of_speech_goes_on_after_its_last_word_and_not_twice(avatar):
    frames = utterance(words(0.6))
    down, _ = await run(LetsTalkVideoService(avatar=avatar), frames)
    (stop,) = of(TTSStoppedFrame, down)
    assert stop is frames[-1]
    assert spoken(down[: down.index(stop)]).size == spoken(down).size


async def test_idle_frames_are_images_that_wait_for_no_audio(avatar):
    down, _ = await run(LetsTalkVideoService(avatar=avatar), [SleepFrame(1.0)])
    images = of(OutputImageRawFrame, down)
    assert len(images) > 5
    assert not any(image.sync_with_audio for image in images)
    assert of(TTSAudioRawFrame, down) == []


async def test_other_frames_pass(avatar):
    down, _ = await run(LetsTalkVideoService(avatar=avatar), [TTSSpeakFrame("Hello")])
    assert len(of(TTSSpeakFrame, down)) == 1


async def test_an_interrupt_drops_the_speech_that_waits(avatar):
    frames = [*utterance(words(6.0)), SleepFrame(1.0), InterruptionFrame(), SleepFrame(0.5)]
    down, _ = await run(LetsTalkVideoService(avatar=avatar), frames)
    (interruption,) = of(InterruptionFrame, down)
    after = down[down.index(interruption) :]
    assert of(TTSAudioRawFrame, after) == []
    assert of(TTSStoppedFrame, down) == []
    images = of(OutputImageRawFrame, after)
    assert images and not any(image.sync_with_audio for image in images)


async def test_it_speaks_again_after_an_interrupt(avatar):
    frames = [*utterance(words(3.0)), SleepFrame(0.6), InterruptionFrame()]
    pcm = words(0.8)
    down, _ = await run(LetsTalkVideoService(avatar=avatar), [*frames, *utterance(pcm)])
    (interruption,) = of(InterruptionFrame, down)
    again = down[down.index(interruption) :]
    assert spoken(again).size == pcm.size
    assert len(of(TTSStoppedFrame, again)) == 1


async def test_speech_that_is_uninterruptible_is_said_to_its_end(avatar):
    pcm = words(1.2)
    speech = utterance(pcm)
    for frame in speech:
        frame.interruptible = False
    frames = [*speech, SleepFrame(0.5), InterruptionFrame()]
    down, _ = await run(LetsTalkVideoService(avatar=avatar), frames)
    assert spoken(down).size == pcm.size
    assert not any(frame.interruptible for frame in of(TTSAudioRawFrame, down))


async def test_the_end_of_the_pipeline_waits_for_the_last_word(avatar):
    speech = utterance(words(1.0))[:-1]  # the TTS service has not said that it has stopped
    down, _ = await run(LetsTalkVideoService(avatar=avatar), speech)
    assert spoken(down).size == RATE
    assert avatar.sessions[-1].closed


async def test_speech_waits_for_the_output_transport(avatar):
    pcm = words(0.4)
    frames = [*utterance(pcm), SleepFrame(1.0)]
    down, _ = await run(LetsTalkVideoService(avatar=avatar), frames, after_s=0.5)
    assert spoken(down).size == pcm.size


async def test_more_speech_than_can_wait_for_the_transport_is_reported(avatar):
    speech = [audio_frame(words(0.01)) for _ in range(MAX_EARLY + 2)]
    _, up = await run(LetsTalkVideoService(avatar=avatar), speech, after_s=60.0)
    (error,) = of(ErrorFrame, up)
    assert "still not ready" in error.error


async def test_the_time_to_the_first_frame_is_measured_once_for_each_utterance(avatar):
    service = LetsTalkVideoService(avatar=avatar)
    frames = [*utterance(words(0.4)), SleepFrame(1.2), *utterance(words(0.4))]
    params = PipelineParams(enable_metrics=True)
    down, _ = await run(service, frames, pipeline_params=params)
    measured = [
        data.value
        for frame in of(MetricsFrame, down)
        for data in frame.data
        if isinstance(data, TTFBMetricsData) and data.value and data.processor == service.name
    ]
    assert len(measured) == 2 and min(measured) > 0.05


async def test_the_avatar_listens_while_the_user_speaks(avatar):
    frames = [UserStartedSpeakingFrame(), SleepFrame(0.2), UserStoppedSpeakingFrame()]
    await run(LetsTalkVideoService(avatar=avatar), [SleepFrame(0.2), *frames, SleepFrame(0.2)])
    assert [event.type for event in avatar.events] == ["avatar.listening", "avatar.idle"]


@pytest.mark.parametrize(
    "bad, message",
    [
        (TTSAudioRawFrame(bytes(801), 16_000, 1), "801 bytes"),
        (TTSAudioRawFrame(bytes(960), 16_000, 3), "3"),
        (TTSAudioRawFrame(bytes(960), 4_000, 1), "4000"),
        (TTSAudioRawFrame(bytes(960), 400_000, 1), "400000"),
    ],
)
async def test_speech_that_cannot_be_used_is_reported_and_the_next_is_said(avatar, bad, message):
    pcm = words(0.4)
    frames = [bad, bad, *utterance(pcm)]
    down, up = await run(LetsTalkVideoService(avatar=avatar), frames)
    (error,) = of(ErrorFrame, up)
    assert message in error.error
    assert spoken(down).size == pcm.size


async def test_a_model_that_fails_leaves_the_voice():
    with WatchedAvatar.of(PaintedModel(fail_at=6)) as avatar:
        service = LetsTalkVideoService(avatar=avatar)
        speech = utterance(words(2.0), chunk_s=0.5)
        later = [SleepFrame(1.5), audio_frame(words(0.1))]
        down, up = await run(service, [*speech, *later])
    (error,) = of(ErrorFrame, up)
    assert "the model failed" in error.error and "heard" in error.error
    assert not service.is_usable
    assert np.array_equal(samples_of(down[-1:]), words(0.1))
    assert len(of(TTSStoppedFrame, down)) == 1


async def test_a_model_that_is_too_slow_is_logged():
    messages = []
    sink = logger.add(messages.append, level="WARNING")
    try:
        with WatchedAvatar.of(PaintedModel(step_s=0.6)) as avatar:
            await run(LetsTalkVideoService(avatar=avatar), [SleepFrame(2.5)])
    finally:
        logger.remove(sink)
    assert any("the machine is too slow now" in message for message in messages)


async def test_options_of_the_session_are_checked_at_once(avatar):
    with pytest.raises(ConfigError, match="lookahead_ms"):
        LetsTalkVideoService(avatar=avatar, session_options={"lookahead_ms": 55})
    with pytest.raises(ConfigError, match="playback"):
        LetsTalkVideoService(avatar=avatar, session_options={"playback": "on_read"})
    with pytest.raises(ConfigError, match="output_sample_rate"):
        LetsTalkVideoService(avatar=avatar, session_options={"output_sample_rate": 48_000})
    assert not LetsTalkVideoService(avatar=avatar, session_options={"seed": 3}).metrics_enabled


async def test_ending_twice_and_before_the_start_does_no_harm(avatar):
    service = LetsTalkVideoService(avatar=avatar)
    await service.cleanup()
    started = LetsTalkVideoService(avatar=avatar)
    await run(started, utterance(words(0.2)))
    await started.cleanup()
    assert avatar.sessions[-1].closed
