"""The denoiser as published: its sizes to the digit, its parts, what it refuses."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.small_paper_model import (
    CONFIG,
    PROJECTOR,
    arguments,
    make_batch,
    make_paper_model,
    make_preset,
)

from letstalk_rt.errors import ConfigError, InputError, WeightsError
from letstalk_rt.models.audio_encoder.projector import PUBLISHED_PROJECTOR
from letstalk_rt.paper import denoiser as module
from letstalk_rt.paper.checkpoints import load_paper_model, save_paper_model
from letstalk_rt.paper.denoiser import (
    PaperModel,
    count_parameters,
    first_memory,
    guided_prediction,
)
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.kl_ae import KLAutoencoder
from letstalk_rt.paper.presets import (
    PAPER_PRESETS,
    PaperConfig,
    PaperPreset,
    get_paper_preset,
)

COUNTS = {"s": 59_446_720, "b": 222_407_488, "l": 773_600_320, "xl": 1_134_868_672}
FIRST_COUNTS = {
    ("s", 2): 51_981_728, ("s", 4): 52_037_120, ("s", 8): 52_258_688,
    ("b", 2): 193_321_760, ("b", 4): 193_432_448, ("b", 8): 193_875_200,
    ("l", 2): 670_921_760, ("l", 4): 671_069_312, ("l", 8): 671_659_520,
    ("xl", 2): 983_597_216, ("xl", 4): 983_763_200, ("xl", 8): 984_427_136,
}  # fmt: skip
"""Counted by executing the authors' `VDTcat` models at 26660f1."""
SIZES = [("s", 12, 384), ("b", 12, 768), ("l", 24, 1024), ("xl", 28, 1152)]
PUBLISHED_MILLIONS = {"s": 59.4, "b": 222.4, "l": 773.6, "xl": 1134.9}


class TestSizes:
    @pytest.mark.parametrize("name", sorted(COUNTS))
    def test_a_preset_has_the_published_count(self, name):
        preset = get_paper_preset(name)
        with torch.device("meta"):
            model = PaperModel(preset)
        d, depth = preset.denoiser.width, preset.denoiser.depth
        derived = depth * (29 * d**2 + 1639 * d) + 3 * d**2 + 357 * d + 64
        assert count_parameters(model.denoiser) == derived == COUNTS[name]
        assert round(COUNTS[name] / 1e6, 1) == PUBLISHED_MILLIONS[name]
        assert count_parameters(model.projector) == 36_465_152
        assert module.__doc__ and f"{COUNTS[name]:,}" in module.__doc__

    def test_each_part_of_a_block_has_the_derived_count(self):
        with torch.device("meta"):
            block = PaperModel(get_paper_preset("b")).denoiser.blocks[0]
        d = 768
        assert {name: count_parameters(part) for name, part in block.named_children()} == {
            "time": 5 * d**2 + 7 * d,
            "audio": 2 * d**2 + 1537 * d,
            "portrait": 0,
            "norm_space": 0,
            "norm_ffn": 0,
            "space": 4 * d**2 + d,
            "ffn": 12 * d**2 + 88 * d,
            "modulation": 6 * d**2 + 6 * d,
        }

    def test_a_step_of_b_costs_what_was_counted(self):
        from torch.utils.flop_counter import FlopCounterMode

        config = get_paper_preset("b").denoiser
        latent = config.latent_shape
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            PaperModel(get_paper_preset("b")).denoiser(
                torch.empty(1, 16, *latent),
                torch.empty(1),
                torch.empty(1, 16, 32, 768),
                torch.empty(1, *latent),
                torch.empty(1, 2, *latent),
            )
        assert round(counter.get_total_flops() / 1e12, 2) == 1.64

    def test_the_published_shape_is_this(self):
        config = get_paper_preset("l").denoiser
        assert (config.frames, config.memory, config.latent_shape) == (16, 2, (32, 16, 16))
        assert (config.portrait_fusion, config.audio_fusion) == ("symbiotic", "direct")
        assert get_paper_preset("l").steps == 250

    @pytest.mark.parametrize("size, depth, d", SIZES)
    @pytest.mark.parametrize("p", [2, 4, 8])
    def test_the_first_version_has_its_count(self, size, depth, d, p):
        preset = get_paper_preset(f"v1-{size}-{p}")
        with torch.device("meta"):
            model = PaperModel(preset)
        derived = depth * (25 * d**2 + 1559 * d) + 3 * d**2 + (261 + 12 * p**2) * d + 8 * p**2
        assert count_parameters(model.denoiser) == derived == FIRST_COUNTS[size, p]

    def test_the_first_version_has_this_shape(self):
        preset = get_paper_preset("v1-b-4")
        config = preset.denoiser
        assert (config.frames, config.memory, config.latent_shape) == (16, 0, (4, 32, 32))
        assert (config.attention, config.patch, config.grid) == ("softmax", 4, 8)
        assert (preset.autoencoder, preset.image_size) == (KLAutoencoder, 256)
        assert get_paper_preset("b").image_size == 512

    def test_an_unknown_preset_is_refused(self):
        with pytest.raises(ConfigError, match="'tiny'; known: s, b, l, xl, v1-s-2"):
            get_paper_preset("tiny")

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"width": 48}, "multiple of 32"),
            ({"heads": 7}, "7 heads"),
            ({"depth": 0}, "depth"),
            ({"audio_fusion": "loud"}, "unknown fusion 'loud'; known: direct"),
            ({"attention": "loud"}, "unknown attention 'loud'; known: linear, softmax"),
            ({"patch": 3}, "patches of 3 do not tile latents of 4x4"),
            ({"memory": -1}, "memory of the denoiser must be positive"),
            ({"attention": "softmax", "width": 42, "heads": 6}, "multiple of 4"),
        ],
    )
    def test_a_shape_that_cannot_be_is_refused(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            replace(CONFIG, **changes)

    def test_projector_and_denoiser_must_fit(self):
        with pytest.raises(ConfigError, match="audio projector"):
            PaperModel(PaperPreset("odd", CONFIG, PUBLISHED_PROJECTOR, autoencoder=KLAutoencoder))

    def test_denoiser_and_autoencoder_must_fit(self):
        with pytest.raises(ConfigError, match="has 4 channels, latents of DC-AE f32c32 have 32"):
            PaperPreset("odd", CONFIG, PROJECTOR)


class TestDenoiser:
    @pytest.fixture
    def denoiser(self):
        return make_paper_model().denoiser

    def test_it_gives_noise_and_variance_of_each_frame(self, denoiser):
        assert denoiser(**arguments()).shape == (2, 4, 8, 4, 4)

    def test_items_do_not_mix(self, denoiser):
        given = arguments()
        both = denoiser(**given)
        for item in range(2):
            alone = denoiser(**{name: value[item : item + 1] for name, value in given.items()})
            torch.testing.assert_close(alone, both[item : item + 1], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("name", ["t", "tokens", "portrait", "memory"])
    def test_every_condition_has_its_say(self, denoiser, name):
        given = arguments()
        before = denoiser(**given)
        given[name] = given[name].flip(0)
        assert (denoiser(**given) - before).abs().amax() > 1e-4

    def test_time_runs_both_ways(self, denoiser):
        given = arguments()
        before = denoiser(**given)
        given["x"] = given["x"].clone()
        given["x"][:, 2] += torch.randn_like(given["x"][:, 2])
        moved = (denoiser(**given) - before).abs().amax((0, 2, 3, 4))
        assert (moved > 1e-5).all()

    def test_speech_of_a_frame_reaches_other_frames_through_time_alone(self):
        model = make_paper_model(depth=1).denoiser
        given = arguments()
        before = model(**given)
        given["tokens"] = given["tokens"].clone()
        given["tokens"][:, 2] += 1
        moved = (model(**given) - before).abs().amax((0, 2, 3, 4))
        assert moved[2] > 1e-5 and not moved[[0, 1, 3]].any()

    def test_an_untrained_model_predicts_nothing(self):
        torch.manual_seed(0)
        assert not PaperModel(make_preset()).denoiser(**arguments()).any()

    def test_recomputing_changes_no_gradient(self):
        grads = []
        for recompute in (False, True):
            denoiser = make_paper_model().denoiser.requires_grad_()
            denoiser.recompute = recompute
            denoiser(**arguments()).square().mean().backward()
            grads.append([p.grad.clone() for p in denoiser.parameters()])
        for plain, again in zip(*grads, strict=True):
            torch.testing.assert_close(plain, again)

    def test_mixed_precision_comes_out_near(self, denoiser):
        given = arguments()
        wanted = denoiser(**given)
        with torch.autocast("cpu", torch.bfloat16):
            found = denoiser(**given)
        assert F.cosine_similarity(found.float().flatten(), wanted.flatten(), 0) > 0.99

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_comes_out_near(self, denoiser, dtype):
        given = arguments()
        found, wanted = make_paper_model().denoiser.to(dtype)(**given), denoiser(**given)
        assert found.dtype == dtype
        assert F.cosine_similarity(found.float().flatten(), wanted.flatten(), 0) > 0.99

    @pytest.mark.parametrize("name", ["x", "t", "tokens", "portrait", "memory"])
    def test_a_wrong_shape_is_told_by_name(self, denoiser, name):
        given = arguments()
        given[name] = given[name][..., :1, None]
        with pytest.raises(InputError, match=f"^{name} must have shape"):
            denoiser(**given)

    def test_bytes_are_refused(self, denoiser):
        given = arguments()
        given["portrait"] = given["portrait"].to(torch.uint8)
        with pytest.raises(InputError, match="portrait must be floating point, got uint8"):
            denoiser(**given)


class TestGuidance:
    def test_at_one_it_is_the_plain_prediction(self):
        denoiser = make_paper_model().denoiser
        assert torch.equal(
            guided_prediction(denoiser, **arguments(), guidance=1), denoiser(**arguments())
        )

    def test_it_moves_all_channels_of_the_noise_away_from_silence(self):
        denoiser, given = make_paper_model().denoiser, arguments()
        heard = denoiser(**given)
        silent = denoiser(**(given | {"tokens": torch.zeros_like(given["tokens"])}))
        found = guided_prediction(denoiser, **given, guidance=3)
        noise, variance = found.chunk(2, 2)
        wanted = silent[:, :, :4] + 3 * (heard[:, :, :4] - silent[:, :, :4])
        torch.testing.assert_close(noise, wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(variance, heard[:, :, 4:], atol=1e-6, rtol=1e-5)


class TestGenerate:
    def features(self, frames=8):
        return torch.randn(1, frames, PROJECTOR.layers, PROJECTOR.feature_width)

    def test_each_clip_is_handed_out_before_the_next_is_sampled(self):
        model, calls = make_paper_model(), []
        model.denoiser.register_forward_hook(lambda *_: calls.append(1))
        clips = model.generate(self.features(), make_batch(1).portrait)
        assert next(clips).shape == (1, 4, 4, 4, 4)
        assert len(calls) == model.preset.steps
        assert next(clips).shape == (1, 4, 4, 4, 4)
        assert len(calls) == 2 * model.preset.steps
        assert next(clips, None) is None

    def test_memory_is_the_portrait_and_then_the_clip_before(self):
        model, seen = make_paper_model(), []
        model.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[4]))
        portrait = make_batch(1).portrait
        first, _ = model.generate(self.features(), portrait)
        assert torch.equal(seen[0], first_memory(portrait, 2))
        assert torch.equal(seen[-1], first[:, -2:])

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_the_same_seed_gives_the_same_video(self, deterministic):
        model, features = make_paper_model(), self.features(4)
        videos = [
            next(
                model.generate(
                    features,
                    make_batch(1).portrait,
                    diffusion=Diffusion(3),
                    deterministic=deterministic,
                    generator=torch.Generator().manual_seed(5),
                )
            )
            for _ in range(2)
        ]
        assert torch.equal(*videos)

    def test_a_model_in_half_precision_generates_in_full(self):
        model = make_paper_model().to(torch.bfloat16)
        clip = next(model.generate(self.features(4), make_batch(1).portrait))
        assert clip.dtype == torch.float32 and clip.isfinite().all()

    @pytest.mark.parametrize("frames", [0, 6])
    def test_a_length_that_is_no_multiple_of_the_clip_is_refused(self, frames):
        with pytest.raises(InputError, match="multiple of 4"):
            next(make_paper_model().generate(self.features(frames), make_batch(1).portrait))

    def test_nan_is_refused(self):
        portrait = make_batch(1).portrait
        portrait[0, 1, 2, 3] = float("nan")
        with pytest.raises(InputError, match="portrait holds NaN"):
            next(make_paper_model().generate(self.features(), portrait))


class TestCheckpoint:
    def test_weights_come_back(self, tmp_path):
        model = make_paper_model()
        save_paper_model(model, tmp_path / "w.safetensors")
        loaded = load_paper_model(model.preset, tmp_path / "w.safetensors")
        assert not loaded.training
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)

    def test_another_model_is_refused(self, tmp_path):
        path = tmp_path / "w.safetensors"
        save_paper_model(make_paper_model(), path)
        preset = make_preset()
        with pytest.raises(WeightsError, match="expected letstalk_rt faithful 1, b"):
            load_paper_model(get_paper_preset("b"), path)
        with pytest.raises(WeightsError, match="tensors differ, first 'denoiser.blocks"):
            load_paper_model(make_preset(depth=3), path)
        with pytest.raises(WeightsError, match="has shape"):
            load_paper_model(make_preset(ffn_ratio=3.0), path)
        path.write_bytes(b"nonsense")
        with pytest.raises(WeightsError, match="not a safetensors file"):
            load_paper_model(preset, path)
        with pytest.raises(WeightsError, match="no weights"):
            load_paper_model(preset, tmp_path / "none.safetensors")


def test_every_preset_says_every_shape():
    assert set(PAPER_PRESETS) == set(COUNTS) | {
        f"v1-{size}-{patch}" for size in COUNTS for patch in (2, 4, 8)
    }
    assert {f.name for f in fields(PaperConfig)} >= {"channels", "side", "width", "depth"}


def test_the_page_shows_the_counts_and_costs():
    page = Path(__file__).parents[2] / "docs" / "paper.md"
    rows = [line.split("|") for line in page.read_text().splitlines() if line.startswith("| `")]
    shown = {row[1].strip(" `"): row[4].strip() for row in rows if len(row) == 8}
    assert shown == {name: f"{count:,}" for name, count in COUNTS.items()}
