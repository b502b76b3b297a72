"""Ablation of what LetsTalk does to the memory in training: noise and patch drop, on or off.

Each variant is trained on the same batches from the same initial weights, with the same noise
elsewhere, then generates whole held-out clips from their first frame, clip by clip from its own
memory. What the corruption is for shows as errors that do not grow along such a roll-out.

Source: LetsTalk, arXiv:2411.16748, its ablation of long videos.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.autoencoder.published import PublishedAutoencoder
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.items import PaperClip
from letstalk_rt.paper.presets import PaperPreset
from letstalk_rt.paper.training import (
    MemoryRegularization,
    PaperBatch,
    train_paper_model,
)
from letstalk_rt.training.evaluation.reconstruction import sharpness
from letstalk_rt.training.loop import LoopConfig

VARIANTS = {
    "noise and patch drop": MemoryRegularization(),
    "noise": MemoryRegularization(patch_drop=False),
    "patch drop": MemoryRegularization(noise=False),
    "neither": MemoryRegularization(noise=False, patch_drop=False),
}
"""Variants by name; the first is the published one."""

FIGURES = ("error", "error_first", "error_last", "motion", "sharpness_last")
CLIPS = 8
"""Held-out clips that are generated."""

LONGEST = 20
"""Clips of frames that a roll-out has at most."""


def train_variants(
    preset: PaperPreset,
    draw: Callable[[torch.Generator], PaperBatch],
    folder: Path,
    config: LoopConfig,
    seeds: range,
    prepare: Callable[[PaperModel], None],
) -> dict[tuple[str, int], PaperModel]:
    """Train every variant with every seed of the initial weights.

    Args:
        preset: Shapes.
        draw: Draws a batch with a random generator.
        folder: Folder of all runs; each is resumed if it was stopped.
        config: Schedule.
        seeds: Seeds of the initial weights.
        prepare: Called with each new model.

    Raises:
        ConfigError: The model has no memory, or there is no seed.
    """
    if preset.denoiser.memory == 0:
        raise ConfigError(
            f"preset {preset.name!r} has no memory, so noise and patch drop change nothing; choose "
            "one of the second version of the paper"
        )
    if not seeds:
        raise ConfigError("there must be at least 1 seed")
    trained = {}
    for seed in seeds:
        for name, regularization in VARIANTS.items():
            torch.manual_seed(seed)
            model = PaperModel(preset)
            prepare(model)
            run = folder / f"{name.replace(' ', '-')}-{seed}"
            trained[name, seed] = train_paper_model(
                model, draw, run, config, regularization=regularization
            )
    return trained


@torch.no_grad()
def measure_rollout(
    model: PaperModel,
    autoencoder: PublishedAutoencoder,
    clips: list[PaperClip],
    sampling_steps: int,
) -> dict[str, float]:
    """Generate held-out clips and compare their latents with the true ones.

    Args:
        model: The model, in eval mode.
        autoencoder: Decodes the last frame of each roll-out, on the same device.
        clips: Clips of people that were not trained on.
        sampling_steps: Steps of DDIM.

    Returns:
        `error`: mean squared difference to the true latents, whose variance is about 1;
        `error_first` and `error_last` the same of the first and the last clip of frames;
        `motion`: deviation over time over the true one; `sharpness_last`: sharpness of the last
        frame over the true frame's through the same autoencoder.

    Raises:
        InputError: No clip has two clips of frames.
    """
    frames = model.preset.denoiser.frames
    long_enough = [clip for clip in clips if len(clip.features) >= 2 * frames][:CLIPS]
    if not long_enough:
        raise InputError(f"no held-out clip has {2 * frames} frames; add longer clips")
    rows = []
    for number, clip in enumerate(long_enough):
        count = min(len(clip.features) // frames, LONGEST) * frames
        true = clip.latents[0, :count].float()
        made = _generate(model, clip, count, sampling_steps, seed=number)
        rows.append(_compare(made, true, frames) | _sharpness(autoencoder, made, true))
    return {name: statistics.mean(row[name] for row in rows) for name in FIGURES}


def _generate(
    model: PaperModel, clip: PaperClip, count: int, sampling_steps: int, seed: int
) -> Tensor:
    device = next(model.parameters()).device
    generated = model.generate(
        clip.features[None, :count].float().to(device),
        clip.latents[:1, 0].float().to(device),
        diffusion=Diffusion(sampling_steps),
        deterministic=True,
        generator=torch.Generator(device).manual_seed(seed),
    )
    return torch.cat(list(generated), 1)[0].cpu()


def _compare(made: Tensor, true: Tensor, frames: int) -> dict[str, float]:
    error = (made - true).square().mean((1, 2, 3))
    motion = made.std(0).mean() / true.std(0).mean().clamp(min=1e-6)
    return {
        "error": float(error.mean()),
        "error_first": float(error[:frames].mean()),
        "error_last": float(error[-frames:].mean()),
        "motion": float(motion),
    }


def _sharpness(autoencoder: PublishedAutoencoder, made: Tensor, true: Tensor) -> dict[str, float]:
    device = next(autoencoder.parameters()).device
    last = torch.stack([made[-1], true[-1]])[:, None].to(device)
    generated, real = sharpness(autoencoder.decode(last)[:, 0].cpu())
    return {"sharpness_last": float(generated / real.clamp(min=1e-6))}


def write_table(
    measured: dict[tuple[str, int], dict[str, float]], facts: dict[str, object], folder: Path
) -> str:
    """Write `table.json` and `table.md`, and return the latter.

    Args:
        measured: Figures by variant and seed.
        facts: What was trained, for the files.
        folder: Where the files are written.
    """
    rows = []
    for name in VARIANTS:
        of_variant = [figures for (variant, _), figures in measured.items() if variant == name]
        mean = {figure: statistics.mean(row[figure] for row in of_variant) for figure in FIGURES}
        rows.append({"variant": name, **mean})
    each = [{"variant": name, "seed": seed, **row} for (name, seed), row in measured.items()]
    lines = [
        f"| memory in training | {' | '.join(FIGURES)} |",
        f"|---|{'---:|' * len(FIGURES)}",
        *(
            f"| {row['variant']} | {' | '.join(f'{row[figure]:.4f}' for figure in FIGURES)} |"
            for row in rows
        ),
        "",
        "; ".join(f"{name}: {value}" for name, value in facts.items()),
        "",
    ]
    text = "\n".join(lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    document = facts | {"rows": rows, "each": each}
    (folder / "table.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return text
