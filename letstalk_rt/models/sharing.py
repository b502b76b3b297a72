"""Weights of a faithful denoiser given to a streaming one: the part of both that is the same.

Within one block both compute the same from the same weights, given the same tokens and the same
timestep for picture and portrait: attention in time (the faithful one's two last linear maps are
one here), attention to speech, linear attention of the picture to picture and portrait, FFN and
modulation. What differs lies between blocks: the faithful portrait and memory have read the
picture when the next block comes, the streaming ones never do. So one block agrees, more do not,
and a streaming model that begins with these weights has to be trained on.

The streaming model keeps its own: places in time, audio in the modulation, and the head, which
predicts a velocity instead of noise.
"""

import torch
from torch import nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.faithful import ClipAttention, FaithfulBlock, FaithfulDenoiser
from letstalk_rt.models.fusion import CrossAttention, DirectFusion, Fusion
from letstalk_rt.models.layers import AudioAttention, MemoryAttention
from letstalk_rt.models.transformer import Block, Denoiser

_SAME = ("channels", "side", "width", "depth", "ffn_ratio", "audio_tokens", "audio_width")


@torch.no_grad()
def copy_to_streaming(faithful: FaithfulDenoiser, streaming: Denoiser) -> None:
    """Write into a streaming denoiser all that it shares with a faithful one.

    Raises:
        ConfigError: their shapes or fusions differ.
    """
    _check(faithful, streaming)
    _copy(faithful.embed, streaming.embed)
    _copy(faithful.embed, streaming.embed_portrait)
    _copy(faithful.embed_time, streaming.embed_time)
    _copy(faithful.final_modulation, streaming.final_modulation)
    for source, target in zip(faithful.blocks, streaming.blocks, strict=True):
        assert isinstance(source, FaithfulBlock) and isinstance(target, Block)
        copy_block(source, target)


@torch.no_grad()
def copy_block(source: FaithfulBlock, target: Block) -> None:
    """Write one faithful block, with published fusions, into a streaming one of its shape."""
    assert isinstance(source.audio, DirectFusion) and source.portrait.joins
    _copy_time(source.time, target.time)
    _copy_speech(source.audio.read, target.audio)
    for name in ("space", "ffn", "modulation"):
        _copy(getattr(source, name), getattr(target, name))


def _check(faithful: FaithfulDenoiser, streaming: Denoiser) -> None:
    ours, theirs = faithful.config, streaming.config
    for name in _SAME:
        if getattr(ours, name) != getattr(theirs, name):
            raise ConfigError(
                f"{name} differs: {getattr(ours, name)} in the faithful denoiser, "
                f"{getattr(theirs, name)} in the streaming one"
            )
    if ours.width // ours.heads != theirs.time_head_width:
        raise ConfigError(
            f"heads are {ours.width // ours.heads} wide in the faithful denoiser, "
            f"{theirs.time_head_width} in the streaming one"
        )
    if (ours.portrait_fusion, ours.audio_fusion) != (Fusion.SYMBIOTIC, Fusion.DIRECT):
        raise ConfigError(
            "the streaming denoiser has Symbiotic portrait and Direct audio fusion; the faithful "
            f"one {ours.portrait_fusion} and {ours.audio_fusion}"
        )


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def _copy_time(source: ClipAttention, target: MemoryAttention) -> None:
    _copy(source.norm, target.norm)
    _copy(source.qkv, target.qkv)
    target.out.weight.copy_(source.fc.weight @ source.out.weight)
    target.out.bias.copy_(source.fc.weight @ source.out.bias + source.fc.bias)


def _copy_speech(source: CrossAttention, target: AudioAttention) -> None:
    nn.init.ones_(target.norm.weight)
    for bias in (target.norm.bias, target.q.bias, target.kv.bias):
        nn.init.zeros_(bias)
    target.q.weight.copy_(source.q.weight)
    target.kv.weight.copy_(source.kv.weight)
    _copy(source.out, target.out)
