"""The branch that tells the denoiser the rest of the face: what it is told, and what it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_model import make_motion_model
from support.training import generator, silent_parts

from letstalk_rt.models.avatar_model import with_part
from letstalk_rt.models.geometry.landmarks import REST
from letstalk_rt.models.landmark_condition import LandmarkBranch, rest_of_face
from letstalk_rt.models.parts import LANDMARK_CONDITION
from letstalk_rt.training.data.sound_inputs import MelInput
from letstalk_rt.training.data.tracks import encode_clips, fit_scales
from letstalk_rt.training.data.windows import FlowLossConfig, WindowSource
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.landmark_branch import (
    LandmarkTrainer,
    masked_rest,
    predict,
    train_landmark_branch,
)


@pytest.fixture(scope="module")
def tracks(clips):
    in_memory = [replace(clip, frames=np.array(clip.frames)) for clip in clips[:2]]
    return encode_clips(make_motion_model().autoencoder, in_memory)


def model_for(tracks):
    plain = make_motion_model()
    fit_scales(plain, tracks)
    shape = plain.denoiser.config
    torch.manual_seed(4)
    return with_part(plain, LANDMARK_CONDITION, LandmarkBranch(shape.width, shape.side))


def drawn(model, tracks, size=8):
    shape = model.denoiser.config
    source = WindowSource(tracks, shape.window, shape.memory, FlowLossConfig(), MelInput())
    return source.draw(size, generator())


def test_traces_of_the_mouth_are_masked_with_the_mouth(tracks):
    model = model_for(tracks)
    natural = model.motion.expression.mouth.natural.normal_(std=0.1)
    batch, landmarks = drawn(model, tracks), model.autoencoder.landmarks
    told = masked_rest(model, landmarks, batch, generator())
    clear = rest_of_face(
        landmarks.decode_landmarks(batch.window), landmarks.decode_landmarks(batch.portrait)
    )
    natural.zero_()
    unspoken = masked_rest(model, landmarks, batch, generator())
    assert told.shape == (*batch.window.shape[:2], len(REST), 2)
    assert (told - unspoken).std() > 0, "motion of speech is added"
    assert 0.01 < (unspoken - clear).std() < 0.03, "and errors of landmarks"


def test_the_loss_reaches_all_of_the_branch(tracks):
    model = model_for(tracks)
    branch = model.denoiser.landmarks.requires_grad_(True)
    for layer in (branch.tokens, branch.vector):
        torch.nn.init.normal_(layer.weight, std=0.05)
    loss, parts = LandmarkTrainer(branch).loss(model, drawn(model, tracks), generator())
    loss.backward()
    assert not silent_parts(branch)
    assert parts["velocity"] > 0 and parts["points"] > 0
    assert all(p.grad is None for n, p in model.named_parameters() if "landmarks." not in n)


def test_only_the_branch_is_trained_and_it_lowers_the_loss(tracks, tmp_path):
    model = model_for(tracks)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = LoopConfig(steps=30, learning_rate=3e-3, warm_up=5, ema=0.9, evaluate_every=1000)
    batch = drawn(model, tracks, 16)
    first = predict(model, batch, generator(1), pure_noise=1.0)
    branch = train_landmark_branch(model, tracks, tracks, tmp_path, config, batch_size=8)
    trained = with_part(model, LANDMARK_CONDITION, branch)
    changed = {n for n, value in trained.state_dict().items() if not torch.equal(value, before[n])}
    assert changed and all(name.startswith("denoiser.landmarks.") for name in changed)
    last = predict(trained, batch, generator(1), pure_noise=1.0)
    assert (last.data - last.true).square().mean() < (first.data - first.true).square().mean()
    log = (tmp_path / "log.jsonl").read_text()
    assert "rest_px_without" in log
