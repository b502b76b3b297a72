"""The three fusion schemes, for portrait and speech apart."""

import itertools

import pytest
import torch
from support.small_model import stir
from support.small_paper_model import arguments, make_paper_model

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.layers.attention import LinearAttention
from letstalk_rt.paper.denoiser import count_parameters
from letstalk_rt.paper.fusion import (
    CrossAttention,
    Fusion,
    SiamesePortrait,
    attend_jointly,
)


def count(portrait, audio):
    model = make_paper_model(portrait_fusion=portrait, audio_fusion=audio)
    return count_parameters(model.denoiser.requires_grad_())


class TestSchemes:
    @pytest.mark.parametrize(
        "portrait, audio",
        [
            ("direct", "siamese"),
            ("siamese", "symbiotic"),
            ("symbiotic", "direct"),
            ("symbiotic", "symbiotic"),  # the two share one attention with the picture
        ],
    )
    def test_under_every_scheme_both_conditions_have_their_say(self, portrait, audio):
        denoiser = make_paper_model(portrait_fusion=portrait, audio_fusion=audio).denoiser
        given = arguments()
        before = denoiser(**given)
        assert before.shape == (2, 4, 8, 4, 4)
        for name in ("portrait", "tokens"):
            changed = denoiser(**(given | {name: given[name].flip(0)}))
            assert (changed - before).abs().amax() > 1e-5, name

    def test_the_default_is_the_published_pair(self):
        denoiser = make_paper_model().denoiser
        named = make_paper_model(portrait_fusion="symbiotic", audio_fusion="direct").denoiser
        assert torch.equal(denoiser(**arguments()), named(**arguments()))

    def test_symbiotic_costs_no_weights_in_the_blocks(self):
        deep = count("symbiotic", "symbiotic")
        embedding = 16 * 64 + 64
        assert deep + 2 * (64 * 64 + 2 * 16 * 64 + 64 * 64 + 64) - embedding == count(
            "symbiotic", "direct"
        )

    def test_siamese_costs_most(self):
        for other in ("direct", "symbiotic"):
            assert count("siamese", "direct") > count(other, "direct")
            assert count("symbiotic", "siamese") > count("symbiotic", other)

    def test_an_unknown_scheme_is_told(self):
        with pytest.raises(ConfigError, match="unknown fusion 'Direct'; known: direct, siamese"):
            Fusion.parse("Direct")


def block_of(**changes):
    """One block with the tokens that enter it."""
    denoiser = make_paper_model(depth=1, **changes).denoiser
    torch.manual_seed(1)
    seen = torch.randn(1, 1, 16, 64)
    if denoiser.config.portrait_fusion is Fusion.SYMBIOTIC:
        seen = seen.expand(-1, 4, -1, -1)
    audio_width = 64 if denoiser.config.audio_fusion is Fusion.SYMBIOTIC else 16
    audio = torch.randn(1, 4, 3, audio_width)
    return denoiser.blocks[0], torch.randn(1, 6, 16, 64), torch.randn(1, 1, 64), seen, audio


class TestWhatIsCarriedOn:
    @pytest.mark.parametrize("scheme, moves", [("direct", 0), ("siamese", 1), ("symbiotic", 1)])
    def test_the_portrait_of_a_deep_scheme_moves_from_block_to_block(self, scheme, moves):
        block, both, c, seen, audio = block_of(portrait_fusion=scheme)
        _, after, _ = block(both, 2, c, seen, audio)
        assert bool((after - seen).abs().amax() > 1e-5) == bool(moves)

    @pytest.mark.parametrize("scheme, moves", [("direct", 0), ("siamese", 1), ("symbiotic", 1)])
    def test_likewise_speech(self, scheme, moves):
        block, both, c, seen, audio = block_of(audio_fusion=scheme)
        _, _, after = block(both, 2, c, seen, audio)
        assert bool((after - audio).abs().amax() > 1e-5) == bool(moves)

    @pytest.mark.parametrize("scheme, reads", [("direct", 0), ("siamese", 0), ("symbiotic", 1)])
    def test_only_a_symbiotic_condition_reads_the_picture(self, scheme, reads):
        changes = {"portrait_fusion": scheme, "audio_fusion": scheme}
        block, both, c, seen, audio = block_of(**changes)
        before = block(both, 2, c, seen, audio)[1:]
        after = block(torch.randn_like(both), 2, c, seen, audio)[1:]
        for old, new in zip(before, after, strict=True):
            assert bool((new - old).abs().amax() > 1e-5) == bool(reads)

    def test_memory_reads_neither_condition(self):
        block, both, c, seen, audio = block_of()
        before = block(both, 2, c, seen, audio)[0]
        after = block(both, 2, c, torch.randn_like(seen), torch.randn_like(audio))[0]
        assert torch.equal(after[:, :2], before[:, :2])
        assert not torch.allclose(after[:, 2:], before[:, 2:])


class TestCrossAttention:
    @pytest.mark.parametrize("groups", [1, 3])
    def test_it_equals_softmax_attention_written_out(self, groups):
        torch.manual_seed(0)
        layer = CrossAttention(64, 12, heads=4).requires_grad_(False)
        x, tokens = torch.randn(2, 3, 5, 64), torch.randn(2, groups, 7, 12)
        found = layer(x, tokens)
        for item, frame in itertools.product(range(2), range(3)):
            q = layer.q(layer.norm(x[item, frame]))
            k, v = layer.kv(tokens[item, frame % groups]).chunk(2, -1)
            heads = [
                torch.softmax(q[:, s] @ k[:, s].T / 4, -1) @ v[:, s]
                for s in (slice(h * 16, h * 16 + 16) for h in range(4))
            ]
            torch.testing.assert_close(
                found[item, frame], layer.out(torch.cat(heads, -1)), atol=1e-5, rtol=1e-4
            )


def test_joint_attention_equals_the_double_sum():
    torch.manual_seed(0)
    layer = LinearAttention(32, eps=1e-8).requires_grad_(False)
    x, other, third = torch.randn(1, 2, 4, 32), torch.randn(1, 2, 3, 32), torch.randn(1, 2, 2, 32)
    first, rest = attend_jointly(layer, x, [other, third])
    for frame in range(2):
        tokens = torch.cat([x[0, frame], other[0, frame], third[0, frame]])
        q, k, v = (
            part.relu() if n < 2 else part for n, part in enumerate(layer.qkv(tokens).chunk(3, -1))
        )
        sums = torch.zeros(9, 32)
        for i in range(9):
            shares = [sum(float(a * b) for a, b in zip(k[j], q[i], strict=True)) for j in range(9)]
            sums[i] = sum(s * v[j] for j, s in enumerate(shares)) / (sum(shares) + 1e-8)
        wanted = layer.out(sums).split([4, 3, 2])
        for found, part in zip((first, *rest), wanted, strict=True):
            torch.testing.assert_close(found[0, frame], part, atol=1e-5, rtol=1e-4)


def test_the_sums_of_linear_attention_stay_float32_under_mixed_precision():
    layer = LinearAttention(32).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 4, 32))[1].sums.dtype == torch.float32


def test_a_siamese_portrait_is_moved_by_a_mirror_without_time():
    torch.manual_seed(0)
    part = SiamesePortrait(64, heads=4, ffn_ratio=2.0, side=4).requires_grad_(False)
    stir(part)
    x, portrait, c = torch.randn(1, 3, 16, 64), torch.randn(1, 1, 16, 64), torch.randn(1, 1, 64)
    _, after = part(x, portrait, c)
    shift1, scale1, gate1, shift2, scale2, gate2 = part.modulation(c)[0].chunk(6, -1)
    p = portrait[0, 0]
    p = p + gate1 * part.space((part.norm_space(p) * (1 + scale1) + shift1)[None])[0][0]
    p = p + gate2 * part.ffn((part.norm_ffn(p) * (1 + scale2) + shift2)[None], 4)[0]
    torch.testing.assert_close(after[0, 0], p, atol=1e-5, rtol=1e-4)
