"""Where the faithful and the streaming denoiser agree, given the same weights, and where not.

They agree within one block, at one timestep for portrait and picture, when the streaming model's
own additions are silent: audio in the modulation is zero and its learned places in time are those
of the faithful model. From the second block on they differ: the faithful portrait and memory have
by then read the picture.
"""

import pytest
import torch
from small_faithful import CONFIG, arguments, make_faithful

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.sharing import copy_to_streaming
from letstalk_rt.models.transformer import Denoiser, DenoiserConfig


def make_streaming(depth=1, **changes):
    values = {
        "channels": CONFIG.channels,
        "side": CONFIG.side,
        "width": CONFIG.width,
        "depth": depth,
        "ffn_ratio": CONFIG.ffn_ratio,
        "audio_tokens": CONFIG.audio_tokens,
        "audio_width": CONFIG.audio_width,
        "window": CONFIG.frames,
        "memory": CONFIG.memory,
        "time_head_width": CONFIG.width // CONFIG.heads,
    }
    torch.manual_seed(3)
    return Denoiser(DenoiserConfig(**(values | changes))).eval().requires_grad_(False)


def pair(depth):
    """Both denoisers with common weights, and the streaming one's own parts silent."""
    faithful, streaming = make_faithful(depth=depth).denoiser, make_streaming(depth)
    for parameter in faithful.embed_time.parameters():
        parameter.mul_(10)  # so that timesteps matter as much as in a trained model
    copy_to_streaming(faithful, streaming)
    for parameter in streaming.embed_audio.parameters():
        parameter.zero_()
    streaming.slots[1:] = faithful.frame_positions
    streaming.head.weight.copy_(faithful.head.weight[: CONFIG.channels])
    streaming.head.bias.copy_(faithful.head.bias[: CONFIG.channels])
    return faithful, streaming


def both_outputs(faithful, streaming, t=0.0):
    given = arguments()
    times = torch.full((2,), t)
    wanted = faithful(given["x"], times, given["tokens"], given["portrait"], given["memory"])
    unused_anchor = torch.zeros_like(given["memory"][:, :1])
    filled = torch.tensor([[False, True, True]]).expand(2, -1)
    found = streaming(
        given["x"],
        times[:, None].expand(-1, CONFIG.frames),
        given["tokens"],
        streaming.portrait_state(given["portrait"]),
        torch.cat([unused_anchor, given["memory"]], 1),
        filled,
    )
    return wanted[:, :, : CONFIG.channels], found


def test_one_block_agrees_at_the_portraits_timestep():
    wanted, found = both_outputs(*pair(1))
    assert wanted.std() > 0.05
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_at_another_timestep_the_portrait_is_seen_otherwise():
    wanted, found = both_outputs(*pair(1), t=0.9)
    assert not torch.allclose(found, wanted, atol=1e-3)


def test_from_the_second_block_on_they_differ():
    wanted, found = both_outputs(*pair(2))
    assert not torch.allclose(found, wanted, atol=1e-3)


def test_two_blocks_agree_when_nothing_but_the_picture_is_updated():
    """Without attention in space and time the second block finds the portrait as the first."""
    faithful, streaming = pair(2)
    for block in (*faithful.blocks, *streaming.blocks):
        weight, bias = block.modulation[1].weight, block.modulation[1].bias
        weight[2 * CONFIG.width : 3 * CONFIG.width] = 0  # gate of the attention in space
        bias[2 * CONFIG.width : 3 * CONFIG.width] = 0
        last = block.time.fc if hasattr(block.time, "fc") else block.time.out
        last.weight.zero_()
        last.bias.zero_()
    wanted, found = both_outputs(faithful, streaming, t=0.9)
    assert wanted.std() > 0.05
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 96}, "width differs: 64 .* 96"),
        ({"depth": 3}, "depth differs"),
        ({"time_head_width": 32}, "heads are 16 wide .* 32"),
    ],
)
def test_other_shapes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        copy_to_streaming(make_faithful(depth=1).denoiser, make_streaming(**changes))


def test_other_fusions_are_refused():
    faithful = make_faithful(depth=1, portrait_fusion="siamese").denoiser
    with pytest.raises(ConfigError, match="siamese and direct"):
        copy_to_streaming(faithful, make_streaming())
