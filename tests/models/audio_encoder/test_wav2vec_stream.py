"""wav2vec 2.0 in pieces against transformers' own on the whole sound, cause by cause."""

from dataclasses import replace

import pytest
import torch
from support.small_model import make_speech, stir

from letstalk_rt.errors import ConfigError, WeightsError
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2Stream, Wav2Vec2StreamConfig

SMALL = Wav2Vec2StreamConfig(
    layers=3, width=48, heads=4, ffn=64, conv_width=16, context_frames=8, block_frames=1
)
FRAME = 640

pytest.importorskip("transformers", reason="the extra paper is not installed")


@pytest.fixture(scope="module")
def published():
    """A random wav2vec2 of the small shape, as transformers runs it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = transformers.Wav2Vec2Config(
        num_hidden_layers=SMALL.layers,
        hidden_size=SMALL.width,
        num_attention_heads=SMALL.heads,
        intermediate_size=SMALL.ffn,
        conv_dim=(SMALL.conv_width,) * 7,
    )
    model = transformers.Wav2Vec2Model(shape).eval().requires_grad_(False)
    for name, weight in model.encoder.named_parameters():  # so that context matters
        if name.endswith("proj.weight"):
            weight.mul_(5)
    stir(model)
    return model


def speech(frames, seed=0):
    return torch.from_numpy(make_speech(frames / 25, seed))[None]


def published_features(model, pcm):
    """The published front: unit variance, 50 Hz features, interpolated to 25 Hz."""
    frames = pcm.shape[1] // FRAME
    unit = (pcm - pcm.mean()) / torch.sqrt(pcm.var(unbiased=False) + 1e-7)
    features = model.feature_extractor(unit)
    features = torch.nn.functional.interpolate(
        features, size=frames, mode="linear", align_corners=True
    )
    return features.transpose(1, 2)


def published_states(model, features):
    """The published transformer: all hidden states `(B, T, layers + 1, width)`."""
    x = model.feature_projection(features)[0]
    out = model.encoder(x)  # the plain encoder keeps no states: layers are watched
    states = []
    hooks = [
        layer.register_forward_hook(lambda m, i, o: states.append(o))
        for layer in model.encoder.layers
    ]
    hooks.append(model.encoder.dropout.register_forward_hook(lambda m, i, o: states.append(o)))
    again = model.encoder(x)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(again.last_hidden_state, out.last_hidden_state)
    return torch.stack(states, 2)


def know_the_utterance(stream, pcm, state):
    """Give the running norm the moments of the whole utterance, for ever."""
    first = stream.convs[0].conv(pcm[:, None])
    square = torch.cat([(first**2).mean(-1), (pcm**2).mean(-1)[:, None]], 1)
    mean = torch.cat([first.mean(-1), pcm.mean(-1)[:, None]], 1)
    state.norm.frames.fill_(1e9)
    state.norm.sums.copy_(1e9 * torch.stack([mean, square], 1))


class TestAgainstPublished:
    def test_the_front_is_exact_where_the_norm_is_known(self, published, monkeypatch):
        monkeypatch.setattr("letstalk_rt.models.audio_encoder.wav2vec_stream.PRIOR_FRAMES", 0.0)
        pcm = speech(20)
        stream = Wav2Vec2Stream(SMALL, published)
        state = stream.init_state(1)
        know_the_utterance(stream, pcm, state)
        monkeypatch.setattr("letstalk_rt.models.audio_encoder.wav2vec_stream.MEMORY_S", 1e9)
        made = stream.front(pcm, state.norm)
        torch.testing.assert_close(made, published_features(published, pcm), atol=1e-4, rtol=1e-3)

    def test_a_block_that_holds_all_is_exact(self, published):
        """Projection, positions, attention and the order of the layers are the published ones."""
        pcm = speech(20)
        config = replace(SMALL, block_frames=20, lookahead_ms=0, with_embedding=True)
        stream = Wav2Vec2Stream(config, published).eval()
        state = stream.init_state(1)
        features = stream.front(pcm, stream.init_state(1).norm)
        made = stream(pcm, state)
        torch.testing.assert_close(
            made, published_states(published, features), atol=1e-5, rtol=1e-4
        )
        assert made.shape == (1, 20, SMALL.layers + 1, SMALL.width)

    def test_the_running_norm_comes_within_a_tenth(self, published):
        """Features against the published ones, after two seconds of speech."""
        pcm = speech(150)
        stream = Wav2Vec2Stream(SMALL, published)
        made = stream.front(pcm, stream.init_state(1).norm)[:, 50:]
        assert difference(made, published_features(published, pcm)[:, 50:]) < 0.1

    @pytest.mark.parametrize(
        "settings, tolerance",
        [
            (dict(context_frames=8, block_frames=4, lookahead_ms=0), 0.4),
            (dict(context_frames=50, block_frames=4, lookahead_ms=80), 0.26),
            (dict(context_frames=100, block_frames=19, lookahead_ms=160), 0.22),
        ],
    )
    def test_bounded_context_comes_within(self, published, settings, tolerance):
        """Hidden states against the published transformer on the same features.

        What is left at 80 ms and more is mostly the positional convolution, whose published kernel
        reaches 2.5 s into the future.
        """
        pcm = speech(152)
        stream = Wav2Vec2Stream(replace(SMALL, **settings), published).eval()
        delay = stream.lookahead_frames
        made = stream(pcm)[:, delay + 60 :]
        features = stream.front(pcm, stream.init_state(1).norm)
        whole = published_states(published, features)[:, :, 1:]
        whole = whole[:, 60 : whole.shape[1] - delay]
        assert difference(made, whole) < tolerance


class TestNorm:
    @pytest.fixture
    def stream(self):
        torch.manual_seed(0)
        return Wav2Vec2Stream(SMALL).eval().requires_grad_(False)

    def front_after(self, stream, past, pcm):
        state = stream.init_state(1).norm
        stream.front(past, state)
        return stream.front(pcm, state)

    def test_level_and_offset_do_not_matter(self, stream):
        past, pcm = speech(100), speech(10, seed=1)
        quiet, loud = (self.front_after(stream, g * past, g * pcm) for g in (0.3, 0.9))
        assert difference(quiet, loud) < 0.1
        moved = self.front_after(stream, past + 0.05, pcm + 0.05)
        assert difference(moved, self.front_after(stream, past, pcm)) < 0.01

    def test_a_pause_changes_nothing(self, stream):
        past, pcm, hiss = speech(50), speech(10, seed=1), 1e-4 * torch.randn(1, 200 * FRAME)
        direct = self.front_after(stream, past, pcm)
        paused = self.front_after(stream, torch.cat([past, hiss], 1), pcm)
        # The first frame's first convolution reaches 5 samples back, into the pause.
        torch.testing.assert_close(paused, direct, atol=1e-3, rtol=1e-2)

    def test_silence_from_the_start_is_finite(self, stream):
        out = stream(torch.zeros(1, 30 * FRAME))
        assert out.isfinite().all() and not out[:, : stream.lookahead_frames].any()


class TestSettings:
    @pytest.mark.parametrize("ms, frames", [(0, 0), (160, 4)])
    def test_the_look_ahead_is_as_declared(self, ms, frames):
        torch.manual_seed(0)
        stream = Wav2Vec2Stream(replace(SMALL, lookahead_ms=ms)).eval()
        assert stream.lookahead_frames == frames
        pcm, shown = speech(16), 8
        later, last = pcm.clone(), pcm.clone()
        end = (shown + 1 + frames) * FRAME
        later[:, end:] = 0.9
        last[:, end - FRAME : end] *= -0.5
        known, same, other = (stream(x)[:, shown + frames] for x in (pcm, later, last))
        assert torch.equal(known, same) and not torch.allclose(known, other)

    def test_base_has_the_published_size(self):
        with torch.device("meta"):
            stream = Wav2Vec2Stream()
        assert stream.num_states == 12
        assert sum(p.numel() for p in stream.parameters()) == 94_370_944

    @pytest.mark.parametrize(
        "settings, message",
        [
            (dict(lookahead_ms=60), "lookahead_ms must be one of 0, 40, 80, 160"),
            (dict(block_frames=0), "block_frames must be at least 1"),
            (dict(width=50), "multiple of heads"),
        ],
    )
    def test_bad_settings_are_named(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            Wav2Vec2Stream(replace(SMALL, **settings))

    def test_an_incomplete_block_is_refused(self):
        with pytest.raises(AssertionError):
            Wav2Vec2Stream(replace(SMALL, block_frames=4))(torch.zeros(1, 3 * FRAME))


class TestLoading:
    def test_weights_and_shape_are_loaded_from_a_folder(self, published, tmp_path):
        published.save_pretrained(tmp_path)
        stream = Wav2Vec2Stream.load(tmp_path, Wav2Vec2StreamConfig(block_frames=2))
        pcm = speech(8)
        settings = replace(SMALL, block_frames=2, context_frames=50)
        assert stream.config == settings
        torch.testing.assert_close(stream(pcm), Wav2Vec2Stream(settings, published).eval()(pcm))

    def test_a_missing_model_is_reported(self, tmp_path):
        with pytest.raises(WeightsError, match=r"config.json"):
            Wav2Vec2Stream.load(tmp_path)

    def test_another_kind_is_named(self):
        transformers = pytest.importorskip("transformers")
        shape = transformers.Wav2Vec2Config(
            num_hidden_layers=1, hidden_size=48, conv_dim=(16,) * 7, num_attention_heads=4,
            intermediate_size=64, feat_extract_norm="layer", do_stable_layer_norm=True,
        )  # fmt: skip
        with pytest.raises(ConfigError, match="group norm"):
            Wav2Vec2Stream(SMALL, transformers.Wav2Vec2Model(shape))


def difference(made, true):
    """Error relative to what varies in time."""
    return float((made - true).norm() / (true - true.mean(1, keepdim=True)).norm())
