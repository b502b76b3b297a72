"""Distils the mouth painter: a smaller one learns to inpaint what a trained one inpaints.

What is learnt is a function of the inputs: half of the mouths get the teeth of somebody else, as
portraits get teeth from the bank, and the student shall do with them what the teacher does. The
truth is a target of its own, at a smaller weight. A small network keeps to the mean where it cannot
follow, so a critic compares what it inpaints with true mouths, and its features with those of the
teacher's. Both painters compute the middle of crops alone where openings lie in it, as they will at
inference.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import (
    MouthPainter,
    MouthPainterConfig,
    is_inner,
)
from letstalk_rt.models.geometry.mouth_crop import FINE
from letstalk_rt.training.data.mouth_batches import MouthBatch, MouthSource
from letstalk_rt.training.data.mouth_crops import MouthCrops
from letstalk_rt.training.distributed import is_main_process
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.mouth_painter import (
    CRITIC_START,
    SHEET_SIZE,
    MouthValidator,
    split_mouths,
)
from letstalk_rt.training.stages.mouth_painter_loss import (
    CRITIC_WEIGHT,
    DIFFERENCE_WEIGHTS,
    FEATURE_WEIGHT,
    MouthCritic,
    differences,
    distance,
    shown_teeth,
)

BORROWED_SHARE = 0.5
"""Share of mouths that get the teeth of another mouth of the batch."""

TRUTH_WEIGHT = 0.1
"""Weight of the L1 distance from true mouths, beside the distances from the teacher's."""


def distill_mouth_painter(
    mouths: MouthCrops,
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
    teacher: MouthPainter,
    student: MouthPainterConfig,
    initial_weights: dict[str, Tensor] | None = None,
    critic_start: int = CRITIC_START,
    sheet_size: tuple[int, int] = SHEET_SIZE,
) -> MouthPainter:
    """Train a student; return its EMA copy, and write it, with the teacher's bank, to `model.pt`.

    Args:
        mouths: the crops of the train split.
        folder: the run's folder.
        config: schedule and intervals.
        batch_size: mouths per step.
        teacher: the trained painter; its bank has as many pictures as the student's.
        student: shape of the student.
        initial_weights: the student's to start from; None for those of the teacher's channels that
            matter most.
        critic_start: first step with a critic.
        sheet_size: columns and rows of the contact sheets of held-out mouths.
    """
    kept, validation = split_mouths(mouths)
    source = MouthSource(mouths, kept)
    model = pruned(teacher, student)
    if initial_weights:
        model.load_state_dict(initial_weights)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic = MouthCritic(torch.device(config.device))
    run = Run(folder, model, config, extras={"critic": critic})
    teacher.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.eval().requires_grad_(False)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = source.draw(batch_size, run.generator).to(run.device)
        teeth = borrowed(shown_teeth(batch, run.generator), batch.pairs, run.generator)
        with torch.no_grad():
            taught = with_mouths(batch, inpaint_fitted(teacher, batch, teeth))
        painted = inpaint_fitted(model, batch, teeth)
        parts, true = differences(painted, taught), distance(painted, batch)
        total = TRUTH_WEIGHT * true
        for name, value in parts.items():
            total = total + DIFFERENCE_WEIGHTS[name] * value
        figures = {name: float(value.detach()) for name, value in parts.items()}
        figures["true_l1"] = float(true.detach())
        if step >= critic_start:
            with torch.autocast(run.device.type, torch.bfloat16):
                figures["critic"] = critic.learn(painted, batch)
                adversarial, features = critic.losses(painted, replace(batch, crops=taught.crops))
            total = total + CRITIC_WEIGHT * adversarial + FEATURE_WEIGHT * features
            figures["fooled"] = float(adversarial.detach())
        return total, figures

    validator = MouthValidator(mouths, validation, folder, sheet_size)
    trained = run.train(loss, lambda model, step: validator(model, step, run.device))
    assert isinstance(trained, MouthPainter)
    if is_main_process():
        torch.save(trained.cpu().state_dict(), folder / "model.pt")
    return trained


def borrowed(teeth: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """Return teeth `(B, 4, 160, 224)` of which some went to other mouths; a pair has the same."""
    count = len(teeth) - pairs
    order = torch.arange(count)
    moved = (torch.rand(count, generator=generator) < BORROWED_SHARE).nonzero()[:, 0]
    order[moved] = moved.roll(1)
    return teeth[torch.cat([order, order[:pairs]])]


def with_mouths(batch: MouthBatch, painted: Tensor) -> MouthBatch:
    """Return a batch whose true mouths are painted ones, which have all their details."""
    return replace(batch, crops=painted, is_still=torch.ones_like(batch.is_still))


def inpaint_fitted(model: MouthPainter, batch: MouthBatch, teeth: Tensor) -> Tensor:
    """Return the crops with their openings inpainted, as at inference: `(B, 3, 160, 224)`."""
    crops, opening = (F.avg_pool2d(part, FINE) for part in (batch.crops, batch.opening))
    fits = is_inner(opening)
    inside = torch.zeros_like(batch.crops)
    with torch.autocast(batch.crops.device.type, torch.bfloat16):
        inputs = (crops, opening, batch.points, model.encode_teeth(teeth), batch.sound)
        for inner in (True, False):
            here = (fits == inner).nonzero()[:, 0]
            if len(here):
                made = model(*(value[here] for value in inputs), inner=inner)
                inside = inside.index_copy(0, here, made)
    return torch.lerp(batch.crops, inside, batch.opening)


@torch.no_grad()
def pruned(teacher: MouthPainter, config: MouthPainterConfig) -> MouthPainter:
    """Return a student with those of the teacher's channels that matter most to what comes next."""
    student = MouthPainter(config)
    fine, middle, coarse = (
        _most_used(layer.weight, keep)
        for layer, keep in zip((teacher.head, teacher.up2, teacher.up1), config.widths, strict=True)
    )
    shuffled = {"up1": _shuffled(middle), "up2": _shuffled(fine)}
    both = torch.cat([coarse, middle + teacher.config.widths[2]])
    made_by = {"stem": fine, "fine_in": fine, "fine_out": fine, "down1": middle, "down2": coarse}
    made_by |= {"middle_in": middle, "middle_out": middle, "coarse": coarse, "style.2": both}
    made_by |= shuffled
    taken_by = {"fine_in": fine, "fine_out": fine, "head": fine, "down1": fine, "up2": middle}
    taken_by |= {"middle_in": middle, "middle_out": middle, "down2": middle}
    taken_by |= {"up1": coarse, "coarse": coarse}
    state = teacher.state_dict()
    for name, value in student.state_dict().items():
        part, found = _part(name, made_by), state[name]
        if part:
            found = found[made_by[part]]
        part = _part(name, taken_by)
        if part and found.ndim == 4:
            found = found[:, taken_by[part]]
        value.copy_(found)
    return student


def _part(name: str, parts: dict[str, Tensor]) -> str | None:
    return next((part for part in parts if name.startswith(f"{part}.")), None)


def _most_used(weight: Tensor, keep: int) -> Tensor:
    """Return the inputs of a convolution with the largest weights, in order."""
    return weight.square().sum((0, 2, 3)).topk(keep).indices.sort().values


def _shuffled(channels: Tensor) -> Tensor:
    """Return the channels that a pixel shuffle turns into these."""
    return (4 * channels[:, None] + torch.arange(4)).flatten()
