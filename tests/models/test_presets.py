"""Streaming with keys and values that are kept, mean velocities and guidance as an input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_model import DENOISER, PRESET, make_portrait, make_speech, stir

from letstalk_rt.errors import ConfigError, InputError, PortraitError
from letstalk_rt.inference.audio_stage import AudioState
from letstalk_rt.inference.autotune import DecoderVariant, apply_variant
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.sample_stage import LatentState
from letstalk_rt.models import avatar_model
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import tensors
from letstalk_rt.models.denoiser import Denoiser
from letstalk_rt.models.loading import face_finder_for
from letstalk_rt.models.presets import PRESETS, DCAutoencoderConfig, get_preset
from letstalk_rt.training.data.sound_inputs import AUDIO_CONTEXT_FRAMES
from letstalk_rt.training.data.windows import Batch, FlowLossConfig
from letstalk_rt.training.stages.flow_loss import FlowTrainer
from letstalk_rt.types import Portrait

CACHED = replace(
    PRESET,
    name="cached",
    denoiser=replace(
        DENOISER, memory=8, cached=True, second_time=True, guidance_input=True, time_head_width=16
    ),
    guidance=2.0,
)


def make(preset):
    torch.manual_seed(0)
    model = AvatarModel(preset)
    stir(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make(CACHED))


def hops(count, seed=0):
    return make_speech(count * 0.16, seed).reshape(count, 1, 2560)


def play(pipeline, state, sound):
    return np.concatenate([pipeline.step(hop, [state])[0] for hop in sound])


def largest_difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_state_keeps_its_addresses_and_size_for_ever(pipeline):
    state = pipeline.init_state(make_portrait())
    parts = [state[AudioState].encoder, state[LatentState].memory, state[LatentState].cache]
    before = [(part.data_ptr(), part.shape) for part in tensors(parts)]
    play(pipeline, state, hops(5))
    pipeline.interrupt(state, unseen=3)
    state.reset()
    assert [(part.data_ptr(), part.shape) for part in tensors(parts)] == before


def test_reset_equals_new(pipeline):
    portrait, sound = make_portrait(), hops(4)
    state = pipeline.init_state(portrait, StateOptions(5))
    play(pipeline, state, hops(4, seed=8))
    state.reset()
    new = play(pipeline, pipeline.init_state(portrait, StateOptions(5)), sound)
    assert np.array_equal(play(pipeline, state, sound), new)


def test_a_batch_of_sessions_is_as_good_as_alone(pipeline):
    portraits, sounds = [make_portrait(i) for i in range(4)], [hops(4, i) for i in range(4)]
    states = [pipeline.init_state(p, StateOptions(i)) for i, p in enumerate(portraits)]
    together = [pipeline.step(np.concatenate(pcm), states) for pcm in zip(*sounds, strict=True)]
    for index in range(4):
        alone = play(
            pipeline, pipeline.init_state(portraits[index], StateOptions(index)), sounds[index]
        )
        shown = np.concatenate([pictures[index] for pictures in together])
        assert largest_difference(shown, alone) <= 1


def test_the_kept_memory_ties_windows_together(pipeline):
    """The same window shows another motion when another past was kept."""
    portrait, sound = make_portrait(), hops(3)
    state = pipeline.init_state(portrait)
    play(pipeline, state, sound[:2])
    with torch.inference_mode():
        for layer in state[LatentState].cache.layers:
            layer.values[..., 1:, :].zero_()
    other = pipeline.init_state(portrait)
    play(pipeline, other, sound[:2])
    assert largest_difference(*(pipeline.step(sound[2], [each])[0] for each in (state, other))) > 0


def test_interrupt_takes_back_what_was_not_seen(pipeline):
    state = pipeline.init_state(make_portrait())
    play(pipeline, state, hops(2))
    kept = state[LatentState].cache.layers[0].keys[..., 5:7, :].clone()
    pipeline.interrupt(state, unseen=2)
    assert torch.equal(state[LatentState].cache.layers[0].keys[..., 7:9, :], kept)
    assert torch.equal(state[LatentState].cache.filled, state[LatentState].memory.filled)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_call_a_step_whatever_the_guidance(steps):
    model = make(CACHED)
    pipeline = AvatarPipeline(model, steps=steps, guidance=3.0)
    state, calls = pipeline.init_state(make_portrait()), []
    model.denoiser.blocks[0].register_forward_hook(lambda module, args, out: calls.append(out))
    pipeline.step(hops(1)[0], [state])
    assert [len(out) for out in calls] == [1] * steps


def count_items(pipeline):
    state, items = pipeline.init_state(make_portrait()), []
    hook = pipeline.model.denoiser.blocks[0].register_forward_hook(
        lambda module, args, out: items.append(len(out))
    )
    pipeline.step(hops(1)[0], [state])
    hook.remove()
    return items


def test_guidance_is_applied_and_costs_a_second_item_unless_it_is_folded_in():
    model = make(replace(PRESET, steps=1))
    assert count_items(AvatarPipeline(model, guidance=2.0)) == [2]
    assert count_items(AvatarPipeline(model, guidance=1.0)) == [1]
    model.folded_guidance.fill_(2.0)
    assert count_items(AvatarPipeline(model, guidance=2.0)) == [1]
    assert count_items(AvatarPipeline(model, guidance=3.0)) == [2]


def test_guidance_changes_the_picture():
    model, portrait = make(replace(PRESET, steps=1)), make_portrait()
    weak, strong = (AvatarPipeline(model, guidance=g) for g in (1.0, 3.0))
    shown = [play(p, p.init_state(portrait), hops(1)) for p in (weak, strong)]
    assert largest_difference(*shown) > 2


def test_sessions_that_do_not_fit_into_one_batch_are_named(pipeline):
    states = [pipeline.init_state(make_portrait(), StateOptions(steps=n)) for n in (1, 2)]
    with pytest.raises(InputError, match="must have the same steps"):
        pipeline.step(hops(1)[0].repeat(2, 0), states)


class TestPaperAutoencoder:
    """The same path with the paper's autoencoder, small and with random weights."""

    @pytest.fixture
    def pipeline(self, monkeypatch):
        pytest.importorskip("diffusers")
        small = {"widths": (32,) * 6, "encoder_layers": (1,) * 6, "decoder_layers": (1,) * 6}
        random = DCAutoencoder.random.__func__
        monkeypatch.setattr(
            avatar_model.DCAutoencoder,
            "random",
            classmethod(lambda cls, size: random(cls, size, **small)),
        )
        preset = replace(
            CACHED,
            autoencoder=DCAutoencoderConfig(image_size=64),
            denoiser=replace(CACHED.denoiser, channels=32, side=2),
            parts=(),
        )
        return AvatarPipeline(make(preset))

    def portrait(self, pipeline):
        given = make_portrait()
        crop = np.ascontiguousarray(given.crop[::4, ::4])
        return Portrait(given.canvas, crop, given.box)

    def test_sound_becomes_pictures(self, pipeline):
        shown = play(pipeline, pipeline.init_state(self.portrait(pipeline)), hops(3))
        assert shown.shape == (12, 96, 112, 3)

    def test_the_flow_trains_on_its_latents_without_landmarks(self, pipeline):
        model = make(pipeline.model.preset).requires_grad_(True)
        trainer = FlowTrainer(model, FlowLossConfig())
        shape = (2, 32, 2, 2)
        batch = Batch(
            portrait=torch.randn(shape),
            window=torch.randn(2, 4, *shape[1:]),
            memory=torch.randn(2, 8, *shape[1:]),
            filled=torch.ones(2, 8, dtype=torch.bool),
            features=torch.rand(2, 64, 4 * (AUDIO_CONTEXT_FRAMES + 6)),
            targets=torch.zeros(2, AUDIO_CONTEXT_FRAMES + 4, 11),
            weight=torch.ones(2),
        )
        loss, parts = trainer.loss(model, batch, torch.Generator().manual_seed(0))
        loss.backward()
        assert parts["velocity"] > 0 and parts["lips"] == 0
        assert model.denoiser.kinds.grad.abs().sum() > 0

    def test_it_has_no_landmarks_and_finds_faces_by_the_embedded_model(self, pipeline):
        assert pipeline.model.face is None
        assert (pipeline.finder.preset, pipeline.finder.crop_px) == ("tiny", 64)
        with pytest.raises(ConfigError, match="has no face detector"):
            pipeline.model.face_finder()

    def test_whose_face_finder_is_loaded_is_logged(self, pipeline, caplog):
        caplog.set_level("INFO", "letstalk_rt")
        assert face_finder_for(pipeline.model).preset == "tiny"
        assert "preset cached has no face detector; using that of preset tiny" in caplog.text

    def test_it_is_not_run_in_8_bit_integers(self, pipeline):
        with pytest.raises(ConfigError, match="int8 needs the decoder of 'tiny'"):
            apply_variant(pipeline.model, DecoderVariant("int8"))

    def test_a_crop_of_another_size_is_named(self, pipeline):
        with pytest.raises(PortraitError, match=r"must be \(64, 64, 3\)"):
            pipeline.init_state(make_portrait())


def test_presets_are_of_the_papers_sizes():
    """Millions of parameters; the published blocks have one more layer after the attention."""
    counts = {}
    for name in PRESETS:
        with torch.device("meta"):
            denoiser = Denoiser(get_preset(name).denoiser)
        counts[name] = round(sum(p.numel() for p in denoiser.parameters()) / 1e6, 1)
    hearing = {"b-wav2vec2": 235.8, "l-wav2vec2": 776.4}  # with wider audio tokens
    assert counts == {"tiny": 4.8, "b": 213.8, "l": 740.7} | hearing


def test_parts_that_do_not_fit_each_other_are_named():
    wrong = replace(PRESET, denoiser=replace(DENOISER, side=8))
    with pytest.raises(ConfigError, match=r"latents are \(24, 4, 4\), the denoiser expects"):
        AvatarModel(wrong)


def test_an_unknown_preset_is_named():
    known = "known: b, b-wav2vec2, l, l-wav2vec2, tiny"
    with pytest.raises(ConfigError, match=f"unknown preset 'xxl'; {known}"):
        get_preset("xxl")


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"device": "tpu"}, "device must be"),
        ({"device": "cpu", "dtype": "fp8"}, "dtype must be"),
        ({"device": "cpu", "threads": 0}, "threads must be at least 1"),
        ({"device": "cpu", "guidance": 11}, "guidance must be from 0 to 10"),
    ],
)
def test_bad_settings_are_named(options, wrong):
    with pytest.raises(ConfigError, match=wrong):
        AvatarPipeline.load("tiny", **options)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device '{device}' was requested"):
        AvatarPipeline.load("tiny", device)
