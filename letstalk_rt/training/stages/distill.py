"""Makes a trained flow quick: guidance, and where they can the steps, go into the denoiser itself.

The teacher is the flow as it was trained. The student starts from it and learns

- what the teacher says with guidance, so that one call does what took a batch twice as large. The
  weight is folded in, or, where the denoiser takes one, is an input drawn anew for each item;
- where the denoiser takes a second time, mean velocities (MeanFlow): a few steps then do what took
  many;
- to go on from its own output: in most items, memory holds what the student has just made in a
  roll-out of a few windows, while the teacher is shown what was recorded. Recordings of the same
  sound anchor it: errors of earlier windows are to be undone, not carried on.

Source: guidance distillation, arXiv:2210.03142; MeanFlow, arXiv:2505.13447; roll-outs with ground
truth as in arXiv:2506.08009, without its second network.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from letstalk_rt.errors import InputError
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.denoiser import Denoiser, PortraitState
from letstalk_rt.models.memory import MemoryBank, TemporalCache, regularize_memory
from letstalk_rt.models.sampler import timesteps
from letstalk_rt.training.data.audio_features import augment_mel, mel_encoder
from letstalk_rt.training.data.tracks import Track
from letstalk_rt.training.data.windows import Batch, FlowLossConfig, WindowSource
from letstalk_rt.training.evaluation.rollout import evaluate_flow, score
from letstalk_rt.training.loop import LoopConfig, Run


@dataclass(frozen=True)
class DistillLossConfig:
    """Weights of the parts of the loss, and shares of special items.

    Attributes:
        guidance: weight that is folded in; the upper end of what is drawn where it is an input.
        truth: weight of the recorded motion beside the teacher's.
        rollout: windows of own output before the one that is learned from, at most.
        alone: share of items that start from noise alone, as one step does.
        apart: share of items whose two times differ.
        no_audio: share of items without sound.
    """

    guidance: float = 2.0
    truth: float = 0.2
    rollout: int = 4
    alone: float = 0.6
    apart: float = 0.25
    no_audio: float = 0.1


@dataclass(frozen=True)
class _StudentInput:
    """What student and teacher are given for one window."""

    x: Tensor
    t: Tensor
    heard: Tensor
    portrait: PortraitState
    cache: TemporalCache
    guidance: Tensor


class DistillTrainer(nn.Module):
    """What is trained: the student's denoiser. All else of the model stays.

    Args:
        model: a trained flow; its denoiser becomes the student's start.
        teacher: the denoiser as it was trained.
        loss: weights of the parts.
    """

    def __init__(self, model: AvatarModel, teacher: Denoiser, loss: DistillLossConfig) -> None:
        super().__init__()
        self.denoiser = model.denoiser.requires_grad_(True)
        self._teacher = [teacher.requires_grad_(False).eval()]  # hidden: not trained, not averaged
        self.weights = loss

    def loss(
        self, model: AvatarModel, batch: Batch, windows: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Give the loss of a batch and its parts.

        Args:
            model: whose denoiser is trained; on the device of the batch.
            batch: its window holds `windows` windows and the one that is learned from.
            windows: length of the roll-out.
            generator: source of chance, where the batch is.
        """
        shape = self.denoiser.config
        audio = mel_encoder(model).eval()
        with torch.no_grad():
            spoken = audio.encode_mel(batch.mel)[:, audio.lookahead_frames :]
            spoken = spoken[:, -batch.window.shape[1] :]
            data = model.to_motion(batch.window, batch.portrait)
            true, own = self.memories(model, batch, data, spoken, windows, generator)
        last = slice(windows * shape.window, (windows + 1) * shape.window)
        data, spoken = data[:, last], spoken[:, last]
        silent = _rand(len(data), generator) < self.weights.no_audio
        heard = torch.where(silent[:, None, None, None], self.denoiser.no_audio, spoken)
        noise = model.without_background_noise(
            torch.randn(data.shape, generator=generator, device=data.device)
        )
        t, end = draw_times(self.weights, len(data), shape.window, generator)
        time = t[..., None, None, None]
        x = (1 - time) * data + time * noise
        weight = self._weights(len(data), generator)
        pull = torch.where(silent, torch.zeros_like(weight), weight)
        velocity = self._teacher_velocity(model, batch, (x, t, spoken), true, pull)
        scene = _StudentInput(
            x,
            t,
            heard,
            self.denoiser.portrait_state(model.normalized_portrait(batch.portrait)),
            self.denoiser.encode_memory(*own),
            weight,
        )
        # One step shows the data straight away: there the recording is an anchor too.
        whole = self._student(scene, x, t, torch.zeros_like(t) if shape.second_time else None)
        truth = (x - time * whole - data).pow(2).flatten(1).mean(1)
        if shape.second_time:
            self.denoiser.eval()  # both networks are then the same: drop-out is off
            taught = mean_flow_loss(partial(self._student, scene), x, (t, end), velocity)
            self.denoiser.train()
        else:
            taught = (whole - velocity).pow(2).flatten(1).mean(1)
        trust = batch.weight / batch.weight.mean()
        parts = {"taught": (taught * trust).mean(), "truth": (truth * trust).mean()}
        total = parts["taught"] + self.weights.truth * parts["truth"]
        return total, {name: float(value.detach()) for name, value in parts.items()}

    @torch.no_grad()
    def memories(
        self,
        model: AvatarModel,
        batch: Batch,
        data: Tensor,
        spoken: Tensor,
        windows: int,
        generator: torch.Generator,
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Give memory as it was recorded and as the student's roll-out left it, noised.

        Args:
            model: whose denoiser is trained.
            batch: for the portrait and the memory before the roll-out.
            data: recorded motion of the roll-out's windows, and more.
            spoken: audio tokens of them.
            windows: length of the roll-out.
            generator: source of chance.

        Returns:
            Latents `(B, 1 + M, C, h, w)` and which are filled `(B, 1 + M)`, twice.
        """
        count = self.denoiser.config.window
        anchor = torch.zeros_like(data[:, 0])  # the portrait's own motion is none
        earlier = model.to_motion(batch.memory, batch.portrait)
        earlier = earlier * batch.filled[..., None, None, None]
        true = MemoryBank.anchored(anchor, earlier.shape[1])
        true.latents[:, 1:], true.filled[:, 1:] = earlier, batch.filled
        own = MemoryBank(true.latents.clone(), true.filled.clone())
        self.denoiser.eval()
        portrait = self.denoiser.portrait_state(model.normalized_portrait(batch.portrait))
        times = timesteps(model.preset.steps)
        for start in range(0, windows * count, count):
            part = slice(start, start + count)
            noise = torch.randn(data[:, part].shape, generator=generator, device=data.device)
            cache = self.denoiser.encode_memory(own.latents, own.filled)
            generated = model.sample_window(
                noise, spoken[:, part], portrait, cache, times, self._rollout_guidance(model)
            )
            own.write(generated)
            true.write(data[:, part])
        self.denoiser.train()
        noised = (
            regularize_memory(own.latents[:, 1:], generator) * own.filled[:, 1:, None, None, None]
        )
        own.latents[:, 1:] = noised
        return (true.latents, true.filled), (own.latents, own.filled)

    def _rollout_guidance(self, model: AvatarModel) -> float:
        """Give the guidance at which the student's own output is made: one call each."""
        asked = self.denoiser.config.guidance_input
        return model.preset.guidance if asked else model.distilled_guidance

    def _weights(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw how strong guidance shall be, `(B,)`."""
        most = self.weights.guidance
        if not self.denoiser.config.guidance_input:
            return torch.full((count,), most, device=generator.device)
        return 1 + (most - 1) * _rand(count, generator)

    @torch.no_grad()
    def _teacher_velocity(
        self,
        model: AvatarModel,
        batch: Batch,
        seen: tuple[Tensor, Tensor, Tensor],
        memory: tuple[Tensor, Tensor],
        pull: Tensor,
    ) -> Tensor:
        """Give the teacher's velocity with guidance.

        Args:
            model: for the units of the portrait.
            batch: for the portrait.
            seen: window, times and audio tokens.
            memory: latents and which are filled.
            pull: weight of the sound, `(B,)`; 0 for items without.
        """
        (teacher,) = self._teacher
        x, t, spoken = seen
        portrait = teacher.portrait_state(model.normalized_portrait(batch.portrait))
        cache = teacher.encode_memory(*memory)
        heard = teacher.predict(x, t, spoken, portrait, cache)
        unheard = teacher.predict(x, t, teacher.no_audio.expand_as(spoken), portrait, cache)
        return unheard + pull[:, None, None, None, None] * (heard - unheard)

    def _student(self, scene: _StudentInput, x: Tensor, t: Tensor, end: Tensor | None) -> Tensor:
        guidance = scene.guidance if self.denoiser.config.guidance_input else None
        return self.denoiser.predict(
            x, t, scene.heard, scene.portrait, scene.cache, end=end, guidance=guidance
        )


def draw_times(
    shares: DistillLossConfig, count: int, frames: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the times at which steps begin and end, `(B, N)`.

    Args:
        shares: of special items.
        count: of items.
        frames: of each.
        generator: source of chance, on the device of the result.
    """
    drawn = torch.randn(2, count, generator=generator, device=generator.device)
    late, early = torch.sigmoid(drawn - 0.4).sort(0, descending=True).values
    alone = _rand(count, generator) < shares.alone
    late = torch.where(alone, torch.ones_like(late), late)
    apart = _rand(count, generator) < shares.apart
    end = torch.where(apart, early, late)
    # A model of one step is asked for the whole way: that is learned as often as any other.
    whole = apart & (_rand(count, generator) < 0.5)
    end = torch.where(whole, torch.zeros_like(end), end)
    return late[:, None].expand(-1, frames), end[:, None].expand(-1, frames)


def mean_flow_loss(
    student: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    times: tuple[Tensor, Tensor],
    velocity: Tensor,
) -> Tensor:
    """Give MeanFlow's loss of each item, `(B,)`.

    The derivative along the flow is taken forward, without a graph, and the mean velocity by a
    usual call: the same time, no extra memory. A network must give the same in both, so that its
    drop-out has to be off.

    Args:
        student: gives the mean velocity from a window and the times at which a step begins and
            ends.
        x: the noisy window, `(B, N, C, h, w)`.
        times: at which the step begins and ends, `(B, N)` each.
        velocity: of the flow at the begin, as `x`.

    Source: arXiv:2505.13447, algorithm 1, with its adaptive weight (p = 1).
    """
    t, end = times
    ones, zeros = torch.ones_like(t), torch.zeros_like(t)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at its first jvp
        change = jvp(student, (x, t.contiguous(), end.contiguous()), (velocity, ones, zeros))[1]
    target = velocity - (t - end)[..., None, None, None] * change
    error = (student(x, t, end) - target.detach()).pow(2).flatten(1).mean(1)
    weighed: Tensor = error / (error.detach() + 1e-3)
    return weighed


def _rand(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def distill(
    model: AvatarModel,
    tracks: list[Track],
    validation: list[Track],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 32,
    loss: DistillLossConfig | None = None,
) -> AvatarModel:
    """Distil a trained flow, or go on, and give the model that was best on `validation`.

    Args:
        model: as `train_flow` gave it; changed.
        tracks: of the train split.
        validation: tracks that choose when to stop.
        folder: of the run.
        config: schedule.
        batch_size: windows a step, in each process.
        loss: weights; the preset's guidance is folded in when None.

    Raises:
        InputError: no clip is long enough for the roll-outs.
    """
    weights = loss or DistillLossConfig(guidance=model.preset.guidance)
    model.to(config.device)
    teacher = Denoiser(model.preset.denoiser).to(config.device)
    teacher.load_state_dict(model.denoiser.state_dict())
    shape = model.denoiser.config
    if not shape.guidance_input:
        model.folded_guidance.fill_(weights.guidance)
    trainer = DistillTrainer(model, teacher, weights)
    run = Run(folder, trainer, config)

    lengths = [shape.window * (1 + windows) for windows in range(1 + weights.rollout)]
    sources = [_source(tracks, frames, shape.memory) for frames in lengths]

    def draw(step: int) -> tuple[Tensor, dict[str, float]]:
        windows = int(torch.randint(weights.rollout + 1, (1,), generator=run.generator))
        batch = sources[windows].draw(batch_size, run.generator)
        batch = replace(batch, mel=augment_mel(batch.mel, run.generator))
        return trainer.loss(model, batch.to(run.device), windows, run.noise)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, DistillTrainer)
        judged = _with_denoiser(model, averaged.denoiser)
        figures = evaluate_flow(judged, validation, model.preset.steps, model.preset.guidance)
        run.keep_if_best(score(figures))
        return figures

    run.train(draw, evaluate)
    trainer.load_state_dict(torch.load(run.best, map_location="cpu", weights_only=True))
    return _with_denoiser(model, trainer.denoiser)


def _source(tracks: list[Track], frames: int, memory: int) -> WindowSource:
    """Draw whole roll-outs; memory from other moments is of no use before them."""
    long_enough = [track for track in tracks if len(track.quiet) >= frames]
    if not long_enough:
        raise InputError(f"no clip has {frames} frames, as roll-outs need; add longer clips")
    return WindowSource(long_enough, frames, memory, FlowLossConfig(stale_memory=0.0))


def _with_denoiser(model: AvatarModel, denoiser: nn.Module) -> AvatarModel:
    out = AvatarModel(model.preset)
    out.load_state_dict(model.state_dict())
    out.denoiser.load_state_dict(denoiser.state_dict())
    return out.to(model.motion_scale.device).eval()
