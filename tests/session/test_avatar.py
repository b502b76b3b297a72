"""Avatars: rendering whole utterances, sharing a model, loading and closing."""

import asyncio
import sys
import threading
import types
import wave
from pathlib import Path

import numpy as np
import pytest
from support.fakes import (
    FRAME,
    HOP,
    LOOKAHEAD,
    FakePipeline,
    InlineWorker,
    portrait,
)
from support.sessions import (
    check_frames,
    joined_pcm,
    record,
    speech,
    steady,
)
from support.virtual_time import run_real

from letstalk_rt.audio.resample import Resampler
from letstalk_rt.errors import (
    AudioFormatError,
    ConfigError,
    EngineError,
    PortraitError,
    WeightsError,
)
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import AVFrame


@pytest.fixture
def avatar():
    with Avatar.from_pipeline(FakePipeline(), portrait(30)) as avatar:
        yield avatar


def test_the_sound_of_a_rendering_is_the_audio(avatar):
    pcm = speech(3 * HOP + 100)
    frames = list(avatar.render(pcm))
    assert [frame.index for frame in frames] == list(range(13))
    np.testing.assert_array_equal(joined_pcm(frames)[: pcm.size], pcm)
    assert not joined_pcm(frames)[pcm.size :].any()
    check_frames(frames, face=30)


@pytest.mark.parametrize("count", [1, HOP, HOP + 1])
def test_a_rendering_has_as_many_frames_as_the_audio(avatar, count):
    assert len(list(avatar.render(speech(count)))) == -(-count // FRAME)


def test_rendering_in_pieces_equals_the_whole(avatar):
    pcm = speech(48_000)
    resampler = Resampler(48_000)
    expected = np.concatenate([resampler.push(pcm), resampler.flush()])
    whole = list(avatar.render(pcm, 48_000))
    np.testing.assert_array_equal(joined_pcm(whole)[: expected.size], expected)
    pieces = list(avatar.render((pcm[i : i + 777] for i in range(0, pcm.size, 777)), 48_000))
    np.testing.assert_array_equal(joined_pcm(pieces), joined_pcm(whole))
    for one, other in zip(pieces, whole, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)


def test_a_rendering_equals_a_session(avatar):
    async def body():
        async with avatar.session(idle=False) as session:
            return await record(session, pcm)

    pcm = speech(4 * HOP + 9)
    live = asyncio.run(body())[LOOKAHEAD:]
    rendered = list(avatar.render(pcm))
    np.testing.assert_array_equal(joined_pcm(live), joined_pcm(rendered))
    np.testing.assert_array_equal([f.rgb for f in live], [f.rgb for f in rendered])


@pytest.mark.parametrize("channels", [1, 6])
def test_files_of_any_rate_are_rendered(avatar, tmp_path, channels):
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(22_050)
        file.writeframes(np.full((22_050, channels), 8192, np.int16).tobytes())
    for source in (path, str(path)):
        frames = list(avatar.render(source))
        assert len(frames) == 25
        assert joined_pcm(frames)[8000] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros(0, np.float32), "empty"),
        ([], "empty"),
        (np.array([np.nan], np.float32), "NaN"),
        ([np.zeros(9000, np.float32), np.array([np.inf], np.float32)], "NaN"),
        (np.zeros(9), "float64"),
    ],
)
def test_bad_audio_is_not_rendered(avatar, audio, message):
    with pytest.raises(AudioFormatError, match=message):
        list(avatar.render(audio))
    assert len(list(avatar.render(speech(HOP)))) == 4, "the avatar goes on"


def test_a_bad_rate_or_file_is_refused_before_the_first_frame(avatar, tmp_path):
    with pytest.raises(AudioFormatError, match="8000 to 192000"):
        avatar.render(speech(9), 100)
    with pytest.raises(AudioFormatError):
        avatar.render(tmp_path / "missing.wav")


@pytest.mark.parametrize("fail_at, frames_before", [(-1, 0), (1, 2)])
def test_a_failed_step_ends_a_rendering(fail_at, frames_before):
    with Avatar.from_pipeline(FakePipeline(fail_at), portrait()) as avatar:
        frames = []
        with pytest.raises(EngineError) as caught:
            for frame in avatar.render(steady(9, 0.5)):
                frames.append(frame)
        assert len(frames) == frames_before
        assert "on fire" in str(caught.value.__cause__)


@pytest.mark.parametrize("options", [{"seed": -1}, {"steps": 0}, {"steps": 51}])
def test_options_out_of_range_are_refused_before_the_first_frame(avatar, options):
    with pytest.raises(ConfigError, match="must be an integer from"):
        avatar.render(speech(HOP), **options)


def test_a_portrait_that_is_not_prepared_is_no_failed_step():
    class Refusing(FakePipeline):
        def init_state(self, portrait, options):
            raise PortraitError("make it with prepare_portrait")

    with (
        Avatar.from_pipeline(Refusing(), portrait()) as avatar,
        pytest.raises(PortraitError, match="prepare_portrait"),
    ):
        next(avatar.render(speech(HOP)))


def test_the_next_window_is_made_while_the_caller_uses_the_last():
    pipeline = FakePipeline()
    frames = Avatar(InlineWorker(pipeline), portrait()).render(steady(100, 0.5))
    next(frames)
    assert pipeline.steps == 2
    for _ in range(2):
        next(frames)
    assert pipeline.steps == 3
    frames.close()


def test_all_work_is_done_in_one_thread_of_the_avatar():
    async def body(avatar):
        async with avatar.session(idle=False) as one, avatar.session(idle=False) as other:
            await asyncio.gather(record(one, speech(9000)), record(other, speech(9000)))
            one.interrupt()
            await record(one, speech(9000))

    pipeline = FakePipeline()
    with Avatar.from_pipeline(pipeline, portrait()) as avatar:
        run_real(body(avatar))
        list(avatar.render(speech(9000)))
        list(avatar.with_portrait(portrait(9)).render(speech(9000)))
    assert len(pipeline.threads) == 1
    assert pipeline.threads.pop().name.startswith("letstalk-model")
    assert not [t for t in threading.enumerate() if t.name.startswith("letstalk-model")]


def test_another_face_on_the_same_model():
    with Avatar.from_pipeline(FakePipeline(), portrait(1)) as avatar:
        other = avatar.with_portrait(portrait(2))
        other.close()  # the thread is not its own
        check_frames(list(avatar.render(speech(HOP))), face=1)
        check_frames(list(other.render(speech(HOP))), face=2)


def test_a_worker_that_was_lent_is_not_ended():
    pipeline = FakePipeline()
    worker = ModelWorker(pipeline)
    avatar = Avatar.from_pipeline(pipeline, portrait(), worker=worker)
    avatar.close()
    assert len(list(avatar.render(speech(HOP)))) == 4
    assert pipeline.threads == {worker.submit(threading.current_thread).result(20)}
    worker.shutdown()


def test_an_avatar_is_closed_twice(avatar):
    avatar.close()
    avatar.close()


def test_own_weights_are_loaded(monkeypatch):
    loaded = []

    class AvatarPipeline:
        @classmethod
        def load(cls, **options):
            loaded.append(options["weights"])
            raise WeightsError("stop here")

    module = types.ModuleType("letstalk_rt.inference.pipeline")
    module.AvatarPipeline = AvatarPipeline
    monkeypatch.setitem(sys.modules, "letstalk_rt.inference.pipeline", module)
    with pytest.raises(WeightsError, match="stop here"):
        Avatar.load("me.jpg", weights="own.safetensors")
    assert loaded == [Path("own.safetensors")]


def test_loading_brings_model_and_portrait_together(monkeypatch):
    pipeline = FakePipeline()
    pipeline.finder = object()
    calls = []

    class AvatarPipeline:
        @classmethod
        def load(cls, **options):
            calls.append(options)
            return pipeline

    def prepare_portrait(source, finder, *, size, face_at):
        calls.append((source, finder, size, face_at))
        return portrait(77)

    module = types.ModuleType("letstalk_rt.inference.pipeline")
    vars(module).update({"AvatarPipeline": AvatarPipeline})
    monkeypatch.setitem(sys.modules, "letstalk_rt.inference.pipeline", module)
    monkeypatch.setattr("letstalk_rt.portrait.image.prepare_portrait", prepare_portrait)
    with Avatar.load("me.jpg", "tiny", "cpu", size=64) as avatar:
        options = {"preset": "tiny", "device": "cpu", "steps": None, "threads": None}
        options["weights"] = None
        assert calls == [options, (Path("me.jpg"), pipeline.finder, 64, None)]
        frame = next(iter(avatar.render(speech(HOP))))
    assert isinstance(frame, AVFrame)
    assert frame.rgb[0, 0, 0] == 77
