"""A small model of the published architecture: the real code, quick."""

from dataclasses import replace

import torch

from letstalk_rt.models.audio_encoder.projector import AudioProjectorConfig
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.kl_ae import KLAutoencoder
from letstalk_rt.paper.presets import PaperConfig, PaperPreset
from letstalk_rt.paper.training import PaperBatch
from support.small_model import stir

PROJECTOR = AudioProjectorConfig(
    reach=2, layers=2, feature_width=8, hidden=32, tokens=3, token_width=16
)
CONFIG = PaperConfig(
    channels=4,
    side=4,
    width=64,
    depth=2,
    heads=4,
    ffn_ratio=2.0,
    audio_tokens=3,
    audio_width=16,
    frames=4,
    memory=2,
)


def make_preset(**changes: object) -> PaperPreset:
    """Give the preset, with other values for some fields of its denoiser."""
    config = replace(CONFIG, **changes)
    autoencoder = KLAutoencoder if config.channels == KLAutoencoder.channels else DCAutoencoder
    return PaperPreset("small", config, PROJECTOR, 6, autoencoder)


def make_paper_model(seed: int = 0, **changes: object) -> PaperModel:
    """Make the model with random weights, none of them zero, in eval mode."""
    torch.manual_seed(seed)
    model = PaperModel(make_preset(**changes))
    stir(model)
    return model.eval().requires_grad_(False)


def make_batch(count: int = 2, seed: int = 0) -> PaperBatch:
    """Make items of noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    latent = CONFIG.latent_shape
    return PaperBatch(
        features=normal(CONFIG.frames, PROJECTOR.layers, PROJECTOR.feature_width),
        portrait=normal(*latent),
        clip=normal(CONFIG.frames, *latent),
        memory=normal(CONFIG.memory, *latent),
    )


def arguments(seed: int = 0) -> dict[str, torch.Tensor]:
    """Give what a denoiser is called with, by name."""
    batch = make_batch(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, CONFIG.frames, PROJECTOR.tokens, 16, generator=generator)
    return {
        "x": batch.clip,
        "t": torch.tensor([0.3, 0.8]),
        "tokens": tokens,
        "portrait": batch.portrait,
        "memory": batch.memory,
    }
