"""Distils a trained flow: guidance and, if possible, sampling steps go into the denoiser itself.

The teacher is the trained flow. The student starts from its weights and learns

- the teacher's velocity with guidance, so that one call replaces a batch twice as large. The
  guidance is a constant or, if the denoiser takes it as an input, drawn for each item;
- if the denoiser takes a second time, mean velocities (MeanFlow), so that a few steps replace many;
- to continue its own output: in most items, the student's memory bank holds what it has generated
  in a roll-out of a few windows, and the teacher's holds the recording. The recorded motion is
  part of the target, so that errors of earlier windows are corrected and not continued.

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
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.prefetch import Prefetch
from letstalk_rt.training.data.sound_inputs import (
    SoundInput,
    audio_tokens,
    sound_input,
    trained_part,
)
from letstalk_rt.training.data.tracks import Track
from letstalk_rt.training.data.windows import Batch, FlowLossConfig, WindowSource
from letstalk_rt.training.evaluation.decoded import DecodedLips
from letstalk_rt.training.evaluation.rollout import Sampling, evaluate_flow, save_sample, score
from letstalk_rt.training.loop import LoopConfig, Run


@dataclass(frozen=True)
class DistillLossConfig:
    """Weights of the parts of the loss, and shares of special items.

    Attributes:
        guidance: The distilled guidance; if guidance is an input, the upper bound of what is drawn.
        truth: Weight of the recorded motion as a target.
        rollout: Maximum number of windows of own output before the trained window.
        from_noise: Share of items that start from pure noise, as a single sampling step does.
        distinct_times: Share of items whose two times differ.
        no_audio: Share of items without audio condition.
    """

    guidance: float = 2.0
    truth: float = 0.2
    rollout: int = 4
    from_noise: float = 0.6
    distinct_times: float = 0.25
    no_audio: float = 0.1


@dataclass(frozen=True)
class _StudentInput:
    """The student's inputs for one window."""

    x: Tensor
    t: Tensor
    tokens: Tensor
    portrait: PortraitState
    cache: TemporalCache
    guidance: Tensor


class DistillTrainer(nn.Module):
    """The trained module: the student's denoiser; the rest of the model is frozen.

    Args:
        model: A trained flow; its denoiser becomes the student.
        teacher: The denoiser as it was trained.
        loss: Weights of the parts.
    """

    def __init__(self, model: AvatarModel, teacher: Denoiser, loss: DistillLossConfig) -> None:
        super().__init__()
        self.denoiser = model.denoiser.requires_grad_(True)
        self._teacher = [teacher.requires_grad_(False).eval()]  # a list hides it from the run
        self.weights = loss

    def loss(
        self, model: AvatarModel, batch: Batch, windows: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch and its parts.

        Args:
            model: The model whose denoiser is trained, on the batch's device.
            batch: Its `window` holds the `windows` windows of the roll-out and the trained one.
            windows: Length of the roll-out.
            generator: Random generator on the batch's device.
        """
        shape = self.denoiser.config
        audio = trained_part(model.audio).eval()
        with torch.no_grad():
            spoken = audio_tokens(audio, batch.features)[:, -batch.window.shape[1] :]
            data = model.to_motion(batch.window, batch.portrait)
            true, own = self.memories(model, batch, data, spoken, windows, generator)
        last = slice(windows * shape.window, (windows + 1) * shape.window)
        data, spoken = data[:, last], spoken[:, last]
        silent = _rand(len(data), generator) < self.weights.no_audio
        tokens = torch.where(silent[:, None, None, None], self.denoiser.no_audio, spoken)
        noise = model.without_background_noise(
            torch.randn(data.shape, generator=generator, device=data.device)
        )
        t, end = draw_times(self.weights, len(data), shape.window, generator)
        time = t[..., None, None, None]
        x = (1 - time) * data + time * noise
        weight = self._weights(len(data), generator)
        guidance = torch.where(silent, torch.zeros_like(weight), weight)
        velocity = self._teacher_velocity(model, batch, (x, t, spoken), true, guidance)
        inputs = _StudentInput(
            x,
            t,
            tokens,
            self.denoiser.portrait_state(model.normalized_portrait(batch.portrait)),
            self.denoiser.encode_memory(*own),
            weight,
        )
        # A single step predicts the data, so that the recording serves as a target, too.
        whole = self._student(inputs, x, t, torch.zeros_like(t) if shape.second_time else None)
        truth = (x - time * whole - data).pow(2).flatten(1).mean(1)
        if shape.second_time:
            self.denoiser.eval()  # no dropout: both calls must compute the same function
            taught = mean_flow_loss(partial(self._student, inputs), x, (t, end), velocity)
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
        """Return the recorded memory bank, and the student's after a roll-out, with noise.

        Args:
            model: The model whose denoiser is trained.
            batch: Portrait and memory before the roll-out.
            data: Recorded motion; begins with the roll-out's windows.
            spoken: Their audio tokens.
            windows: Length of the roll-out.
            generator: Random generator.

        Returns:
            For each of the two: latents `(B, 1 + H, C, h, w)` and valid entries `(B, 1 + H)`, with
            H frames of history, see `Denoiser.encode_memory`.
        """
        count = self.denoiser.config.window
        anchor = torch.zeros_like(data[:, 0])  # the portrait has zero motion
        earlier = model.to_motion(batch.memory, batch.portrait)
        earlier = earlier * batch.filled[..., None, None, None]
        true = MemoryBank.anchored(anchor, earlier.shape[1])
        true.latents[:, 1:], true.filled[:, 1:] = earlier, batch.filled
        own = MemoryBank(true.latents.clone(), true.filled.clone())
        self.denoiser.eval()
        portrait = self.denoiser.portrait_state(model.normalized_portrait(batch.portrait))
        times = timesteps(model.preset.steps)
        kept = self.denoiser.encode_memory(own.latents, own.filled)
        for start in range(0, windows * count, count):
            part = slice(start, start + count)
            noise = torch.randn(data[:, part].shape, generator=generator, device=data.device)
            cache = self.denoiser.memory_of(own, kept)
            generated = model.sample_window(
                noise, spoken[:, part], portrait, cache, times, self._rollout_guidance(model)
            )
            own.write(generated)
            self.denoiser.update_cache(generated, kept)
            true.write(data[:, part])
        self.denoiser.train()
        noised = (
            regularize_memory(own.latents[:, 1:], generator) * own.filled[:, 1:, None, None, None]
        )
        own.latents[:, 1:] = noised
        return (true.latents, true.filled), (own.latents, own.filled)

    def _rollout_guidance(self, model: AvatarModel) -> float:
        """Return the guidance of the roll-out, with one denoiser call per step."""
        asked = self.denoiser.config.guidance_input
        return model.preset.guidance if asked else model.distilled_guidance

    def _weights(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the guidance of each item, `(B,)`."""
        most = self.weights.guidance
        if not self.denoiser.config.guidance_input:
            return torch.full((count,), most, device=generator.device)
        return 1 + (most - 1) * _rand(count, generator)

    @torch.no_grad()
    def _teacher_velocity(
        self,
        model: AvatarModel,
        batch: Batch,
        inputs: tuple[Tensor, Tensor, Tensor],
        memory: tuple[Tensor, Tensor],
        guidance: Tensor,
    ) -> Tensor:
        """Return the teacher's velocity with guidance.

        Args:
            model: The model, which scales the portrait.
            batch: The batch, for the portrait.
            inputs: Window, times and audio tokens.
            memory: Latents and valid entries of the memory bank.
            guidance: Guidance, `(B,)`; 0 for items without audio condition.
        """
        (teacher,) = self._teacher
        x, t, spoken = inputs
        portrait = teacher.portrait_state(model.normalized_portrait(batch.portrait))
        cache = teacher.encode_memory(*memory)
        conditional = teacher.predict(x, t, spoken, portrait, cache)
        unconditional = teacher.predict(x, t, teacher.no_audio.expand_as(spoken), portrait, cache)
        return unconditional + guidance[:, None, None, None, None] * (conditional - unconditional)

    def _student(self, inputs: _StudentInput, x: Tensor, t: Tensor, end: Tensor | None) -> Tensor:
        guidance = inputs.guidance if self.denoiser.config.guidance_input else None
        return self.denoiser.predict(
            x, t, inputs.tokens, inputs.portrait, inputs.cache, end=end, guidance=guidance
        )


def draw_times(
    shares: DistillLossConfig, count: int, frames: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the times at which steps begin and end, `(B, N)`.

    Args:
        shares: Shares of special items.
        count: Number of items, B.
        frames: Frames per item, N.
        generator: Random generator on the device of the result.
    """
    drawn = torch.randn(2, count, generator=generator, device=generator.device)
    late, early = torch.sigmoid(drawn - 0.4).sort(0, descending=True).values
    from_noise = _rand(count, generator) < shares.from_noise
    late = torch.where(from_noise, torch.ones_like(late), late)
    distinct_times = _rand(count, generator) < shares.distinct_times
    end = torch.where(distinct_times, early, late)
    # Half of these go all the way to the data, which is what one-step sampling needs.
    whole = distinct_times & (_rand(count, generator) < 0.5)
    end = torch.where(whole, torch.zeros_like(end), end)
    return late[:, None].expand(-1, frames), end[:, None].expand(-1, frames)


def mean_flow_loss(
    student: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    times: tuple[Tensor, Tensor],
    velocity: Tensor,
) -> Tensor:
    """Return MeanFlow's loss of each item, `(B,)`.

    The derivative along the flow comes from forward-mode differentiation without a graph, the mean
    velocity from an ordinary call: the same time, no extra memory. Both must compute the same
    function, so dropout has to be off.

    Args:
        student: Predicts the mean velocity from a window and the times at which a step begins and
            ends.
        x: The noisy window, `(B, N, C, h, w)`.
        times: The times at which the step begins and ends, `(B, N)` each.
        velocity: The flow's velocity at the beginning of the step, shaped as `x`.

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
    samples: list[Clip] | None = None,
) -> AvatarModel:
    """Distil a trained flow and return the model that was best on `validation`.

    Args:
        model: The result of `train_flow`; it is changed.
        tracks: Training tracks.
        validation: Tracks that select the best weights.
        folder: The run's folder.
        config: Schedule.
        batch_size: Windows per step, in each process.
        loss: Weights of the loss; None distils the preset's guidance.
        samples: Clips whose sample videos are written at each evaluation.

    Raises:
        InputError: No clip is long enough for the roll-outs.
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
    sound = sound_input(model.audio)
    sources = [_source(tracks, frames, shape.history, sound) for frames in lengths]

    sampling = Sampling(model.preset.steps, model.preset.guidance)
    lips = DecodedLips(run.device) if model.autoencoder.landmarks is None else None

    def draw(generator: torch.Generator) -> tuple[int, Batch]:
        windows = int(torch.randint(weights.rollout + 1, (1,), generator=generator))
        batch = sources[windows].draw(batch_size, generator)
        return windows, replace(batch, features=sound.augment(batch.features, generator))

    def train_step(step: int) -> tuple[Tensor, dict[str, float]]:
        windows, batch = batches(step)
        return trainer.loss(model, batch.to(run.device), windows, run.noise)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, DistillTrainer)
        candidate = _with_denoiser(model, averaged.denoiser)
        figures = evaluate_flow(candidate, validation, sampling, lips)
        for clip in samples or []:
            place = folder / f"sample-{clip.name}-{step:06d}.mp4"
            save_sample(candidate, clip, place, sampling)
        run.keep_if_best(score(figures))
        return figures

    with Prefetch(draw, config.batches) as batches:
        run.train(train_step, evaluate, batches)
    trainer.load_state_dict(torch.load(run.best, map_location="cpu", weights_only=True))
    return _with_denoiser(model, trainer.denoiser)


def _source(tracks: list[Track], frames: int, memory: int, sound: SoundInput) -> WindowSource:
    """Return a source of whole roll-outs, without stale memory, from long enough tracks."""
    long_enough = [track for track in tracks if len(track.quiet) >= frames]
    if not long_enough:
        raise InputError(f"no clip has the {frames} frames that roll-outs need; add longer clips")
    return WindowSource(long_enough, frames, memory, FlowLossConfig(stale_memory=0.0), sound)


def _with_denoiser(model: AvatarModel, denoiser: nn.Module) -> AvatarModel:
    out = AvatarModel(model.preset)
    out.load_state_dict(model.state_dict())
    out.denoiser.load_state_dict(denoiser.state_dict())
    return out.to(model.motion_scale.device).eval()
