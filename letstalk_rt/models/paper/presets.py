"""Shapes of the model as published, in its four sizes; `paper.denoiser` derives their counts."""

from dataclasses import dataclass

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.audio_encoder.projector import PUBLISHED_PROJECTOR, AudioProjectorConfig
from letstalk_rt.models.paper.diffusion import PUBLISHED_STEPS
from letstalk_rt.models.paper.fusion import Fusion

LINEAR_HEAD_WIDTH = 32

FAITHFUL = "faithful-"
"""What the names of these presets begin with on the command line, to tell them from streaming."""


@dataclass(frozen=True)
class PaperConfig:
    """Shape of a `PaperDenoiser`.

    Attributes:
        channels: channels of a latent.
        side: height and width of a latent.
        width: width of the hidden states.
        depth: number of blocks.
        heads: heads of the softmax attentions.
        ffn_ratio: inner width of the FFN over `width`.
        audio_tokens: audio tokens per frame.
        audio_width: width of an audio token.
        frames: frames of a clip.
        memory: latents of the previous clip that are the memory.
        portrait_fusion: fusion scheme of the portrait.
        audio_fusion: fusion scheme of the speech.
    """

    channels: int
    side: int
    width: int
    depth: int
    heads: int
    ffn_ratio: float
    audio_tokens: int
    audio_width: int
    frames: int
    memory: int
    portrait_fusion: Fusion = Fusion.SYMBIOTIC
    audio_fusion: Fusion = Fusion.DIRECT

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str) and value <= 0:
                raise ConfigError(f"{name} of the denoiser must be positive, got {value}")
        if self.width % LINEAR_HEAD_WIDTH or self.width % self.heads:
            raise ConfigError(
                f"width {self.width} must be a multiple of 32 and of {self.heads} heads"
            )
        for name in ("portrait_fusion", "audio_fusion"):
            object.__setattr__(self, name, Fusion.parse(getattr(self, name)))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape `(C, h, w)` of one frame's latent."""
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class PaperPreset:
    """The shapes of a denoiser and its audio projector, and the number of sampling steps."""

    name: str
    denoiser: PaperConfig
    projector: AudioProjectorConfig
    steps: int = PUBLISHED_STEPS


def _published(name: str, depth: int, width: int, heads: int) -> PaperPreset:
    projector = PUBLISHED_PROJECTOR
    config = PaperConfig(
        channels=32,
        side=16,
        width=width,
        depth=depth,
        heads=heads,
        ffn_ratio=4.0,
        audio_tokens=projector.tokens,
        audio_width=projector.token_width,
        frames=16,
        memory=2,
    )
    return PaperPreset(name, config, projector)


PAPER_PRESETS = {
    preset.name: preset
    for preset in (
        _published("s", 12, 384, 6),
        _published("b", 12, 768, 12),
        _published("l", 24, 1024, 16),
        _published("xl", 28, 1152, 16),
    )
}


def get_paper_preset(name: str) -> PaperPreset:
    """Return the preset of a published size.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PAPER_PRESETS:
        known = ", ".join(PAPER_PRESETS)
        raise ConfigError(
            f"the published model has no preset {name!r}; known: {known} "
            "(streaming presets are in letstalk_rt.models.presets)"
        )
    return PAPER_PRESETS[name]
