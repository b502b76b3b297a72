"""Shapes of the model as published, in its four sizes; `denoiser` derives their counts.

`s`, `b`, `l` and `xl` are those of the paper since its second version. `v1-s-2` to `v1-xl-8` are
those of its first version, with patches of 2, 4 or 8 latent positions.
"""

from dataclasses import dataclass, replace

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.audio_encoder.projector import PUBLISHED_PROJECTOR, AudioProjectorConfig
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.autoencoder.published import PublishedAutoencoder
from letstalk_rt.paper.diffusion import PUBLISHED_STEPS
from letstalk_rt.paper.fusion import Fusion
from letstalk_rt.paper.kl_ae import KLAutoencoder
from letstalk_rt.paper.spatial import LINEAR_HEAD_WIDTH, Attention


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
        memory: latents of the previous clip that are the memory; 0 for none.
        portrait_fusion: fusion scheme of the portrait.
        audio_fusion: fusion scheme of the speech.
        patch: height and width, in latent positions, of what one token stands for.
        attention: kind of the attention and the FFN within frames.
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
    patch: int = 1
    attention: Attention = Attention.LINEAR

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str) and value <= 0 and (name, value) != ("memory", 0):
                raise ConfigError(f"{name} of the denoiser must be positive, got {value}")
        for name in ("portrait_fusion", "audio_fusion"):
            object.__setattr__(self, name, Fusion.parse(getattr(self, name)))
        object.__setattr__(self, "attention", Attention.parse(self.attention))
        self._check_sizes()

    def _check_sizes(self) -> None:
        linear = self.attention is Attention.LINEAR
        head_width = LINEAR_HEAD_WIDTH if linear else 4  # positions take sines for two axes
        if self.width % head_width or self.width % self.heads:
            raise ConfigError(
                f"width {self.width} must be a multiple of {head_width} and of {self.heads} heads"
            )
        if self.side % self.patch:
            raise ConfigError(
                f"patches of {self.patch} do not tile latents of {self.side}x{self.side}; choose "
                f"a patch that divides {self.side}"
            )

    @property
    def grid(self) -> int:
        """Tokens of a frame along each axis."""
        return self.side // self.patch

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape `(C, h, w)` of one frame's latent."""
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class PaperPreset:
    """The shapes of a denoiser and its audio projector, and what it is sampled with.

    Attributes:
        name: name of the preset.
        denoiser: shape of the denoiser.
        projector: shape of the audio projector.
        steps: sampling steps.
        autoencoder: the autoencoder whose latents are denoised.

    Raises:
        ConfigError: the autoencoder's latents have other channels than the denoiser's.
    """

    name: str
    denoiser: PaperConfig
    projector: AudioProjectorConfig
    steps: int = PUBLISHED_STEPS
    autoencoder: type[PublishedAutoencoder] = DCAutoencoder

    def __post_init__(self) -> None:
        if self.denoiser.channels != self.autoencoder.channels:
            raise ConfigError(
                f"the denoiser of preset {self.name!r} has {self.denoiser.channels} channels, "
                f"latents of {self.autoencoder.title} have {self.autoencoder.channels}"
            )

    @property
    def image_size(self) -> int:
        """Height and width of the frames, in pixels."""
        return self.denoiser.side * self.autoencoder.compression


SIZES = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}
"""Blocks, width and heads of each size, the same in both versions."""

PATCHES = (2, 4, 8)
"""Patches of the first version."""


def _published(size: str) -> PaperPreset:
    depth, width, heads = SIZES[size]
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
    return PaperPreset(size, config, projector)


def first_version(preset: PaperPreset, patch: int) -> PaperPreset:
    """Return a preset in the form of the paper's first version.

    It has softmax attention and an MLP within frames, no memory, and the latents of 256 px that
    Stable Diffusion's autoencoder makes.

    Args:
        preset: gives blocks, width and heads.
        patch: height and width of a patch, in latent positions.
    """
    config = replace(
        preset.denoiser,
        channels=KLAutoencoder.channels,
        side=256 // KLAutoencoder.compression,
        memory=0,
        patch=patch,
        attention=Attention.SOFTMAX,
    )
    name = f"v1-{preset.name}-{patch}"
    return replace(preset, name=name, denoiser=config, autoencoder=KLAutoencoder)


_SECOND = [_published(size) for size in SIZES]
_FIRST = [first_version(preset, patch) for preset in _SECOND for patch in PATCHES]
PAPER_PRESETS = {preset.name: preset for preset in (*_SECOND, *_FIRST)}


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
