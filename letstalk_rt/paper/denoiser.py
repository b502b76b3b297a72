"""The denoiser as published by LetsTalk, for comparison with the streaming one.

A clip of 16 latents is denoised together, all at one timestep, with 2 latents of memory. Each
block: bidirectional softmax attention over memory and clip in time; fusion of speech; linear
attention within each frame, with fusion of the portrait; a gated convolutional FFN; adaLN-Zero from
the timestep alone. `fusion` has the fusion schemes; Symbiotic and Direct are the published ones.
`spatial` has what the first version of the paper does within frames instead.

Parameters of the published model, width d, L blocks, 32 latent channels, audio tokens of 768:

    spatial attention     qkv 3 d^2, out d^2 + d                                  4 d^2 +  1 d
    FFN                   8 d^2 + 8 d, depthwise 9 x 8 d + 8 d, 4 d^2            12 d^2 + 88 d
    adaLN-Zero            6 d^2 + 6 d                                             6 d^2 +  6 d
    attention over time   norm 2 d, qkv 3 d^2 + 3 d, out d^2 + d, fc d^2 + d      5 d^2 +  7 d
    attention to speech   q d^2, keys and values 2 x 768 d, out d^2 + d           2 d^2 + 1537 d
    a block                                                                      29 d^2 + 1639 d
    outside the blocks    embedding 33 d, time 256 d + d + d^2 + d,
                          last adaLN 2 d^2 + 2 d, head 64 d + 64             3 d^2 + 357 d + 64

    total                                       L (29 d^2 + 1639 d) + 3 d^2 + 357 d + 64

    s    L 12  d   384        59,446,720        59.4 M
    b    L 12  d   768       222,407,488       222.4 M
    l    L 24  d 1,024       773,600,320       773.6 M
    xl   L 28  d 1,152     1,134,868,672     1,134.9 M

The first version of the paper has softmax attention within frames, an MLP in place of the
convolutional FFN, no memory, 4 latent channels, and patches of p x p latent positions as tokens:

    spatial attention     qkv 3 d^2 + 3 d, out d^2 + d                            4 d^2 +  4 d
    FFN                   4 d^2 + 4 d, 4 d^2 + d                                  8 d^2 +  5 d
    a block                                                                      25 d^2 + 1559 d
    outside the blocks    embedding (4 p^2 + 1) d, head 8 p^2 (d + 1)
    total                 L (25 d^2 + 1559 d) + 3 d^2 + (261 + 12 p^2) d + 8 p^2

Position embeddings are fixed and not counted. Faults of the public code are corrected: the audio
projector is trained and averaged with the denoiser; guidance applies to the noise half of all
channels, with portrait and memory kept; the memory of the first clip is the portrait, never the
true video; and each clip is yielded as soon as it is sampled.

Source: LetsTalk, arXiv:2411.16748, and its public code at 26660f1 (sizes of `Litecatlong` and, for
the first version, `VDTcat`).
"""

import math
from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.audio_encoder.projector import AudioProjector
from letstalk_rt.models.layers.attention import TimeEmbedding, grid_positions, modulate
from letstalk_rt.models.layers.checks import check_tensor
from letstalk_rt.paper.block import PaperBlock
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.fusion import Fusion, plain_norm
from letstalk_rt.paper.presets import PaperConfig, PaperPreset


class PaperDenoiser(nn.Module):
    """A transformer that predicts the noise and the variance of a clip of latents.

    Args:
        config: shape.

    Attributes:
        recompute: whether training keeps only each block's input, to save memory.
    """

    positions: Tensor
    frame_positions: Tensor

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        width = config.width
        self.embed = nn.Linear(config.channels * config.patch**2, width)
        # The published embeddings have columns before rows.
        positions = grid_positions(config.grid, width).roll(width // 2, -1)
        self.register_buffer("positions", positions, persistent=False)
        frame_positions = line_positions(config.memory + config.frames, width)
        self.register_buffer("frame_positions", frame_positions, persistent=False)
        self.embed_time = TimeEmbedding(width)
        self.embed_audio: nn.Module = nn.Identity()
        if config.audio_fusion is Fusion.SYMBIOTIC:
            self.embed_audio = nn.Linear(config.audio_width, width)
        self.blocks = nn.ModuleList(PaperBlock(config) for _ in range(config.depth))
        self.norm = plain_norm(width)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, 2 * config.channels * config.patch**2)
        self._initialize()

    def _initialize(self) -> None:
        """Initialise as published: Xavier uniform, with modulations and head at zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if "modulation" in name or name == "head":
                    nn.init.zeros_(module.weight)
                if name.startswith("embed_time"):
                    nn.init.normal_(module.weight, std=0.02)

    def forward(
        self, x: Tensor, t: Tensor, tokens: Tensor, portrait: Tensor, memory: Tensor
    ) -> Tensor:
        """Predict the noise that was added to a clip.

        Args:
            x: the noisy clip `(B, T, C, h, w)`, whose clean latents have unit variance.
            t: its timestep `(B,)` in [0, 1]; 1 is noise. Step `s` of 1000 is `s / 1000`.
            tokens: audio tokens `(B, T, K, A)`.
            portrait: portrait latent `(B, C, h, w)`.
            memory: clean latents before the clip, `(B, f, C, h, w)`, oldest first; `f` is 0 in the
                first version of the paper.

        Returns:
            `(B, T, 2 C, h, w)`: noise, then the variance in the form that `Diffusion.predict`
            expects; in the number format of the weights.

        Raises:
            InputError: a tensor has the wrong shape or type.
        """
        self.check(x, t, tokens, portrait, memory)
        both = self._embed(torch.cat([memory, x], 1)) + self.frame_positions[:, None]
        portrait_tokens = self._embed(portrait[:, None])
        if self.config.portrait_fusion is Fusion.SYMBIOTIC:
            portrait_tokens = portrait_tokens.expand(-1, x.shape[1], -1, -1)
        audio, c = self.embed_audio(tokens.to(both.dtype)), self.embed_time(t)[:, None]
        slots = self.config.memory
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                both, portrait_tokens, audio = checkpoint(
                    block, both, slots, c, portrait_tokens, audio, use_reentrant=False
                )
            else:
                both, portrait_tokens, audio = block(both, slots, c, portrait_tokens, audio)
        shift, scale = self.final_modulation(c).chunk(2, -1)
        out = self.head(modulate(self.norm(both[:, slots:]), shift, scale))
        grid, patch = self.config.grid, self.config.patch
        predicted: Tensor = rearrange(
            out, "b t (y x) (p q c) -> b t c (y p) (x q)", y=grid, p=patch, q=patch
        )
        return predicted

    def _embed(self, latents: Tensor) -> Tensor:
        patch = self.config.patch
        latents = latents.to(self.embed.weight.dtype)
        tokens = rearrange(latents, "b t c (y p) (x q) -> b t (y x) (c p q)", p=patch, q=patch)
        embedded: Tensor = self.embed(tokens) + self.positions
        return embedded

    def check(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        portrait: Tensor,
        memory: Tensor,
        *,
        finite: bool = False,
    ) -> None:
        """Check the arguments of `forward`; with `finite`, also their values.

        Raises:
            InputError: a tensor has the wrong shape or type, or is not finite.
        """
        config = self.config
        latent, batch = config.latent_shape, len(x)
        check_tensor("x", x, ("B", config.frames, *latent), finite=finite)
        check_tensor("t", t, (batch,), finite=finite)
        audio = (batch, config.frames, config.audio_tokens, config.audio_width)
        check_tensor("tokens", tokens, audio, finite=finite)
        check_tensor("portrait", portrait, (batch, *latent), finite=finite)
        check_tensor("memory", memory, (batch, config.memory, *latent), finite=finite)


def guided_prediction(
    denoiser: PaperDenoiser,
    x: Tensor,
    t: Tensor,
    tokens: Tensor,
    portrait: Tensor,
    memory: Tensor,
    guidance: float,
) -> Tensor:
    """Predict noise with classifier-free guidance on the speech.

    The denoiser is called once with the items as they are if `guidance` is 1, else once with twice
    the items, the second half with zeros for speech, as in training. The variance is that of the
    first half.

    Source: classifier-free guidance, arXiv:2207.12598.
    """
    if guidance == 1:
        predicted: Tensor = denoiser(x, t, tokens, portrait, memory)
        return predicted
    doubled = [torch.cat([part, part]) for part in (x, t, portrait, memory)]
    speech = torch.cat([tokens, torch.zeros_like(tokens)])
    conditional, unconditional = denoiser(doubled[0], doubled[1], speech, *doubled[2:]).chunk(2)
    noise, variance = conditional.chunk(2, 2)
    base = unconditional.chunk(2, 2)[0]
    return torch.cat([base + guidance * (noise - base), variance], 2)


class PaperModel(nn.Module):
    """Denoiser and audio projector, which are trained, averaged and stored together.

    Args:
        preset: shapes of both.

    Raises:
        ConfigError: the shapes of the projector's and the denoiser's audio tokens differ.
    """

    def __init__(self, preset: PaperPreset) -> None:
        super().__init__()
        projected = preset.projector.tokens, preset.projector.token_width
        expected = preset.denoiser.audio_tokens, preset.denoiser.audio_width
        if projected != expected:
            raise ConfigError(
                f"the audio projector has tokens of {projected}, the denoiser expects {expected}"
            )
        self.preset = preset
        self.denoiser = PaperDenoiser(preset.denoiser)
        self.projector = AudioProjector(preset.projector)

    @torch.no_grad()
    def generate(
        self,
        features: Tensor,
        portrait: Tensor,
        *,
        diffusion: Diffusion | None = None,
        deterministic: bool = False,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Sample a long video clip by clip, and yield each clip as soon as it is sampled.

        The memory of the first clip is the portrait, that of the others the clip before.

        Args:
            features: speech features `(B, T, layers, width)`; `T` a multiple of a clip's frames.
            portrait: portrait latents `(B, C, h, w)`, unit variance.
            diffusion: the diffusion process with its steps; the published 250 steps when None.
            deterministic: sample by DDIM instead of the published DDPM.
            guidance: weight of the speech against no speech; 1 as published.
            generator: random number generator, on the model's device.

        Yields:
            Latents `(B, frames, C, h, w)`.

        Raises:
            InputError: an input has the wrong shape or type, is not finite, or its length is not a
                multiple of a clip's frames.
        """
        config = self.preset.denoiser
        frames = config.frames
        if features.ndim != 4 or features.shape[1] % frames or not features.shape[1]:
            raise InputError(
                f"features must be (B, T, layers, width) with T a multiple of {frames}, "
                f"got {tuple(features.shape)}; repeat the last frame to fill the clip"
            )
        diffusion = diffusion or Diffusion(self.preset.steps)
        sampler = diffusion.ddim if deterministic else diffusion.ddpm
        memory = first_memory(portrait, config.memory)
        for tokens in self.projector(features).split(frames, 1):
            size = (len(features), frames, *config.latent_shape)
            noise = torch.randn(size, generator=generator, device=features.device)
            at = noise.new_zeros(len(noise))
            self.denoiser.check(noise, at, tokens, portrait, memory, finite=True)

            def predict(
                x: Tensor, t: Tensor, tokens: Tensor = tokens, memory: Tensor = memory
            ) -> Tensor:
                return guided_prediction(self.denoiser, x, t, tokens, portrait, memory, guidance)

            clip = sampler(predict, noise, generator)
            memory = clip[:, frames - config.memory :]
            yield clip


def first_memory(portrait: Tensor, slots: int) -> Tensor:
    """Return the memory of a first clip: the portrait `(B, C, h, w)`, repeated `slots` times."""
    return portrait[:, None].expand(-1, slots, -1, -1, -1)


def line_positions(count: int, width: int) -> Tensor:
    """Return fixed 1-D sine-cosine embeddings of positions, `(count, width)`."""
    steps = torch.arange(width // 2) / (width // 2)
    angles = torch.arange(count)[:, None] * torch.exp(-math.log(10_000) * steps)
    return torch.cat([angles.sin(), angles.cos()], -1)


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
