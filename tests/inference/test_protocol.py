"""Every model that the engine meets, stand-ins included, is a `Pipeline` in the same way."""

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
from support.faces import LoudIsBright
from support.fake_pipelines import GatedPipeline, StillPipeline
from support.fakes import FakePipeline, PartedPipeline
from support.server_fakes import Painter
from support.small_model import make_model, make_portrait

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import Pipeline, StateOptions

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CALLS = ("init_state", "step", "interrupt", "change_portrait", "batch_key")


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


session_probes = loaded(BENCHMARKS / "session_probes.py")
flash_avatar = loaded(BENCHMARKS / "webrtc" / "flash_avatar.py")

MODELS = [
    AvatarPipeline,
    IsolatedPipeline,
    FakePipeline,
    PartedPipeline,
    GatedPipeline,
    Painter,
    LoudIsBright,
    StillPipeline,
    session_probes.FakePipeline,
    session_probes.TimedPipeline,
    flash_avatar.FlashPipeline,
]


def shape(parameters):
    return [(p.name, p.kind, p.default is p.empty) for p in parameters]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.__module__}.{model.__name__}")
def test_calls_take_what_the_protocol_says(model, call):
    own, wanted = (inspect.signature(getattr(c, call)).parameters for c in (model, Pipeline))
    assert getattr(model, call) is not getattr(Pipeline, call), "not made"
    assert shape(own.values())[: len(wanted)] == shape(wanted.values())
    assert all(p.default is not p.empty for p in list(own.values())[len(wanted) :])


def timed():
    return session_probes.TimedPipeline(session_probes.FakePipeline(64), 1.0)


MAKERS = [
    lambda: AvatarPipeline(make_model()),
    FakePipeline,
    PartedPipeline,
    Painter,
    LoudIsBright,
    StillPipeline,
    timed,
    flash_avatar.FlashPipeline,
]


@pytest.mark.parametrize("make", MAKERS)
def test_windows_are_delivered_in_the_declared_partial_sizes(make):
    pipeline, parts = make(), []
    state = pipeline.init_state(make_portrait(size=256))
    pcm = np.full((1, pipeline.hop), 0.1, np.float32)
    (window,) = pipeline.step(pcm, [state], lambda windows: parts.extend(windows))
    assert len(window) == pipeline.frames_per_window and window.dtype == np.uint8
    assert [len(part) for part in parts] == [*pipeline.partial_sizes]
    np.testing.assert_array_equal(np.concatenate(parts), window)
    assert str(pipeline.device) == "cpu"
    hash(pipeline.batch_key(state))


@pytest.mark.parametrize("steps", [0, 51, 1.5])
def test_sampler_steps_are_checked_where_they_are_asked_for(steps):
    with pytest.raises(ConfigError, match=f"steps must be .* from 1 to 50, got {steps}"):
        StateOptions(steps=steps)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5])
def test_seeds_are_checked_where_they_are_asked_for(seed):
    with pytest.raises(ConfigError, match=f"seed must be .*, got {seed}"):
        StateOptions(seed)
