"""What every streaming module must satisfy. New modules join by adding a line to MODULES."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support.small_model import AUDIO, stir
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.audio_encoder.causal import CausalAudioEncoder
from letstalk_rt.models.audio_encoder.mel import StreamingMel
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2Stream, Wav2Vec2StreamConfig
from letstalk_rt.models.batch_state import tensors
from letstalk_rt.models.layers.causal_conv import CausalConv1d
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.motion.speech_encoder import (
    SpeechEncoder,
    SpeechEncoderConfig,
    SpeechState,
)
from letstalk_rt.types import SAMPLES_PER_FRAME


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


class JoinedSpeech(nn.Module):
    """The speech encoder with all that it returns side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(5, SpeechEncoderConfig(width=16))
        self.encoder.usual.normal_()
        self.init_state = self.encoder.init_state

    def forward(self, pcm: Tensor, state: SpeechState | None = None) -> Tensor:
        heard = self.encoder(pcm, state)
        return torch.cat([heard.features, heard.lips, heard.sound], -1)


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
    pytest.param(Case(JoinedSpeech, unit=SAMPLES_PER_FRAME, axis=1), id="speech-encoder"),
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
        assert all(map(torch.equal, tensors(state), tensors(module.init_state(2))))
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
