"""Trains the mouth painter: inpainting between the lips, on crops of clips and stills.

Another frame of the same clip takes the place of the portrait: its teeth, in another light, are an
input. After training, the painter inpaints the bank of teeth for portraits that show none.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.geometry.mouth_crop import lip_gap_px
from letstalk_rt.training.data.mouth_batches import MouthSource
from letstalk_rt.training.data.mouth_crops import MouthCrops
from letstalk_rt.training.distributed import is_main_process
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.mouth_painter_loss import (
    CRITIC_WEIGHT,
    DIFFERENCE_WEIGHTS,
    FEATURE_WEIGHT,
    MouthCritic,
    differences,
    inpaint,
    shown_teeth,
)
from letstalk_rt.training.stages.teeth_bank import fit_bank

CRITIC_START = 300
"""First step with a critic: before, mouths are grey, and it learns nothing from them."""

VALIDATION_EVERY = 12
"""One in this many recordings and stills is held out."""

SHEET_SIZE = (12, 3)
"""Columns and rows of mouths on a contact sheet."""


def train_mouth_painter(
    mouths: MouthCrops,
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
    painter: MouthPainterConfig,
    initial_weights: dict[str, Tensor] | None = None,
    critic_start: int = CRITIC_START,
    sheet_size: tuple[int, int] = SHEET_SIZE,
) -> MouthPainter:
    """Train the mouth painter; return its EMA copy, and write it, with its bank, to `model.pt`.

    Args:
        mouths: the crops of the train split.
        folder: the run's folder.
        config: schedule and intervals.
        batch_size: mouths per step.
        painter: shape of the network.
        initial_weights: weights to start from.
        critic_start: first step with a critic.
        sheet_size: columns and rows of the contact sheets of held-out mouths.
    """
    kept, validation = split_mouths(mouths)
    source = MouthSource(mouths, kept)
    model = MouthPainter(painter)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if initial_weights:
        model.load_state_dict(initial_weights)
    critic = MouthCritic(torch.device(config.device))
    run = Run(folder, model, config, extras={"critic": critic})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = source.draw(batch_size, run.generator).to(run.device)
        painted = inpaint(model, batch, shown_teeth(batch, run.generator))
        parts = differences(painted, batch)
        total = painted.new_zeros(())
        for name, value in parts.items():
            total = total + DIFFERENCE_WEIGHTS[name] * value
        figures = {name: float(value.detach()) for name, value in parts.items()}
        if step >= critic_start:
            with torch.autocast(run.device.type, torch.bfloat16):
                figures["critic"] = critic.learn(painted, batch)
                adversarial, features = critic.losses(painted, batch)
            total = total + CRITIC_WEIGHT * adversarial + FEATURE_WEIGHT * features
            figures["fooled"] = float(adversarial.detach())
            figures["features"] = float(features.detach())
        return total, figures

    validator = MouthValidator(mouths, validation, folder, sheet_size)
    trained = run.train(loss, lambda model, step: validator(model, step, run.device))
    assert isinstance(trained, MouthPainter)
    if is_main_process():
        fit_bank(trained.cpu(), mouths)
        torch.save(trained.state_dict(), folder / "model.pt")
    return trained


def split_mouths(mouths: MouthCrops) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and the held-out rows; no recording is in both."""
    held_out = mouths.source % VALIDATION_EVERY == VALIDATION_EVERY // 2
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class MouthValidator:
    """Evaluates a painter on held-out people and writes contact sheets.

    Args:
        mouths: the crops.
        rows: the held-out rows.
        folder: where contact sheets are written.
        sheet_size: columns and rows of mouths on a sheet.
    """

    def __init__(
        self, mouths: MouthCrops, rows: np.ndarray, folder: Path, sheet_size: tuple[int, int]
    ) -> None:
        self._folder, self._columns = folder, sheet_size[0]
        source = MouthSource(mouths, rows)
        generator = torch.Generator().manual_seed(5)
        weight = source.weight * (lip_gap_px(torch.from_numpy(mouths.points)) > 5)
        count = sheet_size[0] * sheet_size[1]
        picked = torch.multinomial(weight, count, False, generator=generator)
        self._batch = source.gather(picked, 0, generator, augment=False)
        self._others = self._batch.teeth.roll(sheet_size[0] + 1, 0)

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int, device: torch.device) -> dict[str, float]:
        """Return L1 and contrast inside mouths; also with teeth of others, and without sound."""
        assert isinstance(model, MouthPainter)
        batch = self._batch.to(device)
        figures, rows = {}, [batch.crops, batch.crops * (1 - batch.opening)]
        silence = torch.zeros_like(batch.sound)
        for name, teeth, sound in (
            ("own", batch.teeth, batch.sound),
            ("other", self._others.to(device), batch.sound),
            ("mute", batch.teeth, silence),
        ):
            painted = inpaint(model, batch, teeth, sound)
            rows.append(painted)
            figures[f"aside_l1_{name}"] = float(differences(painted, batch)["l1"])
            shown, true = (batch.comparable(crops) for crops in (painted, batch.crops))
            ratio = contrast(shown, batch.opening) / contrast(true, batch.opening)
            figures[f"aside_contrast_{name}"] = float(ratio.median())
        self._write_sheet(rows, self._folder / f"mouths-{step:06d}.png")
        return figures

    def _write_sheet(self, rows: list[Tensor], path: Path) -> None:
        stacked = torch.stack(rows, 1).cpu()  # (S, rows, 3, H, W)
        lines = [
            torch.cat([torch.cat(list(item), 1) for item in part], 2)
            for part in stacked.split(self._columns)
        ]
        pixels = ((torch.cat(lines, 1).permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).byte()
        Image.fromarray(pixels.numpy()).save(path)


def contrast(crops: Tensor, opening: Tensor) -> Tensor:
    """Return the standard deviation of brightness inside the openings, `(B,)`."""
    light = crops.mean(1, keepdim=True)
    count = opening.sum((1, 2, 3), keepdim=True).clamp(min=1)
    mean = (light * opening).sum((1, 2, 3), keepdim=True) / count
    variance = ((light - mean).square() * opening).sum((1, 2, 3), keepdim=True) / count
    return variance.sqrt().flatten().clamp(min=1e-3)
