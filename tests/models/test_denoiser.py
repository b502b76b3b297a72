"""Who reads whom in the denoiser, and what is computed once per portrait."""

from dataclasses import replace

import pytest
import torch
from support.small_model import DENOISER, stir
from torch import nn

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.batch_state import gather, tensors
from letstalk_rt.models.denoiser import Denoiser, guided_velocity
from letstalk_rt.models.memory import MemoryBank

SLOTS, WINDOW = 1 + DENOISER.memory, DENOISER.window


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    model = Denoiser(DENOISER)
    stir(model)
    return model.eval().requires_grad_(False)


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    filled = torch.zeros(2, SLOTS, dtype=torch.bool)
    filled[:, 0] = filled[0, -2:] = True
    return {
        "x": torch.randn(2, WINDOW, 24, 4, 4),
        "t": torch.rand(2, WINDOW),
        "tokens": torch.randn(2, WINDOW, 4, DENOISER.audio_width),
        "latent": torch.randn(2, 24, 4, 4),
        "memory": torch.randn(2, SLOTS, 24, 4, 4),
        "filled": filled,
    }


def run(denoiser, latent, **inputs):
    return denoiser(portrait=denoiser.portrait_state(latent), **inputs)


def changed(denoiser, inputs, name, at):
    """Which frames of the window, `(B, N)`, change when an input changes at `at`."""
    before = run(denoiser, **inputs)
    other = inputs[name].clone()
    other[at] += 1.0
    after = run(denoiser, **{**inputs, name: other})
    return (after - before).abs().amax((2, 3, 4)) > 1e-5


def without_time_attention(denoiser):
    for block in denoiser.blocks:
        nn.init.zeros_(block.time.out.weight)
        nn.init.zeros_(block.time.out.bias)
    return denoiser


class TestBeginning:
    def test_the_output_is_zero_before_training(self, inputs):
        torch.manual_seed(0)
        out = run(Denoiser(DENOISER), **inputs)
        assert out.shape == inputs["x"].shape and not out.any()

    def test_blocks_pass_the_window_on_unchanged_before_training(self):
        torch.manual_seed(0)
        denoiser = Denoiser(DENOISER)
        block, x = denoiser.blocks[0], torch.randn(1, WINDOW, 16, 32)
        mask = torch.ones(1, 1, SLOTS + WINDOW, dtype=torch.bool)
        memory, kept = block.encode_memory(
            torch.randn(1, SLOTS, 16, 32), None, mask[..., :SLOTS], None
        )
        state = denoiser.portrait_state(torch.randn(1, 24, 4, 4)).layers[0]
        tokens = torch.randn(1, WINDOW, 4, 8)
        out = block(x, kept, mask, None, tokens, torch.randn(1, WINDOW, 32), state)
        assert torch.equal(out, x) and memory.shape == (1, SLOTS, 16, 32)

    @pytest.mark.parametrize("name, cut", [("x", 3), ("memory", SLOTS - 1)])
    def test_another_number_of_frames_is_refused(self, denoiser, inputs, name, cut):
        with pytest.raises(InputError, match=f"{name} must have shape"):
            run(denoiser, **{**inputs, name: inputs[name][:, :cut]})

    def test_whole_numbers_are_refused(self, denoiser, inputs):
        with pytest.raises(InputError, match="x must be floating point, got int64"):
            run(denoiser, **{**inputs, "x": inputs["x"].long()})

    def test_heads_that_do_not_divide_the_width_are_named(self):
        with pytest.raises(ConfigError, match="width 48 .* multiple of 32"):
            replace(DENOISER, width=48)

    @pytest.mark.parametrize("name", ["end", "guidance"])
    def test_an_input_that_the_model_does_not_accept_is_named(self, denoiser, inputs, name):
        value = {"end": inputs["t"], "guidance": torch.ones(2)}[name]
        with pytest.raises(ConfigError, match="does not accept"):
            run(denoiser, **inputs, **{name: value})


class TestMemory:
    def test_unfilled_slots_do_not_matter(self, denoiser, inputs):
        assert not changed(denoiser, inputs, "memory", (0, slice(1, 5))).any()
        assert not changed(denoiser, inputs, "memory", (1, slice(1, None))).any()

    def test_unfilled_slots_may_hold_anything(self, denoiser, inputs):
        before = run(denoiser, **inputs)
        inputs["memory"][:, 1:5] = 1e6
        torch.testing.assert_close(run(denoiser, **inputs), before)

    @pytest.mark.parametrize("slot", [0, SLOTS - 1])
    def test_filled_slots_matter_to_every_frame(self, denoiser, inputs, slot):
        assert changed(denoiser, inputs, "memory", (0, slot))[0].all()

    def test_memory_is_computed_once_for_all_steps(self, denoiser, inputs):
        state = denoiser.portrait_state(inputs["latent"])
        cache = denoiser.encode_memory(inputs["memory"], inputs["filled"])
        x, t, tokens = inputs["x"], inputs["t"], inputs["tokens"]
        torch.testing.assert_close(
            denoiser.predict(x, t, tokens, state, cache), run(denoiser, **inputs)
        )
        before = [layer.keys.clone() for layer in cache.layers]
        denoiser.predict(-x, t, tokens, state, cache)
        assert all(torch.equal(a, b.keys) for a, b in zip(before, cache.layers, strict=True))

    def test_a_new_bank_gives_finite_frames(self, denoiser, inputs):
        bank = MemoryBank.anchored(torch.zeros(2, 24, 4, 4), DENOISER.memory)
        out = run(denoiser, **{**inputs, "memory": bank.latents, "filled": bank.filled})
        assert out.isfinite().all()


class TestSound:
    def test_frames_hear_their_own_tokens_only(self, denoiser, inputs):
        """Directly, that is: with attention in time, a window is made together."""
        frames = changed(without_time_attention(denoiser), inputs, "tokens", (0, 2))
        assert frames.tolist() == [[False, False, True, False], [False] * 4]

    def test_frames_of_a_window_hear_of_each_other(self, denoiser, inputs):
        frames = changed(denoiser, inputs, "tokens", (0, 2))
        assert frames.tolist() == [[True] * 4, [False] * 4]

    def test_each_token_of_a_frame_has_a_place(self, denoiser, inputs):
        before = run(denoiser, **inputs)
        turned = {**inputs, "tokens": inputs["tokens"].flip(2)}
        assert not torch.allclose(run(denoiser, **turned), before)


class TestTime:
    def test_each_frame_has_its_own_timestep(self, denoiser, inputs):
        inputs["t"].mul_(0.1)
        before = run(without_time_attention(denoiser), **inputs)
        inputs["t"][1, 3] = 0.9
        frames = (run(denoiser, **inputs) - before).abs().amax((2, 3, 4)) > 1e-5
        assert frames.tolist() == [[False] * 4, [False, False, False, True]]

    def test_places_in_time_are_told_apart(self, denoiser, inputs):
        order = [1, 0, 2, 3]
        before = run(denoiser, **inputs)[:, order]
        for name in ("x", "t", "tokens"):
            inputs[name] = inputs[name][:, order]
        assert not torch.allclose(run(denoiser, **inputs), before)


class TestPortrait:
    def test_the_kept_state_equals_the_recomputed_one(self, denoiser, inputs):
        latent = inputs.pop("latent")
        kept = denoiser.portrait_state(latent)
        first = denoiser(portrait=kept, **inputs)
        again = denoiser(portrait=denoiser.portrait_state(latent), **inputs)
        later = denoiser(portrait=kept, **inputs)
        assert torch.equal(first, again) and torch.equal(first, later)

    def test_every_frame_reads_the_portrait_of_its_item(self, denoiser, inputs):
        frames = changed(without_time_attention(denoiser), inputs, "latent", (0,))
        assert frames.tolist() == [[True] * 4, [False] * 4]

    def test_stacked_states_equal_the_state_of_a_batch(self, denoiser, inputs):
        latent = inputs["latent"]
        batch = denoiser.portrait_state(latent)
        parts = [denoiser.portrait_state(latent[i : i + 1]) for i in range(2)]
        joined = gather(parts)
        assert len(joined.layers) == DENOISER.depth
        for one, other in zip(joined.layers, batch.layers, strict=True):
            torch.testing.assert_close(one.sums, other.sums, atol=1e-4, rtol=1e-4)

    def test_the_first_block_joins_picture_and_portrait_tokens(self, denoiser):
        """Symbiotic fusion: one attention over both, of which the portrait's part is kept."""
        block = denoiser.blocks[0]
        torch.manual_seed(3)
        picture, portrait = torch.randn(1, 16, 32), torch.randn(1, 16, 32)
        _, state = block.space(portrait)
        joined, _ = block.space(picture, state)
        whole, _ = block.space(torch.cat([picture, portrait], 1))
        torch.testing.assert_close(joined, whole[:, :16], atol=1e-5, rtol=1e-4)


def test_items_of_a_batch_do_not_mix(denoiser, inputs):
    both = run(denoiser, **inputs)
    for item in range(2):
        alone = run(denoiser, **{name: v[item : item + 1] for name, v in inputs.items()})
        torch.testing.assert_close(both[item : item + 1], alone, atol=1e-5, rtol=1e-4)


def test_dropout_is_for_training_only(denoiser, inputs):
    assert torch.equal(run(denoiser, **inputs), run(denoiser, **inputs))
    denoiser.train()
    assert not torch.equal(run(denoiser, **inputs), run(denoiser, **inputs))


def test_without_memory_slots_the_anchor_alone_is_enough(inputs):
    torch.manual_seed(0)
    denoiser = Denoiser(replace(DENOISER, memory=0))
    stir(denoiser)
    short = {**inputs, "memory": inputs["memory"][:, :1], "filled": inputs["filled"][:, :1]}
    assert run(denoiser, **short).isfinite().all()


class TestGuidance:
    @pytest.fixture
    def predict(self, denoiser, inputs):
        nn.init.normal_(denoiser.no_audio)
        bank = MemoryBank(inputs["memory"], inputs["filled"])
        state = denoiser.portrait_state(inputs["latent"])
        x, t, tokens = inputs["x"], inputs["t"], inputs["tokens"]
        return lambda weight: guided_velocity(denoiser, x, t, tokens, state, bank, weight)

    def test_weight_one_is_the_denoiser_itself(self, denoiser, inputs, predict):
        torch.testing.assert_close(predict(1), run(denoiser, **inputs))

    def test_weight_zero_hears_nothing(self, denoiser, inputs, predict):
        deaf = denoiser.no_audio.expand_as(inputs["tokens"])
        torch.testing.assert_close(predict(0), run(denoiser, **{**inputs, "tokens": deaf}))

    def test_the_part_of_the_sound_grows_with_the_weight(self, predict):
        torch.testing.assert_close(predict(3) - predict(0), 3 * (predict(1) - predict(0)))

    def test_memory_may_be_given_as_kept_keys(self, denoiser, inputs, predict):
        cache = denoiser.encode_memory(inputs["memory"], inputs["filled"])
        state = denoiser.portrait_state(inputs["latent"])
        x, t, tokens = inputs["x"], inputs["t"], inputs["tokens"]
        torch.testing.assert_close(
            guided_velocity(denoiser, x, t, tokens, state, cache, 3), predict(3)
        )

    def test_guidance_as_an_input_costs_no_second_call(self, inputs, monkeypatch):
        denoiser = Denoiser(replace(DENOISER, guidance_input=True)).eval().requires_grad_(False)
        stir(denoiser)
        state = denoiser.portrait_state(inputs["latent"])
        cache = denoiser.encode_memory(inputs["memory"], inputs["filled"])
        items, predict = [], denoiser.predict
        monkeypatch.setattr(
            denoiser,
            "predict",
            lambda x, *rest, **more: items.append(len(x)) or predict(x, *rest, **more),
        )
        x, t, tokens = inputs["x"], inputs["t"], inputs["tokens"]
        weak, strong = (
            guided_velocity(denoiser, x, t, tokens, state, cache, w) for w in (1.0, 3.0)
        )
        assert items == [2, 2]
        assert not torch.allclose(weak, strong)


CACHED = replace(
    DENOISER, memory=8, cached=True, second_time=True, guidance_input=True, time_head_width=16
)


class TestCached:
    """Keys and values are kept from window to window; places in time are relative."""

    @pytest.fixture
    def denoiser(self):
        torch.manual_seed(0)
        model = Denoiser(CACHED)
        stir(model)
        return model.eval().requires_grad_(False)

    @pytest.fixture
    def windows(self):
        torch.manual_seed(4)
        return torch.randn(6, 2, WINDOW, 24, 4, 4)

    def kept(self, denoiser, windows):
        cache = denoiser.init_cache(torch.zeros(2, 24, 4, 4))
        for window in windows:
            denoiser.update_cache(window, cache)
        return cache

    def inputs(self, denoiser):
        torch.manual_seed(5)
        x = torch.randn(2, WINDOW, 24, 4, 4)
        tokens = torch.randn(2, WINDOW, 4, DENOISER.audio_width)
        return x, torch.rand(2, WINDOW), tokens, denoiser.portrait_state(torch.randn(2, 24, 4, 4))

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_the_kept_cache_equals_the_recalled_memory(self, denoiser, windows, count):
        bank = MemoryBank.anchored(torch.zeros(2, 24, 4, 4), CACHED.memory)
        for window in windows[:count]:
            bank.write(window)
        inputs = self.inputs(denoiser)
        torch.testing.assert_close(
            denoiser.predict(*inputs, self.kept(denoiser, windows[:count])),
            denoiser(*inputs, bank.latents, bank.filled),
        )

    @pytest.mark.parametrize("count", [3, 6])
    def test_a_history_longer_than_memory_is_recalled_as_a_session_keeps_it(
        self, denoiser, windows, count
    ):
        """What has left memory has left its traces in what was kept of later frames."""
        history = windows[:count].transpose(0, 1).flatten(1, 2)
        history = torch.cat([torch.zeros(2, 1, 24, 4, 4), history], 1)
        recalled = denoiser.encode_memory(history, torch.ones(history.shape[:2], dtype=torch.bool))
        kept = self.kept(denoiser, windows[:count])
        for one, other in zip(tensors(recalled), tensors(kept), strict=True):
            torch.testing.assert_close(one, other)
        bank = MemoryBank.anchored(torch.zeros(2, 24, 4, 4), CACHED.memory)
        for window in windows[:count]:
            bank.write(window)
        short = denoiser.encode_memory(bank.latents, bank.filled)
        assert not torch.allclose(short.layers[-1].keys, kept.layers[-1].keys)

    def test_training_reaches_what_has_left_memory(self, windows):
        torch.manual_seed(0)
        denoiser = Denoiser(CACHED)
        stir(denoiser)
        assert CACHED.history > CACHED.memory and CACHED.history % WINDOW == 0
        history = torch.randn(2, 1 + CACHED.history, 24, 4, 4, requires_grad=True)
        filled = torch.ones(history.shape[:2], dtype=torch.bool)
        denoiser(*self.inputs(denoiser), history, filled).square().sum().backward()
        gone = history.grad[:, 1 : 1 + CACHED.history - CACHED.memory]
        assert gone.abs().sum() > 0

    def test_the_cache_is_bounded_and_stays_where_it_is(self, denoiser, windows):
        cache = self.kept(denoiser, windows[:1])
        before = [part.data_ptr() for part in tensors(cache)]
        for window in windows:
            denoiser.update_cache(window, cache)
        assert [part.data_ptr() for part in tensors(cache)] == before
        assert cache.layers[0].keys.shape == (2, 16, 2, 1 + CACHED.memory, 16)

    def test_places_are_relative(self, denoiser, windows):
        """What has left the window of memory matters by what later frames read of it, no more."""
        denoiser.blocks = denoiser.blocks[:1]  # one block: no frame reads what another has read
        inputs = self.inputs(denoiser)
        inputs[3].layers = inputs[3].layers[:1]
        early = self.kept(denoiser, windows[4:])
        late = self.kept(denoiser, windows)
        torch.testing.assert_close(
            denoiser.predict(*inputs, early), denoiser.predict(*inputs, late)
        )

    def test_order_in_time_matters(self, denoiser, windows):
        inputs = self.inputs(denoiser)
        one, other = (self.kept(denoiser, w) for w in (windows[:2], windows[:2].flip(0)))
        assert not torch.allclose(denoiser.predict(*inputs, one), denoiser.predict(*inputs, other))

    def test_memory_reads_its_past_only(self, denoiser, windows):
        before = self.kept(denoiser, windows[:2]).layers[-1].keys
        later = windows.clone()
        later[1] += 1
        after = self.kept(denoiser, later[:2]).layers[-1].keys
        torch.testing.assert_close(after[..., : 1 + WINDOW, :], before[..., : 1 + WINDOW, :])
        assert not torch.allclose(after[..., -WINDOW:, :], before[..., -WINDOW:, :])

    def test_sessions_do_not_mix(self, denoiser, windows):
        x, t, tokens, _ = self.inputs(denoiser)
        latent = torch.randn(2, 24, 4, 4)
        both = denoiser.predict(
            x, t, tokens, denoiser.portrait_state(latent), self.kept(denoiser, windows[:3])
        )
        for i in range(2):
            one = slice(i, i + 1)
            cache = denoiser.init_cache(torch.zeros(1, 24, 4, 4))
            for window in windows[:3]:
                denoiser.update_cache(window[one], cache)
            state = denoiser.portrait_state(latent[one])
            alone = denoiser.predict(x[one], t[one], tokens[one], state, cache)
            torch.testing.assert_close(both[one], alone, atol=1e-5, rtol=1e-4)

    def test_the_second_time_begins_silent_and_then_matters(self, windows):
        torch.manual_seed(0)
        new = Denoiser(CACHED).eval().requires_grad_(False)
        nn.init.normal_(new.head.weight)
        inputs, cache = self.inputs(new), self.kept(new, windows[:1])
        end = torch.zeros(2, WINDOW)
        assert torch.equal(new.predict(*inputs, cache), new.predict(*inputs, cache, end=end))
        stir(new)
        assert not torch.allclose(new.predict(*inputs, cache), new.predict(*inputs, cache, end=end))

    def test_memory_that_is_no_whole_number_of_windows_is_named(self):
        with pytest.raises(ConfigError, match="memory 6 must be a multiple of window 4"):
            replace(DENOISER, memory=6, cached=True)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_near(self, denoiser, windows, dtype):
        inputs = self.inputs(denoiser)
        exact = denoiser.predict(*inputs, self.kept(denoiser, windows[:2]))
        denoiser.to(dtype)
        state = denoiser.portrait_state(torch.zeros(2, 24, 4, 4))
        assert state.layers[0].sums.dtype == torch.float32
        rough = denoiser.predict(*inputs, self.kept(denoiser, windows[:2]))
        assert rough.dtype == torch.float32
        assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.01
