"""The fastest number format is measured, kept for this machine, and gives the same picture."""

import json
import sys
from types import ModuleType

import pytest
import torch
from support.small_model import make_model
from torch import nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference import autotune
from letstalk_rt.inference.autotune import (
    DecoderVariant,
    apply_variant,
    choose_attention,
    fastest_variant,
    measure,
    variant_candidates,
)
from letstalk_rt.models.layers import int8
from letstalk_rt.models.layers.attention import attend
from letstalk_rt.models.layers.int8 import Int8Conv2d

needs_int8 = pytest.mark.skipif(not int8.is_supported(), reason="no oneDNN here")


@pytest.fixture
def model():
    return make_model()


def fake_times(monkeypatch, times_ms, **errors_db):
    measured = []

    def measure(model, variants, **options):
        measured.append([str(v) for v in variants])
        return {
            DecoderVariant.parse(name): autotune.Measurement(ms, errors_db.get(name, 60.0))
            for name, ms in times_ms.items()
        }

    monkeypatch.setattr(autotune, "measure", measure)
    return measured


def test_every_candidate_is_run_and_timed(model):
    taken_ms = measure(model, variant_candidates(), runs=1)
    assert set(taken_ms) <= set(variant_candidates()) and DecoderVariant() in taken_ms
    assert all(m.window_ms > 0 for m in taken_ms.values())


def test_the_error_of_each_candidate_is_that_of_its_frames(model):
    def decoder(model, variant):
        exact = model.autoencoder.decode

        def wrong_in_one_corner(latents, portrait):
            frames = exact(latents, portrait).clone()
            frames[..., :16, :16] += 0.2
            return frames

        return exact if variant.dtype == "float32" else wrong_in_one_corner

    variants = [DecoderVariant(), DecoderVariant("bfloat16")]
    plain, wrong = measure(model, variants, runs=1, decoder=decoder).values()
    assert plain.psnr_db == float("inf") and wrong.psnr_db == pytest.approx(20.0, abs=0.1)


def test_a_format_whose_error_shows_is_refused(model, monkeypatch, tmp_path):
    fake_times(monkeypatch, {"float32": 9.0, "bfloat16": 5.0, "int8": 4.0}, int8=30.0)
    assert fastest_variant(model, cache_file=tmp_path / "tuning.json") == DecoderVariant("bfloat16")


def test_a_format_that_is_hardly_faster_is_not_worth_its_rounding(model, monkeypatch, tmp_path):
    fake_times(monkeypatch, {"float32": 9.0, "int8": 8.9})
    assert fastest_variant(model, cache_file=tmp_path / "tuning.json") == DecoderVariant()


def test_a_variant_that_is_far_slower_is_not_run_again(model):
    runs = {"float32": 0, "bfloat16": 0}
    clock = 0.0

    def decoder(model, variant):
        def decode(latents, portrait):
            nonlocal clock
            runs[variant.dtype] += 1
            clock += 1.0 if variant.dtype == "bfloat16" else 0.1
            return model.autoencoder.decode(latents, portrait)

        return decode

    variants = [DecoderVariant(), DecoderVariant("bfloat16")]
    measure(model, variants, runs=5, now_s=lambda: clock, decoder=decoder)
    assert runs == {"float32": 6, "bfloat16": 2}


def test_measuring_leaves_the_model_as_it_is(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, variant_candidates(), runs=1)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_variant_that_is_not_to_be_had_is_left_out(model):
    def refuse(model, variant):
        if variant.dtype == "bfloat16":
            raise ConfigError("no")
        return model.autoencoder.decode

    taken_ms = measure(model, variant_candidates(), runs=1, decoder=refuse)
    assert set(taken_ms) == set(variant_candidates()) - {DecoderVariant("bfloat16")}


def test_the_best_run_counts(model):
    def decoder(model, variant):
        return model.autoencoder.decode

    clock = iter([0.0, 0.009, 1.0, 1.004, 2.0, 2.006])
    taken_ms = measure(
        model, [DecoderVariant()], runs=3, now_s=lambda: next(clock), decoder=decoder
    )
    assert taken_ms[DecoderVariant()].window_ms == pytest.approx(4.0)


def test_the_answer_is_kept_and_not_measured_again(model, monkeypatch, tmp_path):
    measured = fake_times(monkeypatch, {"float32": 9.0, "bfloat16": 4.0})
    path = tmp_path / "new" / "tuning.json"
    answers = {fastest_variant(model, cache_file=path) for _ in range(3)}
    assert answers == {DecoderVariant("bfloat16")} and len(measured) == 1
    (entry,) = json.loads(path.read_text()).values()
    assert {name: m["window_ms"] for name, m in entry["measured"].items()} == {
        "float32": 9.0,
        "bfloat16": 4.0,
    }


def test_another_number_of_threads_is_another_machine(model, monkeypatch):
    one = autotune.machine_key(model)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert autotune.machine_key(model) != one


@pytest.mark.parametrize("content", ["no json", "[]", '{"KEY": {"variant": "fp4"}}'])
def test_a_damaged_file_is_measured_over(model, monkeypatch, tmp_path, content):
    measured = fake_times(monkeypatch, {"float32": 1.0})
    path = tmp_path / "tuning.json"
    path.write_text(content.replace("KEY", autotune.machine_key(model)))
    assert fastest_variant(model, cache_file=path) == DecoderVariant() and len(measured) == 1


def test_a_folder_that_cannot_be_written_is_no_hindrance(model, monkeypatch, tmp_path):
    fake_times(monkeypatch, {"float32": 1.0})
    (tmp_path / "file").write_text("")
    assert fastest_variant(model, cache_file=tmp_path / "file" / "tuning.json") == DecoderVariant()


def test_compilation_is_tried_only_when_asked_for(model, monkeypatch, tmp_path):
    measured = fake_times(monkeypatch, {"float32": 1.0})
    path = tmp_path / "tuning.json"
    fastest_variant(model, cache_file=path)
    fastest_variant(model, cache_file=path, thorough=True)
    assert not any("compiled" in name for name in measured[0])
    assert {"float32 compiled", "bfloat16 compiled"} <= set(measured[1])


@pytest.mark.parametrize("text", ["int8", "bfloat16 compiled"])
def test_a_variant_is_written_as_it_is_read(text):
    assert str(DecoderVariant.parse(text)) == text


@pytest.mark.parametrize("text", ["fp4", "int8 fast"])
def test_an_unknown_variant_is_named(text):
    with pytest.raises(ConfigError, match=f"unknown variant '{text}'"):
        DecoderVariant.parse(text)


class TestAttention:
    time_s, tick_s, took_s = 0.0, 1.0, 1.0

    def now_s(self):
        self.time_s += self.tick_s
        return self.time_s

    @pytest.fixture
    def xformers(self, monkeypatch):
        """A stand-in that computes what xformers promises, in its own layout.

        By `now_s`, what runs takes a second, and from its first call on `took_s`.
        """
        package, ops = ModuleType("xformers"), ModuleType("xformers.ops")

        def attention(q, k, v, attn_bias=None):
            self.tick_s = self.took_s
            assert attn_bias is None or attn_bias.stride(-2) % 8 == 0
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            scores = scores if attn_bias is None else scores + attn_bias
            return (scores.softmax(-1) @ v).transpose(1, 2)

        ops.memory_efficient_attention = attention
        package.ops = ops
        monkeypatch.setitem(sys.modules, "xformers", package)
        monkeypatch.setitem(sys.modules, "xformers.ops", ops)

    def test_without_xformers_nothing_is_measured(self, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "xformers", None)
        assert choose_attention(model) == "sdpa"

    @pytest.mark.parametrize("faster, took_s", [("sdpa", 2.0), ("xformers", 0.5)])
    def test_the_faster_one_is_set(self, model, xformers, faster, took_s):
        self.took_s = took_s
        assert choose_attention(model, now_s=self.now_s) == faster
        assert {block.time.kernel for block in model.denoiser.blocks} == {faster}

    @pytest.mark.parametrize("masked", [False, True])
    def test_both_give_the_same(self, xformers, masked):
        torch.manual_seed(0)
        q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 13, 8), torch.randn(2, 3, 13, 8)
        allowed = (torch.rand(2, 1, 1, 13) < 0.7) if masked else None
        torch.testing.assert_close(
            attend(q, k, v, allowed, "xformers"), attend(q, k, v, allowed), atol=1e-5, rtol=1e-4
        )

    def test_a_kernel_that_fails_is_not_chosen(self, model, xformers, monkeypatch):
        def fail(*args, **options):
            raise NotImplementedError("No operator found")

        monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", fail)
        assert choose_attention(model, now_s=self.now_s) == "sdpa"


@needs_int8
class TestInt8:
    @pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 2)])
    def test_a_convolution_is_the_same_within_its_rounding(self, kernel, stride):
        torch.manual_seed(0)
        conv = nn.Conv2d(64, 48, kernel, stride, kernel // 2).requires_grad_(False)
        x = torch.randn(2, 64, 16, 16).contiguous(memory_format=torch.channels_last)
        exact, rough = conv(x), Int8Conv2d(conv)(x)
        assert rough.shape == exact.shape and rough.dtype == torch.float32
        assert (rough - exact).pow(2).mean() < 1e-3 * exact.pow(2).mean()

    def test_zeros_stay_near_zero(self):
        conv = nn.Conv2d(64, 48, 3, padding=1, bias=False).requires_grad_(False)
        assert Int8Conv2d(conv)(torch.zeros(1, 64, 8, 8)).abs().max() < 1e-6

    def test_small_convolutions_stay(self):
        net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Sequential(nn.Conv2d(4, 4, 3)))
        int8.quantize(net)
        assert isinstance(net[0], Int8Conv2d) and isinstance(net[1][0], nn.Conv2d)

    def test_the_picture_is_the_same_to_the_eye(self, monkeypatch):
        monkeypatch.setattr(int8, "MIN_WEIGHTS", 1000)
        exact, rough = make_model(), make_model()
        apply_variant(rough, DecoderVariant("int8"))
        picture = torch.rand(1, 3, 256, 256) * 2 - 1
        latents = 0.1 * torch.randn(1, 2, 24, 4, 4)
        shown = [
            m.autoencoder.decode(latents, m.autoencoder.encode_portrait(picture))
            for m in (exact, rough)
        ]
        error = (shown[0] - shown[1]).pow(2).mean() / 4
        assert error < 10**-3.5  # 35 dB


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_of_the_decoder_is_near(model, dtype):
    picture = torch.rand(1, 3, 256, 256) * 2 - 1
    latents = 0.1 * torch.randn(1, 2, 24, 4, 4)
    features = model.autoencoder.encode_portrait(picture)
    exact = model.autoencoder.decode(latents, features)
    apply_variant(model, DecoderVariant(dtype))
    assert (model.autoencoder.decode(latents, features) - exact).abs().mean() < 0.02
