"""What every stateful module must satisfy. New modules join by adding a line to MODULES."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support.small_model import AUDIO, make_model, make_portrait, make_speech, stir
from torch import Tensor, nn

from letstalk_rt.errors import AudioFormatError, ConfigError, PortraitError
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.session_state import SETTLE_SAMPLES, SessionState
from letstalk_rt.models.audio_encoder.causal import CausalAudioEncoder
from letstalk_rt.models.audio_encoder.mel import StreamingMel
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2Stream, Wav2Vec2StreamConfig
from letstalk_rt.models.autoencoder.reference import DecodedLayers
from letstalk_rt.models.batch_state import tensors
from letstalk_rt.models.layers.causal_conv import CausalConv1d
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.sampler import NoiseState, sample, timesteps
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.types import SAMPLES_PER_FRAME, Portrait


@dataclass(frozen=True)
class Case:
    """A streaming module, and how its input and output count time.

    Attributes:
        make: makes the module.
        lead: axes of the input between the batch and time.
        unit: smallest piece of input, in its time steps; gives one entry of output.
        axis: time axis of the output.
    """

    make: Callable[[], nn.Module]
    lead: tuple[int, ...] = ()
    unit: int = 1
    axis: int = -1

    def input(self, batch: int, units: int) -> Tensor:
        return 0.3 * torch.randn(batch, *self.lead, units * self.unit)


WAV2VEC = Wav2Vec2StreamConfig(
    layers=2, width=16, heads=2, ffn=32, conv_width=8, context_frames=6, lookahead_ms=160
)


def conv(kernel: int, dilation: int = 1) -> Case:
    return Case(lambda: CausalConv1d(3, 5, kernel, dilation), lead=(3,))


def encoder(mouth_values: int = 0) -> nn.Module:
    module = CausalAudioEncoder(replace(AUDIO, mouth_values=mouth_values))
    stir(module)
    return module


def wav2vec(block_frames: int) -> nn.Module:
    pytest.importorskip("transformers", reason="the extra paper is not installed")
    module = Wav2Vec2Stream(replace(WAV2VEC, block_frames=block_frames))
    stir(module)
    return module


def wav2vec_case(block_frames: int) -> Case:
    return Case(lambda: wav2vec(block_frames), unit=block_frames * SAMPLES_PER_FRAME, axis=1)


MODULES = [
    pytest.param(conv(1), id="conv-k1"),
    pytest.param(conv(2), id="conv-k2"),
    pytest.param(conv(7), id="conv-k7"),
    pytest.param(conv(3, 2), id="conv-k3-d2"),
    pytest.param(conv(3, 16), id="conv-k3-d16"),
    pytest.param(Case(StreamingMel, unit=160), id="mel"),
    pytest.param(Case(encoder, unit=SAMPLES_PER_FRAME, axis=1), id="audio-encoder"),
    pytest.param(
        Case(lambda: encoder(5), unit=SAMPLES_PER_FRAME, axis=1), id="audio-encoder-mouth"
    ),
    pytest.param(wav2vec_case(1), id="wav2vec-block1"),
    pytest.param(wav2vec_case(4), id="wav2vec-block4"),
]
SPLITS = [
    pytest.param(split, id="+".join(map(str, split))) for split in ([12], [1] * 12, [5, 1, 6])
]


@pytest.fixture(params=MODULES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return request.param


@pytest.fixture
def module(case: Case) -> nn.Module:
    return case.make().eval().requires_grad_(False)


def stream(case: Case, module: nn.Module, x: Tensor, split: list[int], state: object) -> Tensor:
    pieces = x.split([n * case.unit for n in split], dim=-1)
    return torch.cat([module(piece, state) for piece in pieces], dim=case.axis)


def addresses(state: object) -> list[tuple[int, torch.Size]]:
    return [(tensor.data_ptr(), tensor.shape) for tensor in tensors(state)]


class TestModules:
    @pytest.mark.parametrize("split", SPLITS)
    def test_pieces_equal_whole(self, case, module, split):
        x = case.input(2, 12)
        torch.testing.assert_close(stream(case, module, x, split, module.init_state(2)), module(x))

    def test_the_future_does_not_change_the_past(self, case, module):
        x = case.input(2, 12)
        later = x.clone()
        later[..., 8 * case.unit :] = 0.9
        before, after = module(x), module(later)
        torch.testing.assert_close(after.narrow(case.axis, 0, 8), before.narrow(case.axis, 0, 8))
        assert not torch.equal(after, before)

    def test_reset_equals_new(self, case, module):
        x, state = case.input(2, 12), module.init_state(2)
        module(case.input(2, 4), state)
        state.reset()
        assert all(not tensor.any() for tensor in tensors(state))
        torch.testing.assert_close(module(x, state), module(x))

    def test_sessions_do_not_mix(self, case, module):
        sounds = [case.input(1, 12), case.input(1, 12)]
        states, heard = [module.init_state(1), module.init_state(1)], ([], [])
        for turn in range(4):
            for x, state, out in zip(sounds, states, heard, strict=True):
                out.append(module(x.split(3 * case.unit, -1)[turn], state))
        for x, out in zip(sounds, heard, strict=True):
            torch.testing.assert_close(torch.cat(out, case.axis), module(x))

    def test_a_batch_is_as_good_as_alone(self, case, module):
        x, state = case.input(3, 6), module.init_state(3)
        together = stream(case, module, x, [2, 4], state)
        for index in range(3):
            one = x[index : index + 1]
            torch.testing.assert_close(together[index : index + 1], module(one))

    def test_state_keeps_its_address(self, case, module):
        state = module.init_state(1)
        before = addresses(state)
        for units in (6, 1):
            module(case.input(1, units), state)
        state.reset()
        assert addresses(state) == before

    def test_the_state_does_not_hold_the_graph(self, case):
        module = case.make().train()
        state = module.init_state(1)
        module(case.input(1, 2), state)
        assert not any(tensor.requires_grad for tensor in tensors(state))


@pytest.mark.parametrize("kernel, dilation", [(3, 2), (2, 16), (7, 3)])
def test_a_dilated_convolution_is_the_same_with_and_without_gradients(kernel, dilation):
    conv = CausalConv1d(3, 5, kernel, dilation)
    x = torch.randn(2, 3, 40)
    trained = conv(x)
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), trained.detach())


class TestAudioEncoder:
    @pytest.fixture
    def module(self):
        torch.manual_seed(0)
        return encoder().eval().requires_grad_(False)

    @pytest.mark.parametrize("frame", [0, 5])
    @pytest.mark.parametrize("lookahead_ms, ahead", [(0, 0), (40, 1), (80, 2), (160, 4)])
    def test_the_look_ahead_past_a_frame_is_heard_and_no_more(self, lookahead_ms, ahead, frame):
        torch.manual_seed(0)
        module = CausalAudioEncoder(replace(AUDIO, lookahead_ms=lookahead_ms)).eval()
        assert module.lookahead_frames == ahead
        pcm = 0.1 * torch.randn(1, 12 * SAMPLES_PER_FRAME)
        end = (frame + 1) * SAMPLES_PER_FRAME + 16 * lookahead_ms
        later, last = pcm.clone(), pcm.clone()
        later[:, end:] = 0.9
        last[:, end - 160 : end] = 0.9
        known, same, other = (module(x)[:, frame + ahead] for x in (pcm, later, last))
        assert torch.equal(same, known)
        assert not torch.allclose(other, known)

    def test_tokens_say_no_more_than_the_mouths_values(self):
        torch.manual_seed(0)
        module = encoder(mouth_values=3).eval().requires_grad_(False)
        tokens = module(0.1 * torch.randn(1, 40 * SAMPLES_PER_FRAME))[0].flatten(1)
        assert torch.linalg.matrix_rank(tokens - tokens.mean(0), rtol=1e-4) == 3
        mel = torch.randn(2, 64, 24)
        shown = module.mouth.tokens(module.read_mouth(mel))
        torch.testing.assert_close(module.encode_mel(mel), shown)

    def test_another_look_ahead_is_named(self):
        with pytest.raises(ConfigError, match="0, 40, 80, 160, got 100"):
            CausalAudioEncoder(replace(AUDIO, lookahead_ms=100))

    def test_there_are_four_tokens_per_frame(self, module):
        pcm = torch.zeros(2, 3 * SAMPLES_PER_FRAME)
        assert module(pcm).shape == (2, 3, 4, AUDIO.token_width)

    def test_part_of_a_frame_is_refused(self, module):
        with pytest.raises(AssertionError):
            module(torch.zeros(1, 639))

    def test_what_was_heard_long_ago_has_no_say(self, module):
        quiet = torch.zeros(1, 8 * SAMPLES_PER_FRAME)
        pasts = [0.1 * torch.randn(1, 4 * SAMPLES_PER_FRAME) for _ in range(2)]
        one, other = (module(torch.cat([past, quiet], 1))[:, -1] for past in pasts)
        torch.testing.assert_close(one, other)


class TestMel:
    def test_a_tone_lights_its_band(self):
        mel = StreamingMel()
        time = torch.arange(16_000) / 16_000
        low = mel(torch.sin(2 * torch.pi * 300 * time)[None])[0, :, 50:].mean(1)
        high = mel(torch.sin(2 * torch.pi * 4000 * time)[None])[0, :, 50:].mean(1)
        assert low.argmax() < 15 and high.argmax() > 40

    def test_silence_is_the_floor(self):
        mel = StreamingMel()(torch.zeros(1, 320))
        torch.testing.assert_close(mel, torch.full_like(mel, (np.log(1e-4) + 3) / 4))

    def test_every_band_hears_something(self):
        assert (StreamingMel().filters.sum(0) > 0).all()


class TestMemoryBank:
    def test_pieces_equal_whole(self):
        torch.manual_seed(0)
        latents = torch.randn(2, 6, 2, 3, 3)
        whole, pieces = (MemoryBank.anchored(torch.ones(2, 2, 3, 3), 6) for _ in range(2))
        whole.write(latents)
        for piece in latents.split([3, 1, 2], 1):
            pieces.write(piece)
        assert torch.equal(whole.latents, pieces.latents)
        assert torch.equal(whole.filled, pieces.filled)

    def test_reset_equals_new(self):
        anchor = torch.randn(2, 2, 3, 3)
        new, used = (MemoryBank.anchored(anchor, 4) for _ in range(2))
        used.write(torch.randn(2, 3, 2, 3, 3))
        used.reset()
        assert torch.equal(new.latents, used.latents) and torch.equal(new.filled, used.filled)

    def test_state_keeps_its_address(self):
        bank = MemoryBank.anchored(torch.randn(1, 2, 3, 3), 4)
        before = addresses(bank)
        bank.write(torch.randn(1, 4, 2, 3, 3))
        bank.reset()
        assert addresses(bank) == before


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make_model())


def hops(count: int, seed: int = 0) -> np.ndarray:
    return make_speech(count * 0.16, seed).reshape(count, 1, 2560)


def play(pipeline: AvatarPipeline, state: SessionState, sound: np.ndarray) -> np.ndarray:
    """Step through hops `(S, 1, 2560)`: pictures `(4 S, H, W, 3)`."""
    return np.concatenate([pipeline.step(hop, [state])[0] for hop in sound])


def session_parts(state: SessionState) -> list[object]:
    return [state.audio, state.memory, state.features, state.portrait]


class WatchedCompositor:
    """Composites as another one; `before` is told the number of each call, from 1."""

    def __init__(self, inner: Compositor, before: Callable[[int], None]) -> None:
        self._inner, self._before = inner, before
        self.calls = self.done = 0

    def compose_layers(self, frames: DecodedLayers, eye_closures: Sequence[float]) -> np.ndarray:
        self.calls += 1
        self._before(self.calls)
        composed = self._inner.compose_layers(frames, eye_closures)
        self.done += 1
        return composed


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


class TestPipeline:
    def test_pictures_have_the_canvas_size(self, pipeline):
        pictures = pipeline.step(hops(1)[0], [pipeline.init_state(make_portrait())])
        assert pictures.shape == (1, 4, 96, 112, 3) and pictures.dtype == np.uint8

    def test_a_window_in_parts_equals_the_whole(self, pipeline):
        portrait, sound = make_portrait(), hops(3)
        states = [pipeline.init_state(portrait, StateOptions(3)) for _ in range(2)]
        for hop in sound:
            parts: list[np.ndarray] = []
            whole = pipeline.step(hop, states[:1])
            window = pipeline.step(hop, states[1:], parts.append)
            assert [part.shape[1] for part in parts] == [*pipeline.partial_sizes] == [1, 1, 1, 1]
            assert np.array_equal(np.concatenate(parts, 1), window)
            assert largest_difference(whole, window) <= 1, "but for rounding"

    def test_a_part_that_fails_ends_the_step_and_not_the_session(self, pipeline):
        state, sound = pipeline.init_state(make_portrait(size=64)), hops(2)

        def fail_once(call: int) -> None:
            if call == 2:
                raise RuntimeError("no memory")

        watched = state.compositor = WatchedCompositor(state.compositor, fail_once)
        with pytest.raises(RuntimeError, match="no memory"):
            pipeline.step(sound[0], [state], lambda part: None)
        assert watched.calls == 4  # nothing is painted any more
        assert pipeline.step(sound[1], [state], lambda part: None).shape[1] == 4

    def test_when_nobody_takes_a_part_painting_ends_with_the_step(self, pipeline):
        state, sound = pipeline.init_state(make_portrait(size=64)), hops(1)
        refused = threading.Event()

        def wait_for_the_refusal(call: int) -> None:
            assert call == 1 or refused.wait(20)

        def refuse(part: np.ndarray) -> None:
            refused.set()
            raise ValueError("closed")

        watched = state.compositor = WatchedCompositor(state.compositor, wait_for_the_refusal)
        with pytest.raises(ValueError, match="closed"):
            pipeline.step(sound[0], [state], refuse)
        assert watched.done == 4

    def test_pieces_equal_whole(self, pipeline):
        """Hop by hop equals the equations on the whole sound: frame `i` hears tokens `i - 2`."""
        model, portrait, sound = pipeline.model, make_portrait(), hops(3)
        state = pipeline.init_state(portrait, StateOptions(3))
        seen = play(pipeline, pipeline.init_state(portrait, StateOptions(3)), sound)
        whole = torch.from_numpy(sound.reshape(1, -1))
        silence = torch.zeros(1, SETTLE_SAMPLES)
        tokens = model.audio(torch.cat([silence, whole], 1))[
            :, SETTLE_SAMPLES // SAMPLES_PER_FRAME :
        ]
        bank = MemoryBank.anchored(torch.zeros(1, 24, 4, 4), model.denoiser.config.memory)
        chance, motions = NoiseState(3, torch.zeros(1, 24, 4, 4)), []
        for window in tokens.split(4, 1):

            def velocity(x, t, window=window):
                at = torch.full((1, 4), t)
                return model.denoiser(x, at, window, state.portrait, bank.latents, bank.filled)

            noise = model.without_background_noise(chance.draw(4, 0.5, 1.0))
            motions.append(sample(velocity, noise, timesteps(2)))
            bank.write(motions[-1])
        latents = model.to_latents(torch.cat(motions, 1), state.features.latent)
        faces = model.autoencoder.decode(latents, state.features)[0]
        assert largest_difference(seen, state.compositor.compose(faces)) <= 1

    def test_speech_moves_the_face(self, pipeline):
        portrait, sound = make_portrait(), hops(2)
        spoken = play(pipeline, pipeline.init_state(portrait), sound)
        silent = play(pipeline, pipeline.init_state(portrait), np.zeros_like(sound))
        assert largest_difference(spoken, silent) > 10

    def test_the_future_does_not_change_the_past(self, pipeline):
        portrait, sound = make_portrait(), hops(4)
        later = sound.copy()
        later[2:] = hops(2, seed=9)
        before = play(pipeline, pipeline.init_state(portrait), sound)
        after = play(pipeline, pipeline.init_state(portrait), later)
        assert np.array_equal(before[:8], after[:8])
        assert not np.array_equal(before[8:], after[8:])

    def test_what_was_shown_is_not_written_again(self, pipeline):
        state, sound = pipeline.init_state(make_portrait()), hops(2)
        first = pipeline.step(sound[0], [state])
        kept = first.copy()
        pipeline.step(sound[1], [state])
        assert np.array_equal(first, kept)

    def test_reset_equals_new(self, pipeline):
        portrait, sound = make_portrait(), hops(3)
        state = pipeline.init_state(portrait, StateOptions(5))
        play(pipeline, state, hops(4, seed=8))
        state.reset()
        new = play(pipeline, pipeline.init_state(portrait, StateOptions(5)), sound)
        assert np.array_equal(play(pipeline, state, sound), new)

    def test_seed_and_sound_decide_the_video(self, pipeline):
        portrait, sound = make_portrait(), hops(2)
        one, same, other = (
            play(pipeline, pipeline.init_state(portrait, StateOptions(s)), sound) for s in (1, 1, 2)
        )
        assert np.array_equal(one, same) and not np.array_equal(one, other)

    def test_sessions_taking_turns_do_not_mix(self, pipeline):
        portraits, sounds = [make_portrait(1), make_portrait(2)], [hops(3, 1), hops(3, 2)]
        states = [pipeline.init_state(p, StateOptions(i)) for i, p in enumerate(portraits)]
        turns = [[pipeline.step(s[h], [t])[0] for s, t in zip(sounds, states, strict=True)]
                 for h in range(3)]  # fmt: skip
        for index, (portrait, sound) in enumerate(zip(portraits, sounds, strict=True)):
            alone = play(pipeline, pipeline.init_state(portrait, StateOptions(index)), sound)
            assert np.array_equal(np.concatenate([turn[index] for turn in turns]), alone)

    def test_a_batch_of_sessions_is_as_good_as_alone(self, pipeline):
        portraits, sounds = [make_portrait(i) for i in range(3)], [hops(3, i) for i in range(3)]
        states = [pipeline.init_state(p, StateOptions(i)) for i, p in enumerate(portraits)]
        play(pipeline, states[2], hops(1, 7))  # this one has begun earlier
        together = [pipeline.step(np.concatenate(pcm), states) for pcm in zip(*sounds, strict=True)]
        for index in range(3):
            state = pipeline.init_state(portraits[index], StateOptions(index))
            if index == 2:
                play(pipeline, state, hops(1, 7))
            alone = play(pipeline, state, sounds[index])
            shown = np.concatenate([pictures[index] for pictures in together])
            assert largest_difference(shown, alone) <= 1

    @pytest.mark.parametrize("count", [1, 2])
    def test_state_keeps_its_addresses_and_size_for_ever(self, pipeline, count):
        states = [pipeline.init_state(make_portrait(i)) for i in range(count)]
        before = [addresses(session_parts(s)) for s in states]
        for pcm in hops(8):
            pipeline.step(pcm.repeat(count, 0), states)
        pipeline.interrupt(states[0])
        states[0].reset()
        assert [addresses(session_parts(s)) for s in states] == before

    def test_interrupt_forgets_the_speech_and_keeps_the_face(self, pipeline):
        state = pipeline.init_state(make_portrait())
        play(pipeline, state, hops(3))
        memory, filled = state.memory.latents.clone(), state.memory.filled.clone()
        pipeline.interrupt(state)
        for heard, silent in zip(tensors(state.audio), tensors(state.silence), strict=True):
            assert torch.equal(heard, silent) and heard.data_ptr() != silent.data_ptr()
        assert torch.equal(state.memory.latents, memory)
        assert torch.equal(state.memory.filled, filled)
        assert filled.any() and memory.any()

    def test_a_session_begins_as_after_long_silence(self, pipeline):
        """A fresh state's zeros are no sound the model was trained on: it would twitch."""
        state, settled = (pipeline.init_state(make_portrait()) for _ in range(2))
        play(pipeline, settled, np.zeros((20, 1, pipeline.hop), np.float32))
        for new, old in zip(tensors(state.audio), tensors(settled.audio), strict=True):
            torch.testing.assert_close(new, old)

    def test_interrupt_of_one_session_leaves_the_other(self, pipeline):
        portrait, sound = make_portrait(), hops(3)
        state, other = (pipeline.init_state(portrait) for _ in range(2))
        alone = play(pipeline, pipeline.init_state(portrait), sound)
        shown = []
        for hop in sound:
            shown.append(pipeline.step(hop, [state])[0])
            pipeline.step(hop, [other])
            pipeline.interrupt(other)
        assert np.array_equal(np.concatenate(shown), alone)

    @pytest.mark.parametrize(
        "pcm, wrong",
        [
            (np.zeros((1, 2559), np.float32), "2559"),
            (np.zeros((2, 2560), np.float32), r"\(1, 2560\)"),
            (np.zeros((1, 2560)), "float64"),
            (np.zeros((1, 2560), np.int16), "int16"),
            (np.full((1, 2560), np.nan, np.float32), "NaN"),
            (np.full((1, 2560), np.inf, np.float32), "infinity"),
        ],
    )
    def test_bad_sound_is_named_and_changes_nothing(self, pipeline, pcm, wrong):
        portrait, sound = make_portrait(), hops(2)
        state = pipeline.init_state(portrait)
        first = pipeline.step(sound[0], [state])[0]
        with pytest.raises(AudioFormatError, match=wrong):
            pipeline.step(pcm, [state])
        second = pipeline.step(sound[1], [state])[0]
        whole = play(pipeline, pipeline.init_state(portrait), sound)
        assert np.array_equal(np.concatenate([first, second]), whole)

    def test_a_crop_of_another_size_is_named(self, pipeline):
        canvas = np.zeros((96, 96, 3), np.uint8)
        with pytest.raises(PortraitError, match="prepare_portrait"):
            pipeline.init_state(Portrait(canvas, canvas, (0.0, 0.0, 96.0)))

    @pytest.mark.parametrize("steps", [0, 51])
    def test_steps_out_of_range_are_named(self, steps):
        with pytest.raises(ConfigError, match="steps must be from 1 to 50"):
            AvatarPipeline(make_model(), steps=steps)

    def test_the_public_clockwork_is_as_declared(self, pipeline):
        declared = (pipeline.fps, pipeline.frames_per_window, pipeline.hop)
        assert declared == (25, 4, 2560) and pipeline.lookahead_frames == 2
