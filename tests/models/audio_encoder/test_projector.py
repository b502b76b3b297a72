"""The audio projector, whole and in pieces."""

from dataclasses import replace

import pytest
import torch
from support.small_paper_model import PROJECTOR

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.audio_encoder.projector import AudioProjector


@pytest.fixture
def projector():
    torch.manual_seed(0)
    return AudioProjector(PROJECTOR).eval().requires_grad_(False)


def features(frames=9, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 2, 8, generator=generator)


def streamed(projector, x, pieces, state=None):
    """Tokens of all frames: the stream is `reach` frames late, its end is the last frame again."""
    state = state or projector.init_state(len(x))
    x = torch.cat([x, x[:, -1:].expand(-1, PROJECTOR.reach, -1, -1)], 1)
    out = [projector(piece, state) for piece in x.split(pieces, 1)]
    return torch.cat(out, 1)[:, PROJECTOR.reach :]


def test_each_frame_reads_itself_and_two_neighbours_on_either_side(projector):
    x = features()
    before = projector(x)
    x[:, 4] += 1
    moved = (projector(x) - before).abs().amax((0, 2, 3)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_tokens_equal_the_layers_written_out(projector):
    x = features()
    window = x[0, [1, 2, 3, 4, 5]].flatten()
    hidden = projector.layer2(projector.layer1(window).relu()).relu()
    wanted = projector.norm(projector.layer3(hidden).view(3, 16))
    torch.testing.assert_close(projector(x)[0, 3], wanted)


def test_edges_are_repeated(projector):
    x = features()
    padded = torch.cat([x[:, :1], x[:, :1], x], 1)
    torch.testing.assert_close(projector(x)[:, 0], projector(padded)[:, 2])


@pytest.mark.parametrize("pieces", [1, 4])
def test_chunks_equal_the_whole(projector, pieces):
    x = features()
    torch.testing.assert_close(streamed(projector, x, pieces), projector(x), atol=1e-6, rtol=1e-5)


def test_the_future_does_not_change_the_past(projector):
    x = features()
    before = projector(x, projector.init_state(2))
    x[:, 5:] += 1
    after = projector(x, projector.init_state(2))
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


def test_reset_equals_new_and_addresses_stay(projector):
    state = projector.init_state(2)
    address = state.past.data_ptr()
    streamed(projector, features(seed=1), 3, state)
    state.reset()
    assert state.past.data_ptr() == address
    torch.testing.assert_close(
        streamed(projector, features(), 3, state), projector(features()), atol=1e-6, rtol=1e-5
    )


def test_two_streams_do_not_mix(projector):
    both, one = features(), features()[:1]
    torch.testing.assert_close(
        streamed(projector, both, 2)[:1], streamed(projector, one, 2), atol=1e-6, rtol=1e-5
    )


def test_it_declares_its_look_ahead(projector):
    assert projector.lookahead_frames == 2


def test_a_wrong_shape_is_refused(projector):
    with pytest.raises(InputError, match=r"features must have shape \(B, T, 2, 8\)"):
        projector(torch.zeros(1, 4, 12, 768))


def test_a_shape_that_cannot_be_is_refused():
    assert replace(PROJECTOR, reach=0).reach == 0
    with pytest.raises(ConfigError, match="hidden"):
        replace(PROJECTOR, hidden=0)
