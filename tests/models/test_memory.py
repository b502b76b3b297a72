import math

import pytest
import torch

from letstalk_rt.models.layers.attention import KeysValues
from letstalk_rt.models.memory import (
    DROP,
    MAX_NOISE,
    NOISE_STEPS,
    MemoryBank,
    TemporalCache,
    diffusion_sigma,
    regularize_memory,
)


def numbered(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)


def empty(num_frames, sessions=1):
    return MemoryBank.anchored(torch.full((sessions, 1, 1, 1), -1.0), num_frames)


def contents(bank):
    return [
        v if f else None
        for v, f in zip(bank.latents[0].flatten().tolist(), bank.filled[0], strict=True)
    ]


def test_the_oldest_is_dropped_and_the_anchor_kept():
    bank = empty(3)
    assert contents(bank) == [-1, None, None, None]
    bank.write(numbered(1, 2))
    assert contents(bank) == [-1, None, 1, 2]
    bank.write(numbered(3, 4))
    assert contents(bank) == [-1, 2, 3, 4]
    bank.write(numbered(5, 6, 7))
    assert contents(bank) == [-1, 5, 6, 7]


@pytest.mark.parametrize("count", [0, 4])
def test_more_than_the_bank_holds_is_refused(count):
    with pytest.raises(AssertionError):
        empty(3).write(torch.zeros(1, count, 1, 1, 1))


def test_reset_of_one_session_leaves_the_others():
    bank = empty(2, sessions=2)
    bank.write(torch.ones(2, 2, 1, 1, 1))
    bank.reset(torch.tensor([True, False]))
    assert bank.filled.tolist() == [[True, False, False], [True, True, True]]
    assert bank.latents[0].flatten().tolist() == [-1, 0, 0]
    assert bank.latents[1].flatten().tolist() == [-1, 1, 1]


def test_reset_without_a_mask_empties_all():
    bank = empty(2, sessions=2)
    bank.write(torch.ones(2, 2, 1, 1, 1))
    bank.reset()
    assert bank.filled.tolist() == [[True, False, False]] * 2
    assert not bank.latents[:, 1:].any()


def test_written_latents_are_copied():
    bank, anchor, latents = empty(2), torch.zeros(1, 1, 1, 1), numbered(1, 2)
    bank = MemoryBank.anchored(anchor, 2)
    bank.write(latents)
    anchor.fill_(9)
    latents.fill_(9)
    assert contents(bank) == [0, 1, 2]


@pytest.mark.parametrize("step, sigma", [(0, 0.010), (49, 0.170)])
def test_the_published_noise_levels_are_these(step, sigma):
    """The ends of the part of DDPM's linear schedule that is used, as in the published code."""
    assert diffusion_sigma(torch.tensor(step)).item() == pytest.approx(sigma, abs=6e-4)


def test_published_noise_is_that_of_the_first_fifty_steps():
    """On zeros only `sigma * noise` is left, so its spread is sigma: one of the fifty."""
    made = regularize_memory(
        torch.zeros(400, 4, 16, 8, 8),
        torch.Generator().manual_seed(0),
        drop=0.0,
        diffusion=True,
    ).flatten(1)
    sigmas = diffusion_sigma(torch.arange(NOISE_STEPS))
    spread = made.std(1)
    nearest = (spread[:, None] - sigmas).abs()
    assert nearest.amin(1).max() < 0.004
    assert len(set(nearest.argmin(1).tolist())) > 40
    assert spread.max() < sigmas[-1] * 1.05 and NOISE_STEPS == 50


def test_published_noise_keeps_the_variance():
    made = regularize_memory(
        torch.full((50, 4, 8, 8, 8), 100.0), torch.Generator().manual_seed(0), drop=0.0,
        diffusion=True,
    ).flatten(1)  # fmt: skip
    torch.testing.assert_close(
        (made.mean(1) / 100) ** 2 + made.var(1), torch.ones(50), atol=0.01, rtol=0
    )


def test_the_largest_noise_is_that_of_step_49():
    sigma = diffusion_sigma(torch.tensor(49)).double().item()
    alpha = math.sqrt(1 - sigma**2)
    assert sigma / (alpha + sigma) == pytest.approx(MAX_NOISE, abs=1e-3)


def test_noise_is_between_none_and_the_largest_and_drawn_per_item():
    """On zeros only `t * noise` is left, so its spread is the time."""
    made = regularize_memory(
        torch.zeros(300, 4, 8, 4, 4), torch.Generator().manual_seed(0), drop=0.0
    ).flatten(1)
    times = made.std(1)
    assert times.max() < MAX_NOISE * 1.1
    assert times.min() < 0.01 and times.max() > 0.9 * MAX_NOISE
    assert times.mean().item() == pytest.approx(MAX_NOISE / 2, rel=0.1)


def test_the_signal_falls_as_the_noise_rises():
    """`(1 - t) * 100 + t * noise`: mean and spread tell the same time."""
    made = regularize_memory(
        torch.full((50, 4, 8, 8, 8), 100.0), torch.Generator().manual_seed(0), drop=0.0
    ).flatten(1)
    torch.testing.assert_close(1 - made.mean(1) / 100, made.std(1), atol=0.01, rtol=0)


def test_a_quarter_of_positions_is_dropped_per_item_in_all_frames():
    made = regularize_memory(torch.ones(200, 3, 2, 4, 4), torch.Generator().manual_seed(0))
    gone = made == 0
    assert torch.equal(gone, gone[:, :1, :1].expand_as(gone))
    masks = gone[:, 0, 0].flatten(1)
    assert masks.float().mean().item() == pytest.approx(DROP, abs=0.03)
    assert DROP == 0.25
    assert len({tuple(mask.tolist()) for mask in masks}) > 150


def test_without_noise_and_drop_nothing_changes():
    latents = torch.randn(2, 3, 4, 2, 2)
    assert torch.equal(regularize_memory(latents, max_noise=0.0, drop=0.0), latents)


def test_the_generator_determines_the_noise():
    latents = torch.ones(2, 3, 4, 2, 2)
    one, same = (regularize_memory(latents, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(latents, torch.ones(2, 3, 4, 2, 2))


class TestCache:
    @staticmethod
    def cache(slots, sessions=1):
        empty = torch.zeros(sessions, 2, 1, slots, 3)
        filled = torch.zeros(sessions, slots, dtype=torch.bool)
        filled[:, 0] = True
        return TemporalCache([KeysValues(empty.clone(), empty.clone()) for _ in range(2)], filled)

    @staticmethod
    def frames(*values, sessions=1):
        part = torch.tensor(values).view(1, 1, 1, -1, 1).expand(sessions, 2, 1, -1, 3)
        filled = torch.ones(sessions, len(values), dtype=torch.bool)
        return TemporalCache([KeysValues(part, -part) for _ in range(2)], filled)

    def test_the_oldest_is_dropped_and_the_anchor_kept(self):
        cache = self.cache(4)
        for layer in cache.layers:
            layer.keys[..., 0, :] = -1
        for values in ((1.0, 2.0), (3.0, 4.0)):
            cache.write(self.frames(*values))
        for layer in cache.layers:
            assert layer.keys[0, 0, 0, :, 0].tolist() == [-1, 2, 3, 4]
            assert layer.values[0, 1, 0, 1:, 2].tolist() == [-2, -3, -4]
        assert cache.filled.all()

    def test_it_is_written_in_place(self):
        cache = self.cache(4)
        before = [layer.keys.data_ptr() for layer in cache.layers], cache.filled.data_ptr()
        cache.write(self.frames(1.0))
        cache.reset()
        after = [layer.keys.data_ptr() for layer in cache.layers], cache.filled.data_ptr()
        assert before == after

    def test_reset_of_one_session_leaves_the_others(self):
        cache = self.cache(3, sessions=2)
        cache.write(self.frames(1.0, 2.0, sessions=2))
        cache.reset(torch.tensor([True, False]))
        assert cache.filled.tolist() == [[True, False, False], [True, True, True]]
        for layer in cache.layers:
            assert not layer.keys[0].any() and layer.values[1, ..., 1:, :].all()

    def test_padded_slots_are_empty_and_extended_frames_come_last(self):
        first, second = self.frames(1.0), self.frames(2.0, 3.0)
        padded, longer = first.padded(2), first.extended(second)
        assert padded.filled.tolist() == [[True, False, False]]
        assert padded.layers[0].keys[0, 0, 0, :, 0].tolist() == [1, 0, 0]
        assert longer.layers[1].values[0, 0, 0, :, 0].tolist() == [-1, -2, -3]

    @pytest.mark.parametrize("count", [0, 1, 9])
    def test_rewinding_drops_the_newest_in_cache_and_bank(self, count):
        cache, bank = self.cache(4), empty(3)
        for layer in cache.layers:
            layer.keys[..., 0, :] = -1
        cache.write(self.frames(1.0, 2.0, 3.0))
        bank.write(numbered(1, 2, 3))
        cache.rewind(count)
        bank.rewind(count)
        kept = [-1, *[None] * min(count, 3), *[1, 2, 3][: max(0, 3 - count)]]
        assert contents(bank) == kept
        keys = cache.layers[1].keys[0, 0, 0, :, 0].tolist()
        assert [k if f else None for k, f in zip(keys, cache.filled[0], strict=True)] == kept
