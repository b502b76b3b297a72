"""The motion denoiser: a window follows from memory, speech and noise, and from nothing later."""

import pytest
import torch
from support.small_model import stir

from letstalk_rt.models.motion.code import (
    FACE,
    HEAD,
    LIPS,
    MIRRORED,
    MOTION_NAMES,
    NUM_LIPS,
    NUM_MOTION,
    NUM_REST,
    NUM_STYLE,
    REST,
    channel,
)
from letstalk_rt.models.motion.denoiser import (
    LIP_LEAD,
    PAST_WINDOWS,
    MotionDenoiser,
    MotionDenoiserConfig,
)
from letstalk_rt.models.motion.speech_encoder import SpeechEncoderConfig

CONFIG = MotionDenoiserConfig(
    SpeechEncoderConfig(width=16), memory=5, width=24, depth=2, heads=2, head_width=20, head_depth=1
)


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    made = MotionDenoiser(CONFIG).eval().requires_grad_(False)
    stir(made, 0.3)
    made.lip_levels.copy_(made.lip_knots)
    made.lip_unit.uniform_(0.5, 2.0)
    made.levels.mul_(torch.rand(NUM_REST, 1) + 0.1)
    return made


def inputs(batch=2):
    return (
        torch.randn(batch, CONFIG.window, 16),
        torch.randn(batch, CONFIG.window, NUM_LIPS),
        torch.randn(batch, NUM_STYLE),
        torch.randn(batch, CONFIG.size),
        torch.rand(batch),
    )


def test_the_parts_of_the_code_cover_it_once():
    places = list(range(NUM_MOTION))
    assert places[LIPS] + places[HEAD] + places[FACE] == places
    assert places[REST] == places[HEAD] + places[FACE] and len(MIRRORED) == NUM_MOTION
    assert MOTION_NAMES[channel("pitch")] == "pitch"


def test_a_new_denoiser_keeps_the_lips_at_rest():
    made = MotionDenoiser(CONFIG).eval()
    codes = made(*inputs(), made.init_memory(2), steps=2)
    assert codes.shape == (2, CONFIG.window, NUM_MOTION) and not codes[..., LIPS].any()


def test_lips_follow_speech_alone_and_the_rest_is_told_them(denoiser):
    memory, given = denoiser.init_memory(2), inputs()
    first = denoiser(*given, memory, steps=2)
    noisy = denoiser(*given[:3], -given[3], given[4], memory, steps=2)
    assert torch.equal(first[..., LIPS], noisy[..., LIPS])
    assert not torch.allclose(first[..., REST], noisy[..., REST])
    other = denoiser(given[0], given[1] + 1, *given[2:], memory, steps=2)
    assert not torch.allclose(first[..., REST], other[..., REST])


def test_lips_lead_what_was_learnt_from_late_tracks_across_windows_too(denoiser):
    memory, given = denoiser.init_memory(2), [inputs() for _ in range(2)]
    led = []
    for features, linear, *rest in given:
        codes = denoiser(features, linear, *rest, memory, steps=1)
        denoiser.remember(codes, features, linear, memory)
        led.append(codes[..., LIPS])
    heard = [torch.cat(parts, 1) for parts in zip(*(one[:2] for one in given), strict=True)]
    shown = denoiser.shown_lips(denoiser.predict_lips(*heard))
    before = torch.cat([shown[:, :1], shown[:, :-1]], 1)  # a new session had none before
    expected = torch.lerp(before, shown, 1 + LIP_LEAD)
    torch.testing.assert_close(torch.cat(led, 1), expected, atol=1e-5, rtol=1e-5)


def test_white_errors_return_to_the_codes_they_came_from(denoiser):
    vectors, _ = torch.linalg.qr(torch.randn(NUM_REST, CONFIG.window, CONFIG.window))
    sizes = torch.rand(NUM_REST, CONFIG.window) + 0.1
    denoiser.whiten.copy_(vectors / sizes[:, None])
    denoiser.unwhiten.copy_((vectors * sizes[:, None]).transpose(1, 2))
    rest = torch.randn(3, CONFIG.window, NUM_REST)
    past = torch.randn(3, PAST_WINDOWS * CONFIG.window, NUM_REST)
    torch.testing.assert_close(denoiser.unwhite(denoiser.white(rest, past), past), rest)


def test_the_context_of_a_window_does_not_see_later_ones(denoiser):
    windows = 4
    past = torch.randn(1, windows, CONFIG.window, NUM_MOTION)
    features = torch.randn(1, windows, CONFIG.window, 16)
    lips = torch.randn(1, windows, CONFIG.window, NUM_LIPS)
    rest = (torch.zeros(1, NUM_STYLE), torch.zeros(1, dtype=torch.long))
    filled = torch.ones(1, windows, dtype=torch.bool)
    whole = denoiser.context(past, features, lips, *rest, filled)
    past[:, 3], features[:, 3] = 9.0, 9.0
    changed = denoiser.context(past, features, lips, *rest, filled)
    torch.testing.assert_close(whole[:, :3], changed[:, :3])
    assert not torch.allclose(whole[:, 3], changed[:, 3])


def test_memory_that_is_not_filled_is_not_seen(denoiser):
    memory, given = denoiser.init_memory(2), inputs()
    first = denoiser(*given, memory, steps=2)
    memory.codes[:, :-1] = 7.0
    torch.testing.assert_close(denoiser(*given, memory, steps=2), first)
    memory.codes[:, -1, 0] = 7.0
    assert not torch.allclose(denoiser(*given, memory, steps=2), first)


def test_memory_holds_the_last_windows_that_were_shown(denoiser):
    memory = denoiser.init_memory(1)
    addresses = [part.data_ptr() for part in (memory.codes, memory.heard, memory.filled)]
    for number in range(CONFIG.memory + 2):
        shown = torch.full((1, CONFIG.window, NUM_MOTION), float(number))
        features, linear = inputs(1)[:2]
        denoiser.remember(shown, features, linear, memory)
    assert memory.filled.all()
    expected = torch.arange(2.0, CONFIG.memory + 2)[:, None].expand(-1, NUM_MOTION)
    torch.testing.assert_close(memory.codes[0, :, 0], denoiser.to_normal(expected))
    before = memory.codes.clone().flatten(1, 2)
    memory.rewind(5)
    torch.testing.assert_close(memory.codes.flatten(1, 2)[:, 5:], before[:, :-5])
    assert not memory.codes.flatten(1, 2)[:, :5].any(), "what is before the memory is rest"
    assert memory.filled[0].tolist() == [False, False, *[True] * (CONFIG.memory - 2)]
    assert [p.data_ptr() for p in (memory.codes, memory.heard, memory.filled)] == addresses
    memory.reset()
    assert memory.filled.sum() == 1 and not memory.codes.any()


def test_normal_codes_return_to_the_codes_they_came_from_and_exceed_none(denoiser):
    span = denoiser.levels[:, -1] - denoiser.levels[:, 0]
    rest = torch.rand(5, NUM_REST) * span + denoiser.levels[:, 0]
    normal = denoiser.to_normal(torch.cat([torch.randn(5, NUM_LIPS), rest], -1))
    torch.testing.assert_close(denoiser.to_rest(normal[..., REST]), rest)
    far = denoiser.to_rest(torch.full((1, NUM_REST), 9.0))
    torch.testing.assert_close(far[0], denoiser.levels[:, -1])


def test_sessions_of_a_batch_do_not_mix(denoiser):
    given, memory = inputs(3), denoiser.init_memory(3)
    together = denoiser(*given, memory, steps=3)
    for index in range(3):
        alone = [part[index : index + 1] for part in given]
        one = denoiser(*alone, denoiser.init_memory(1), steps=3)
        torch.testing.assert_close(one, together[index : index + 1])


@pytest.mark.parametrize("gain, begun", [(0.0, 0), (1e6, 1)])
def test_how_often_eyes_blink_can_be_set(denoiser, gain, begun):
    drawn = denoiser._draw_blink(
        torch.randn(50, CONFIG.width), torch.rand(50).clamp(min=1e-3), torch.full((50,), gain)
    )
    assert (drawn == begun).all()
