"""Renders LetsTalk as published: a whole utterance, clip by clip, by DDPM or DDIM.

It is not live: 250 denoiser calls per clip of 16 frames, and the speech features of a frame depend
on the whole utterance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.devices import choose_device
from letstalk_rt.inference.protocol import check_seed
from letstalk_rt.models.autoencoder.published import PublishedAutoencoder
from letstalk_rt.paper import FAITHFUL
from letstalk_rt.paper.checkpoints import (
    check_companions,
    load_paper_model,
    trained_without_speech,
)
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.presets import get_paper_preset
from letstalk_rt.paper.wav2vec_whole import WholeWav2Vec2
from letstalk_rt.types import SAMPLES_PER_FRAME


@dataclass(frozen=True)
class FaithfulSampling:
    """How the published model is sampled.

    Attributes:
        steps: Denoiser calls per clip; None for the published 250.
        deterministic: DDIM instead of the published DDPM.
        guidance: Weight of the speech against no speech; 1 as published.
        seed: Seed of all noise.
    """

    steps: int | None = None
    deterministic: bool = False
    guidance: float = 1.0
    seed: int = 0


class FaithfulRenderer:
    """The published model with its autoencoder and speech model, for whole utterances.

    Args:
        model: Denoiser and projector.
        autoencoder: The autoencoder of the model's preset.
        speech: wav2vec 2.0.
        drop_speech: The share of items that the model was trained on without speech; guidance is
            refused if it is 0.
    """

    def __init__(
        self,
        model: PaperModel,
        autoencoder: PublishedAutoencoder,
        speech: WholeWav2Vec2,
        drop_speech: float = 0.0,
    ) -> None:
        self.model, self.autoencoder, self.speech = model.eval(), autoencoder, speech
        self._drop_speech = drop_speech
        self._device = next(model.parameters()).device

    @classmethod
    def load(
        cls, preset: str, weights: Path, autoencoder: str, wav2vec: str, device: str = "auto"
    ) -> "FaithfulRenderer":
        """Load all three.

        Args:
            preset: Such as `faithful-s`, or `faithful-v1-s-2` for the paper's first version.
            weights: File that `letstalk train faithful` wrote.
            autoencoder: Folder or hub id of DC-AE f32c32; for the first version, of SD-VAE.
            wav2vec: Folder or hub id of wav2vec2-base.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            ConfigError: The preset is unknown.
            WeightsError: A file is missing, damaged or of another model, or the weights were
                trained with another autoencoder or speech model.
            DependencyError: The extra `paper` is not installed.
        """
        where = choose_device(device)
        shapes = get_paper_preset(preset.removeprefix(FAITHFUL))
        model = load_paper_model(shapes, weights).to(where)
        vae = shapes.autoencoder.load(autoencoder, shapes.image_size)
        speech = WholeWav2Vec2.load(wav2vec)
        check_companions(weights, vae, speech)
        return cls(model, vae.to(where), speech.to(where), trained_without_speech(weights))

    @property
    def image_size(self) -> int:
        """Height and width of the frames, in pixels."""
        return self.autoencoder.image_size

    @torch.no_grad()
    def render(
        self, portrait: np.ndarray, pcm: np.ndarray, sampling: FaithfulSampling
    ) -> Iterator[np.ndarray]:
        """Yield the frames of an utterance, as each clip is sampled.

        Args:
            portrait: Face crop `(S, S, 3)` uint8, of `image_size`.
            pcm: `(n,)` float32 at 16 kHz; the last frame is filled with silence.
            sampling: How to sample.

        Yields:
            `(S, S, 3)` uint8.

        Raises:
            ConfigError: A setting is out of range, or guidance is asked of a model that was never
                trained without speech.
            InputError: The audio is empty.
        """
        check_seed(sampling.seed)
        self._check_guidance(sampling.guidance)
        count = -(-len(pcm) // SAMPLES_PER_FRAME)
        sound = torch.from_numpy(np.pad(pcm, (0, count * SAMPLES_PER_FRAME - len(pcm))))
        features = self.speech(sound[None].float().to(self._device))
        fill = -count % self.model.preset.denoiser.frames  # the last frame fills the last clip
        features = torch.cat([features, features[:, -1:].expand(-1, fill, -1, -1)], 1)
        image = torch.from_numpy(portrait.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        latent = self.autoencoder.encode_portrait(image.to(self._device)).latent
        clips = self.model.generate(
            features,
            latent,
            diffusion=Diffusion(sampling.steps or self.model.preset.steps),
            deterministic=sampling.deterministic,
            guidance=sampling.guidance,
            generator=torch.Generator(self._device).manual_seed(sampling.seed),
        )
        shown = 0
        for clip in clips:
            for frame in self.autoencoder.decode(clip)[0][: count - shown]:
                shown += 1
                pixels = ((frame.float().clamp(-1, 1) + 1) * 127.5).round().byte()
                yield pixels.permute(1, 2, 0).cpu().numpy()

    def _check_guidance(self, guidance: float) -> None:
        if guidance < 0:
            raise ConfigError(f"guidance must not be negative, got {guidance}")
        if guidance != 1 and self._drop_speech == 0:
            raise ConfigError(
                f"guidance {guidance} compares with a prediction without speech, which this model "
                "never learnt; use guidance 1, or train it with --drop-speech 0.1"
            )
