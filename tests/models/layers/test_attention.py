"""The parts of LetsTalk's block against their formulas, written out."""

import pytest
import torch
import torch.nn.functional as F

from letstalk_rt.models.layers.attention import (
    AudioAttention,
    GatedConvFFN,
    LinearAttention,
    LinearState,
    MemoryAttention,
    TimeEmbedding,
    grid_positions,
    modulate,
)

WIDTH = 64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def heads(x):
    """`(..., D)` to `(heads, ..., 32)`."""
    return x.unflatten(-1, (-1, 32)).movedim(-2, 0)


def softmax_attention(q, k, v):
    """One head: `(n, d)`, `(m, d)`, `(m, d)` to `(n, d)`."""
    return torch.softmax(q @ k.T / q.shape[-1] ** 0.5, -1) @ v


class TestLinearAttention:
    @pytest.fixture
    def layer(self):
        return LinearAttention(WIDTH).requires_grad_(False)

    def explicit(self, layer, queries, keys):
        """The double sum over query `i` and key `j`, head by head."""
        q = heads(layer.qkv(queries)[:, :WIDTH])
        k, v = (heads(part) for part in layer.qkv(keys).chunk(3, -1)[1:])
        mixed = torch.zeros(len(queries), WIDTH)
        for head in range(WIDTH // 32):
            for i in range(len(queries)):
                shares = torch.stack([F.relu(key) @ F.relu(q[head, i]) for key in k[head]])
                out = (shares[:, None] * v[head]).sum(0) / (shares.sum() + 1e-6)
                mixed[i, 32 * head : 32 * head + 32] = out
        return layer.out(mixed)

    def test_it_equals_the_double_sum(self, layer):
        x = torch.randn(2, 5, WIDTH)
        out, _ = layer(x)
        for item in range(2):
            torch.testing.assert_close(
                out[item], self.explicit(layer, x[item], x[item]), atol=1e-5, rtol=1e-4
            )

    def test_a_joined_state_equals_concatenated_tokens(self, layer):
        x, other = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH)
        _, state = layer(other)
        joined, own = layer(x, state)
        whole, both = layer(torch.cat([x, other], 1))
        torch.testing.assert_close(joined, whole[:, :5], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own.sums + state.sums, both.sums, atol=1e-4, rtol=1e-4)

    def test_the_given_state_is_only_read(self, layer):
        _, state = layer(torch.randn(1, 3, WIDTH))
        before = state.sums.clone()
        _, own = layer(torch.randn(1, 3, WIDTH), state)
        assert torch.equal(state.sums, before) and own is not state

    def test_an_empty_state_changes_nothing(self, layer):
        x = torch.randn(1, 4, WIDTH)
        alone, own = layer(x)
        torch.testing.assert_close(layer(x, LinearState(torch.zeros_like(own.sums)))[0], alone)

    def test_the_order_of_tokens_does_not_matter(self, layer):
        x, order = torch.randn(1, 6, WIDTH), torch.tensor([3, 1, 5, 0, 2, 4])
        torch.testing.assert_close(layer(x[:, order])[0], layer(x)[0][:, order])

    def test_sums_stay_float32_in_half_precision(self):
        layer = LinearAttention(WIDTH).bfloat16().requires_grad_(False)
        out, state = layer(torch.randn(1, 4, WIDTH).bfloat16())
        assert out.dtype == torch.bfloat16 and state.sums.dtype == torch.float32


class TestMemoryAttention:
    @pytest.fixture
    def layer(self):
        return MemoryAttention(WIDTH).requires_grad_(False)

    def test_it_equals_softmax_attention_over_time_at_each_place(self, layer):
        x = torch.randn(1, 4, 3, WIDTH)
        out = layer(x, torch.ones(1, 4, 4, dtype=torch.bool))
        for place in range(3):
            q, k, v = layer.qkv(layer.norm(x[0, :, place])).chunk(3, -1)
            parts = [
                softmax_attention(a, b, c)
                for a, b, c in zip(heads(q), heads(k), heads(v), strict=True)
            ]
            torch.testing.assert_close(
                out[0, :, place], layer.out(torch.cat(parts, -1)), atol=1e-5, rtol=1e-4
            )

    def test_a_frame_reads_only_what_its_row_allows(self, layer):
        x = torch.randn(1, 3, 2, WIDTH)
        mask = torch.tensor([[[True, False, False], [True, True, False], [True, True, True]]])
        before = layer(x, mask)
        x[:, 2] += torch.randn(2, WIDTH)  # a constant would be normalised away
        after = layer(x, mask)
        torch.testing.assert_close(after[:, :2], before[:, :2])
        assert not torch.allclose(after[:, 2], before[:, 2])

    def test_each_item_has_its_own_mask(self, layer):
        x = torch.randn(2, 3, 2, WIDTH)
        masks = torch.rand(2, 3, 3) < 0.5
        masks[:, :, 0] = True
        both = layer(x, masks)
        for item in range(2):
            torch.testing.assert_close(
                both[item : item + 1], layer(x[item : item + 1], masks[item : item + 1])
            )


class TestAudioAttention:
    @pytest.fixture
    def layer(self):
        return AudioAttention(WIDTH, 12).requires_grad_(False)

    def test_it_equals_softmax_attention_to_the_tokens_of_the_frame(self, layer):
        x, tokens = torch.randn(1, 2, 3, WIDTH), torch.randn(1, 2, 5, 12)
        out = layer(x, tokens)
        for frame in range(2):
            q = layer.q(layer.norm(x[0, frame]))
            k, v = layer.kv(tokens[0, frame]).chunk(2, -1)
            parts = [
                softmax_attention(a, b, c)
                for a, b, c in zip(heads(q), heads(k), heads(v), strict=True)
            ]
            torch.testing.assert_close(
                out[0, frame], layer.out(torch.cat(parts, -1)), atol=1e-5, rtol=1e-4
            )

    def test_a_frame_hears_only_its_own_tokens(self, layer):
        x, tokens = torch.randn(1, 3, 4, WIDTH), torch.randn(1, 3, 5, 12)
        before = layer(x, tokens)
        tokens[:, 1] += 1
        after = layer(x, tokens)
        torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
        assert not torch.allclose(after[:, 1], before[:, 1])


class TestGatedConvFFN:
    def test_it_equals_its_formula(self):
        layer, x = GatedConvFFN(8, 2.5).requires_grad_(False), torch.randn(2, 12, 8)
        picture = x.view(2, 3, 4, 8).permute(0, 3, 1, 2)
        value, gate = layer.depthwise(F.silu(layer.widen(picture))).split(20, 1)
        wanted = layer.narrow(value * (gate * torch.sigmoid(gate)))
        torch.testing.assert_close(layer(x, 3), wanted.permute(0, 2, 3, 1).reshape(2, 12, 8))

    def test_a_place_reads_its_neighbours_only(self):
        layer, x = GatedConvFFN(8, 2.0).requires_grad_(False), torch.randn(1, 16, 8)
        before = layer(x, 4)
        x[:, 0] += 1
        changed = (layer(x, 4) - before).abs().amax((0, 2)).view(4, 4) > 1e-6
        assert changed[:2, :2].all() and changed.sum() == 4


class TestPositions:
    def test_times_are_told_apart(self):
        embedded = TimeEmbedding(16)(torch.tensor([[0.0, 0.001], [0.5, 1.0]])).flatten(0, 1)
        assert embedded.shape == (4, 16)
        assert (torch.pdist(embedded.detach()) > 1e-4).all()

    def test_places_are_told_apart(self):
        positions = grid_positions(4, 32)
        assert positions.shape == (16, 32)
        assert (torch.pdist(positions) > 0.1).all()

    def test_one_half_says_the_row_the_other_the_column(self):
        grid = grid_positions(4, 32).view(4, 4, 32)
        halves = grid[..., :16], grid[..., 16:]
        assert torch.equal(halves[0], halves[0][:, :1].expand(4, 4, 16))
        assert torch.equal(halves[1], halves[1][:1].expand(4, 4, 16))
        assert torch.equal(halves[0], halves[1].transpose(0, 1))


def test_modulation_is_per_frame():
    x, shift = torch.ones(1, 2, 3, 4), torch.tensor([[0.0, 5.0]])[..., None].expand(1, 2, 4)
    out = modulate(x, shift, shift)
    assert out[0, 0].unique().tolist() == [1] and out[0, 1].unique().tolist() == [11]
