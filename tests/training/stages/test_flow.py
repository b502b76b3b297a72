"""The flow's windows, losses and runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.data_folder import (
    FRAMES,
)
from support.small_model import PRESET, stir
from support.training import generator, silent_parts

from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES, CausalAudioEncoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.training.data.audio_features import (
    NUM_MOUTH_TARGETS,
)
from letstalk_rt.training.data.sound_inputs import AUDIO_CONTEXT_FRAMES, MelInput
from letstalk_rt.training.data.tracks import encode_clips, fit_scales
from letstalk_rt.training.data.windows import FlowLossConfig, WindowSource
from letstalk_rt.training.evaluation import rollout
from letstalk_rt.training.evaluation.rollout import generate
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.flow import train_flow
from letstalk_rt.training.stages.flow_loss import FlowTrainer, noised_memory


def flow_model():
    torch.manual_seed(0)
    model = AvatarModel(PRESET)
    stir(model)
    return model


@pytest.fixture(scope="module")
def tracks(clips):
    in_memory = [replace(clip, frames=np.array(clip.frames)) for clip in clips[:2]]
    return encode_clips(flow_model().autoencoder.eval(), in_memory)


class TestFlowLoss:
    @pytest.fixture
    def model(self, tracks):
        model = flow_model()
        fit_scales(model, tracks)
        return model

    def draw(self, tracks, seed=0, size=12, **shares):
        config = PRESET.denoiser
        source = WindowSource(
            tracks, config.window, config.memory, FlowLossConfig(**shares), MelInput()
        )
        return source.draw(size, generator(seed))

    def test_units_have_unit_variance(self, model, tracks):
        latents = torch.cat([t.latents.flatten(0, 1)[::5] for t in tracks])
        scaled = model.normalized_portrait(latents)
        assert scaled.mean((0, 2, 3)).abs().max() < 1e-3
        face, around = scaled.std((0, 2, 3)).split([16, 8])
        torch.testing.assert_close(face, torch.ones(16), atol=1e-3, rtol=0)
        assert not around.any()  # a portrait's are at rest
        motion = model.to_motion(tracks[0].latents, tracks[0].latents[:, 0])
        again = model.to_latents(motion, tracks[0].latents[:, 0])
        torch.testing.assert_close(again, tracks[0].latents, atol=1e-5, rtol=1e-4)
        assert not motion[:, 0].any()

    def test_windows_come_with_what_was_before_them(self, tracks):
        batch = self.draw(
            tracks, no_memory=0.0, frozen_memory=0.0, stale_memory=0.0, silent=0.0, size=20
        )
        assert batch.window.shape == (20, 4, 24, 4, 4) and batch.memory.shape == (20, 6, 24, 4, 4)
        for item in range(20):
            places = [
                (track, version, start)
                for track, t in enumerate(tracks)
                for version in range(2)
                for start in range(FRAMES - 3)
                if torch.equal(t.latents[version, start : start + 4], batch.window[item])
            ]
            assert places
            track, version, start = places[0]
            known = min(6, start)
            assert batch.filled[item].tolist() == [False] * (6 - known) + [True] * known
            before = tracks[track].latents[version, start - known : start]
            assert torch.equal(batch.memory[item, 6 - known :], before)
            heard = tracks[track].audio_clip.features[
                :, 4 * start : 4 * (start + 4 + LOOKAHEAD_FRAMES)
            ]
            assert torch.equal(batch.features[item][:, 4 * AUDIO_CONTEXT_FRAMES :], heard)
            told = tracks[track].audio_clip.targets[start : start + 4]
            assert torch.equal(batch.targets[item, AUDIO_CONTEXT_FRAMES:], told)

    def test_an_item_hears_all_that_the_encoder_remembers(self):
        torch.manual_seed(0)
        encoder = CausalAudioEncoder().eval().requires_grad_(False)
        mel = torch.randn(1, 64, 4 * (3 + AUDIO_CONTEXT_FRAMES + 1))
        cut = encoder.encode_mel(mel[:, :, 4 * 3 :])[:, -1]
        torch.testing.assert_close(cut, encoder.encode_mel(mel)[:, -1])

    def test_beyond_the_ends_of_a_clip_there_is_silence(self):
        sound, ahead = MelInput(), LOOKAHEAD_FRAMES
        mel = torch.randn(64, 4 * (10 + ahead))
        for start in (-60, 60):  # no frame of such a window is in the clip
            heard = sound.window(mel, start, 4)
            assert heard.shape == (64, 4 * (AUDIO_CONTEXT_FRAMES + 4 + ahead))
            assert torch.equal(heard, heard[:, :1].expand_as(heard))
        at_start = sound.window(mel, 0, 4)
        assert torch.equal(at_start[:, 4 * AUDIO_CONTEXT_FRAMES :], mel[:, : 4 * (4 + ahead)])

    def test_a_stale_memory_is_of_another_moment(self, tracks):
        shares = {"no_memory": 0.0, "frozen_memory": 0.0, "silent": 0.0, "size": 20}
        fresh = self.draw(tracks, stale_memory=0.0, **shares)
        stale = self.draw(tracks, stale_memory=1.0, **shares)
        assert not torch.equal(stale.memory, fresh.memory)

    def test_drift_moves_all_memory_alike(self, model, tracks):
        batch = self.draw(tracks, no_memory=0.0, frozen_memory=1.0)
        weights = FlowLossConfig(drift=0.8, heavy_noise=0.0)
        memory, filled = noised_memory(model, batch, weights, generator(1))
        assert filled.all() and not memory[:, 0].any()  # the anchor is never corrupted
        shared = memory[:, 1:].mean(1).std()
        assert shared > 3 * (memory[:, 1:] - memory[:, 1:].mean(1, keepdim=True)).std()

    def test_shares_of_special_items(self, tracks):
        assert not self.draw(tracks, no_memory=1.0, frozen_memory=0.0).filled.any()
        frozen = self.draw(tracks, no_memory=0.0, frozen_memory=1.0)
        assert frozen.filled.all()
        assert torch.equal(frozen.memory, frozen.portrait[:, None].expand_as(frozen.memory))
        assert not self.draw(tracks, silent=1.0).targets.any()

    def test_it_reaches_every_part_and_the_audio_encoder_too(self, model, tracks):
        trainer = FlowTrainer(model, FlowLossConfig(no_audio=0.3))
        stir(trainer)
        torch.manual_seed(2)
        value, parts = trainer.loss(model, self.draw(tracks, no_memory=0.0), generator(4))
        value.backward()
        assert silent_parts(trainer) == []
        assert any(name.startswith("audio.") for name, _ in trainer.named_parameters())
        assert all(math.isfinite(part) for part in parts.values())

    def test_a_run_changes_the_audio_encoder_and_not_the_autoencoder(self, model, tracks, tmp_path):
        trainer = FlowTrainer(model, FlowLossConfig())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        run = Run(tmp_path, trainer, LoopConfig(steps=2, warm_up=1, learning_rate=1e-3))
        run.train(lambda step: trainer.loss(model, self.draw(tracks, step), run.generator))
        after = model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        parts = {name.partition(".")[0] for name in changed}
        assert parts == {"audio", "denoiser"}
        assert {n for n, _ in model.named_parameters() if n.startswith("audio.")} <= changed

    def test_a_few_steps_lower_it(self, model, tracks):
        torch.manual_seed(3)
        trainer = FlowTrainer(model, FlowLossConfig()).eval()
        batch = self.draw(tracks, 1, 8)
        optimizer = torch.optim.Adam(trainer.parameters(), lr=2e-3)
        values = []
        for _ in range(6):
            value, _ = trainer.loss(model, batch, generator(5))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < values[0]

    def test_a_bottleneck_shows_true_mouths_and_keeps_its_reading(self, tracks, tmp_path):
        torch.manual_seed(0)
        audio = replace(PRESET.audio, mouth_values=NUM_MOUTH_TARGETS)
        model = AvatarModel(replace(PRESET, audio=audio))
        stir(model)
        fit_scales(model, tracks)
        batch = self.draw(tracks, 1, 8)
        other = replace(batch, features=torch.randn_like(batch.features))

        def value(batch, **shares):
            trainer = FlowTrainer(model, FlowLossConfig(no_audio=0.0, **shares)).eval()
            return trainer.loss(model, batch, generator(5))[0].detach()

        assert torch.equal(value(batch, mouth_read=0.0), value(other, mouth_read=0.0))
        assert not torch.equal(value(batch, mouth_read=1.0), value(other, mouth_read=1.0))

        before = {name: value.clone() for name, value in model.audio.state_dict().items()}
        trainer = FlowTrainer(model, FlowLossConfig(no_audio=0.0))
        run = Run(tmp_path, trainer, LoopConfig(steps=2, warm_up=1, learning_rate=1e-3))
        run.train(lambda step: trainer.loss(model, batch, run.generator))
        after = model.audio.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"mouth.show.weight", "mouth.show.bias"}

    def test_whole_sounds_are_generated_window_by_window(self, model, tracks):
        sounds = torch.stack([track.audio_clip.features for track in tracks])
        portraits = torch.stack([track.latents[0, 0] for track in tracks])
        made = generate(model.eval(), sounds, portraits, steps=1)
        assert made.shape == (2, FRAMES, 24, 4, 4) and made.isfinite().all()
        later = sounds.clone()
        later[:, :, 4 * (12 + 2) :] = 1.0
        again = generate(model, later, portraits, steps=1)
        torch.testing.assert_close(again[:, :12], made[:, :12])
        assert not torch.allclose(again[:, 12:], made[:, 12:])


def test_surroundings_are_learned_without_touching_the_face(clips, tracks, tmp_path):
    model = flow_model()
    fit_scales(model, tracks)
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    config = LoopConfig(steps=3, warm_up=1, learning_rate=1e-2, weight_decay=0.1, evaluate_every=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "EVALUATION_FRAMES", 8)
        made = train_flow(
            model,
            tracks,
            tracks,
            tmp_path,
            config,
            batch_size=4,
            initial_weights=before,
            freeze_faces=True,
        )
    after = made.denoiser.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"head.weight", "head.bias"}
    for name in changed:
        assert torch.equal(before[name][:16], after[name][:16])


def test_surroundings_have_no_chance_of_their_own():
    noise = torch.randn(2, 4, 24, 4, 4)
    kept = flow_model().without_background_noise(noise)
    assert torch.equal(kept[:, :, :16], noise[:, :, :16]) and not kept[:, :, 16:].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_run_goes_on_where_it_stopped(tracks, tmp_path):
    model = flow_model()
    fit_scales(model, tracks)
    config = LoopConfig(steps=2, warm_up=1, evaluate_every=10, device="cuda")
    trainer = FlowTrainer(model.to("cuda"), FlowLossConfig())
    run = Run(tmp_path, trainer, config)
    shape = model.denoiser.config
    source = WindowSource(tracks, shape.window, shape.memory, FlowLossConfig(), MelInput())

    def loss(step):
        return trainer.loss(model, source.draw(4, run.generator).to(run.device), run.noise)

    run.train(loss)
    again = Run(tmp_path, FlowTrainer(model, FlowLossConfig()), replace(config, steps=3))
    assert again.step == 2
    assert next(again.model.parameters()).device.type == "cuda"
    again.train(loss)
