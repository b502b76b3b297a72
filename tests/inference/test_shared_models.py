"""A process loads a model once, however many pipelines animate portraits with it."""

import gc
import os
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.small_model import make_speech

from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import WeightsError
from letstalk_rt.inference import shared_models
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.models.loading import checksum_file, packaged_weights
from letstalk_rt.portrait.image import prepare_portrait


def load(**options):
    return AvatarPipeline.load(device="cpu", **({"dtype": "float32"} | options))


def test_pipelines_share_their_model_but_not_across_formats():
    first, second, other = load(), load(steps=2), load(dtype="bfloat16")
    assert second.model is first.model and second.steps == 2
    assert other.model is not first.model


def test_threads_that_load_at_the_same_time_load_once(monkeypatch):
    calls, begun = [], threading.Event()

    def counted(*source):
        calls.append(torch.get_num_threads())
        begun.wait(5)
        return load_model(*source)

    load_model = shared_models.load_model
    monkeypatch.setattr(shared_models, "load_model", counted)
    with ThreadPoolExecutor(2) as pool:
        loading = [pool.submit(load, compiled=False) for _ in range(2)]
        begun.set()
        first, second = (one.result() for one in loading)
    assert first.model is second.model and calls == [1], "with one thread"


def test_a_model_is_released_with_its_last_pipeline():
    first, second = load(dtype="float16"), load(dtype="float16")
    model = weakref.ref(first.model)
    del first
    gc.collect()
    assert model() is not None
    del second
    gc.collect()
    assert model() is None


def test_weights_that_were_written_anew_are_loaded(tmp_path):
    packaged = packaged_weights("tiny")
    weights = tmp_path / "own.safetensors"
    shutil.copy(packaged, weights)
    shutil.copy(checksum_file(packaged), checksum_file(weights))
    first = load(weights=weights)
    assert load(weights=weights).model is first.model
    os.utime(weights, ns=(0, 0))
    assert load(weights=weights).model is not first.model


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights at none\.safetensors"):
        load(weights=tmp_path / "none.safetensors")


def test_two_pipelines_at_the_same_time_show_what_each_shows_alone():
    pipelines = [load(), load()]
    names = sorted(list_avatars())[:2]
    portraits = [prepare_portrait(list_avatars()[n], pipelines[0].finder, size=256) for n in names]
    pcm = make_speech(6 * 0.16).reshape(6, 1, -1)

    def play(pipeline, portrait, step=lambda: None):
        state = pipeline.init_state(portrait)
        windows = []
        for hop in pcm:
            step()
            windows.append(pipeline.step(hop, [state])[0])
        return np.concatenate(windows)

    alone = [play(*pair) for pair in zip(pipelines, portraits, strict=True)]
    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(play, *pair, together.wait)
            for pair in zip(pipelines, portraits, strict=True)
        ]
    for one, expected in zip(running, alone, strict=True):
        assert np.array_equal(one.result(), expected)
