"""Trains the motion denoiser on clips: lips, blinks and the rest of the face at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from letstalk_rt.errors import InputError
from letstalk_rt.models.face.lip_values import GAPS
from letstalk_rt.models.motion.code import FACE, HEAD, LIPS, MIRRORED, NUM_STYLE, REST, SHUT
from letstalk_rt.models.motion.denoiser import KNOTS, PAST_WINDOWS, PURE_NOISE, MotionDenoiser
from letstalk_rt.training.data.audio_features import correlation
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.augmentation import augment_features
from letstalk_rt.training.stages.motion_clips import MotionClip, blink_onsets

WARM_UP_FRAMES = 8
"""Frames of speech before an item, which fill the convolutions."""

DRAWS = 2
"""Noise levels per window and step: the denoising head is cheap."""

NUM_SHAPES = 24

STEPS = 1
"""Steps of the sampler in free runs."""

SILENCE_SAMPLES = 64_000
"""Silence after which the predicted lips are constant."""

_MEMORY_NOISE = 0.25
"""Largest deviation of the noise on memory, of the usual change from frame to frame: more would
hide how fast the head moves, and it would start anew in each window."""

_CALMER = -2.5
"""Logarithm of the least factor on memory: a denoiser that sees how lively a face was only in its
memory would let each session become calmer and calmer, because its own motion is a little calm."""

_CALIBRATED, _ROUNDS, _GAINS = 24, 5, (0.3, 1.5)
_STYLE_DROP = 0.3
_LEAST_TRUST = 0.25
_RESTING = 0.5  # share of the shape of lips in silence that is taken for that of the portrait
_LIP_SHARES = torch.special.ndtr(KNOTS)
_LIP_FLOOR = 0.01  # added to deviations, so that still mouths stay small
_SHAPE_FLOOR = 0.02
_SURPRISE = 6.0  # white errors beyond are, too
_RIDGE = 1e-3  # of the linear prediction, as a share of the power of the code


class TrainedMotion(nn.Module):
    """The denoiser with the heads that only training needs.

    Args:
        denoiser: the denoiser.
    """

    def __init__(self, denoiser: MotionDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.shapes = nn.Linear(denoiser.config.speech.width, NUM_SHAPES)


@dataclass(frozen=True)
class MotionBatch:
    """Items of W windows, the first of them preceded by P more windows of codes.

    Attributes:
        inputs: log-mel, `(B, A + W N + L, 4 M)`, augmented.
        codes: normal codes, `(B, (P + W) N, D)`.
        lips: lips in deviations of their clip, `(B, W N, Q)`.
        shapes: auxiliary targets likewise, `(B, W N, 24)`.
        blinks: in which frame of each window a blink begins, from 1; 0 for none, `(B, W)`.
        style: `(B, S)`.
        kind: 0 for filmed people, 1 for generated ones, 2 for those of GRID, `(B,)`.
        lip_weight: `(B,)`, 1 on the average.
    """

    inputs: Tensor
    codes: Tensor
    lips: Tensor
    shapes: Tensor
    blinks: Tensor
    style: Tensor
    kind: Tensor
    lip_weight: Tensor


class MotionItems:
    """Draws random items of clips.

    Args:
        clips: The clips.
        denoiser: Knows the window, the look-ahead and the scale of the code.
        windows: Windows of an item, W.
    """

    def __init__(self, clips: Sequence[MotionClip], denoiser: MotionDenoiser, windows: int) -> None:
        size = denoiser.config.window
        self._frames, self._window = (PAST_WINDOWS + windows) * size, size
        least = self._frames + WARM_UP_FRAMES
        self._clips = [clip for clip in clips if len(clip.codes) > least]
        if not self._clips:
            raise InputError(f"no clip has more than {least} frames; add longer clips with audio")
        self._ahead, self._denoiser = denoiser.speech.lookahead_frames, denoiser
        self._share = torch.tensor(
            [(2.0 if c.is_real else 1.0) * len(c.codes) for c in self._clips]
        )
        usual = float(torch.tensor([c.lip_weight for c in self._clips]).mean())
        self._lip_weights = [c.lip_weight / max(1e-6, usual) for c in self._clips]
        self._styles = standard_styles(self._clips)
        self._lips = [_standard(c.codes[:, LIPS], _LIP_FLOOR) for c in self._clips]
        self._shapes = [_standard(c.shapes, _SHAPE_FLOOR) for c in self._clips]

    def draw(self, batch_size: int, generator: torch.Generator) -> MotionBatch:
        """Draw a batch, half of it mirrored."""
        chosen = torch.multinomial(self._share, batch_size, True, generator=generator).tolist()
        starts = [
            int(
                torch.randint(
                    WARM_UP_FRAMES,
                    len(self._clips[k].codes) - self._frames,
                    (1,),
                    generator=generator,
                )
            )
            for k in chosen
        ]
        pairs = list(zip(chosen, starts, strict=True))
        first = PAST_WINDOWS * self._window
        codes = torch.stack([self._clips[k].codes[s : s + self._frames] for k, s in pairs])
        mirrored = torch.rand(batch_size, 1, 1, generator=generator) < 0.5
        codes = codes * torch.where(mirrored, torch.tensor(MIRRORED), 1.0)
        inputs = torch.stack(
            [
                self._clips[k].inputs[s + first - WARM_UP_FRAMES : s + self._frames + self._ahead]
                for k, s in pairs
            ]
        )
        spoken = slice(first, self._frames)
        return MotionBatch(
            augment_features(inputs, generator),
            self._denoiser.to_normal(codes),
            torch.stack([self._lips[k][s:][spoken] for k, s in pairs]),
            torch.stack([self._shapes[k][s:][spoken] for k, s in pairs]),
            torch.stack([self._blinks(k, s) for k, s in pairs]),
            torch.stack([self._styles[k] for k in chosen]),
            torch.tensor([_kind(self._clips[k]) for k in chosen]),
            torch.tensor([self._lip_weights[k] for k in chosen]),
        )

    def _blinks(self, index: int, start: int) -> Tensor:
        windows = self._frames // self._window - PAST_WINDOWS
        out = torch.zeros(windows, dtype=torch.long)
        for onset in self._clips[index].blinks:
            window, frame = divmod(onset - start - PAST_WINDOWS * self._window, self._window)
            if 0 <= window < windows:
                out[window] = frame + 1
        return out


def _kind(clip: MotionClip) -> int:
    return 2 if clip.is_grid else 0 if clip.is_real else 1


def _standard(x: Tensor, floor: float) -> Tensor:
    return (x - x.mean(0)) / (x.std(0) + floor)


def standard_styles(clips: Sequence[MotionClip]) -> Tensor:
    """Return the styles of clips in deviations between them, `(C, S)`."""
    styles = torch.stack([clip.style for clip in clips])
    middle, spread = styles.median(0).values, styles.std(0, correction=0).clamp(min=1e-6)
    return ((styles - middle) / spread).clamp(-2.5, 2.5)


@torch.no_grad()
def fit_statistics(denoiser: MotionDenoiser, clips: Sequence[MotionClip]) -> None:
    """Fit the distribution of the code and the prediction of its course to filmed clips.

    Raises:
        InputError: No clip was filmed.
    """
    filmed = [clip.codes for clip in clips if clip.is_real and not clip.is_grid]
    if not filmed:
        raise InputError("no clip is of kind 'real'; add filmed clips with audio")
    deviations = torch.stack([codes[:, LIPS].std(0) for codes in filmed])
    denoiser.lip_unit.copy_(deviations.mean(0).clamp(min=1e-4))
    every = torch.cat(filmed)
    both = torch.cat([every, every * torch.tensor(MIRRORED)])[:, REST]
    levels = both.quantile(torch.special.ndtr(KNOTS), 0).T
    levels[: HEAD.stop - HEAD.start] = both[:, : HEAD.stop - HEAD.start].std(0)[:, None] * KNOTS
    denoiser.levels.copy_(levels + 1e-5 * KNOTS)  # strictly increasing
    _fit_prediction(denoiser, filmed)


def _fit_prediction(denoiser: MotionDenoiser, filmed: Sequence[Tensor]) -> None:
    """Fit the linear prediction of each number of the rest, and the whitening of its errors."""
    window = denoiser.config.window
    reach = PAST_WINDOWS * window
    pieces, changes = [], []
    for codes in filmed:
        normal = denoiser.to_normal(codes)
        pieces.append(normal[:, REST].unfold(0, reach + window, 1))  # (., R, P + N)
        changes.append(normal.diff(dim=0))
    denoiser.change_scale.copy_(torch.cat(changes).pow(2).mean(0).sqrt().clamp(min=1e-3))
    every = torch.cat(pieces).transpose(0, 1).double()  # (R, ., P + N)
    past, following = every[..., :reach], every[..., reach:]
    square = past.transpose(1, 2) @ past
    power = square.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    ridge = _RIDGE * power * torch.eye(reach, dtype=square.dtype)
    prediction = torch.linalg.solve(square + ridge, past.transpose(1, 2) @ following)
    denoiser.predict.copy_(prediction)
    errors = following - past @ prediction
    values, vectors = torch.linalg.eigh(errors.transpose(1, 2) @ errors / errors.shape[1])
    sizes = values.clamp(min=1e-6).sqrt()
    denoiser.whiten.copy_(vectors / sizes[:, None])
    denoiser.unwhiten.copy_((vectors * sizes[:, None]).transpose(1, 2))


def motion_loss(model: TrainedMotion, batch: MotionBatch) -> dict[str, Tensor]:
    """Return the losses of lips, auxiliary targets, blinks and the rest of the face."""
    denoiser = model.denoiser
    features, linear = denoiser.speech.encode(batch.inputs)
    first = WARM_UP_FRAMES + denoiser.speech.lookahead_frames
    features, linear = features[:, first:], linear[:, first:]
    lips = denoiser.predict_lips(features, linear)
    shapes = model.shapes(denoiser.dropout(features))
    losses = _lip_losses(lips, shapes, batch)
    losses |= _rest_losses(denoiser, features.detach(), lips.detach(), batch)
    return losses


def _lip_losses(lips: Tensor, shapes: Tensor, batch: MotionBatch) -> dict[str, Tensor]:
    w = batch.lip_weight
    error = (lips - batch.lips).pow(2)
    a, b = (x[..., :4] - x[..., :4].mean(1, keepdim=True) for x in (lips, batch.lips))
    r = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-2)).mean(1)
    return {
        "gap": 2 * (w * error[..., 0].mean(1)).mean(),
        "lips": (w * error.mean((1, 2))).mean(),
        "shapes": (w * (shapes - batch.shapes).pow(2).mean((1, 2))).mean(),
        "correlation": (w * (1 - r)).mean(),
    }


def _rest_losses(
    denoiser: MotionDenoiser, features: Tensor, lips: Tensor, batch: MotionBatch
) -> dict[str, Tensor]:
    size = denoiser.config.window
    windows = batch.codes.unflatten(1, (-1, size))
    clean_past, true = windows[:, PAST_WINDOWS - 1 : -1], windows[:, PAST_WINDOWS:, :, REST]
    level = _MEMORY_NOISE * torch.rand(len(true), 1, 1, 1)
    gain = torch.exp(_CALMER * torch.rand(len(true), 1, 1, 1))
    past = gain * clean_past + level * denoiser.change_scale * torch.randn_like(clean_past)
    told = torch.rand(len(past), 1) >= _STYLE_DROP
    filled = torch.ones(past.shape[:2], dtype=torch.bool)
    features, lips = (x.unflatten(1, (-1, size)) for x in (features, lips))
    context = denoiser.context(past, features, lips, batch.style * told, batch.kind, filled)
    logits = denoiser.blink(context)
    blink = nn.functional.cross_entropy(logits.flatten(0, 1), batch.blinks.flatten())
    before = windows[..., REST].unfold(1, PAST_WINDOWS, 1)[:, :-1]  # (B, W, N, R, P / N)
    before = before.movedim(-1, 2).flatten(2, 3)
    clean = denoiser.white(true, before).clamp(-_SURPRISE, _SURPRISE)
    mean, log = denoiser.expected(context, batch.blinks)
    expected = (0.5 * ((clean - mean) / log.exp()).pow(2) + log).mean()
    rest = _flow_loss(denoiser, (clean - mean).detach() / log.detach().exp(), context, batch.blinks)
    return {"blink": blink, "expected": expected, "rest": rest}


def _flow_loss(denoiser: MotionDenoiser, clean: Tensor, context: Tensor, blinks: Tensor) -> Tensor:
    """Return the error of the velocity at random noise levels of errors `(B, W, size)`."""
    clean = clean.clamp(-_SURPRISE, _SURPRISE).expand(DRAWS, -1, -1, -1)
    t = PURE_NOISE * torch.sigmoid(1.2 * torch.randn(clean.shape[:-1]))
    noise = torch.randn_like(clean)
    cos, sin = t.cos()[..., None], t.sin()[..., None]
    velocity = denoiser.velocity(
        cos * clean + sin * noise, t, context.expand(DRAWS, -1, -1, -1), blinks
    )
    return (velocity - (cos * noise - sin * clean)).pow(2).mean()


@torch.no_grad()
def fit_lips(
    denoiser: MotionDenoiser, unseen: Sequence[MotionClip], clips: Sequence[MotionClip]
) -> None:
    """Fit which lips are shown for predicted ones: those of the median filmed person.

    Both are mapped by their quantiles, so that lips close as often and open as far as people's.
    What is predicted less well than the gap moves less, by the root of how much less and at most by
    half: a prediction that is mostly noise would show that noise at full size.

    Args:
        denoiser: its `lip_knots` and `lip_levels` are set.
        unseen: clips of people whom it was not trained on, which it predicts as it will others.
        clips: clips of all people; their lips are the measure.
    """
    filmed = [c for c in clips if c.is_real and not c.is_grid and c.lip_weight]
    heard = [c for c in unseen if c.is_real and c.lip_weight]
    if not (filmed and heard):
        return
    predicted, agreements = [], []
    for clip in heard:
        ours, theirs = _predicted_lips(denoiser.eval(), clip), clip.codes[:, LIPS]
        predicted.append(ours.quantile(_LIP_SHARES, 0))
        pairs = zip(ours[: len(theirs)].T, theirs.T, strict=True)
        agreements.append(torch.tensor([correlation(p.numpy(), t.numpy()) for p, t in pairs]))
    true = [clip.codes[:, LIPS].quantile(_LIP_SHARES, 0) for clip in filmed]
    agreement = torch.stack(agreements).nan_to_num().mean(0)
    trust = (agreement / agreement[0].clamp(min=1e-3)).clamp(_LEAST_TRUST, 1).sqrt()
    denoiser.lip_knots.copy_(torch.stack(predicted).mean(0).T + 1e-5 * KNOTS)
    denoiser.lip_levels.copy_(trust[:, None] * torch.stack(true).median(0).values.T)
    silence = denoiser.speech(torch.zeros(1, SILENCE_SAMPLES))
    rest = denoiser.shown_lips(denoiser.predict_lips(silence.features, silence.lips)[0, -1])
    rest[GAPS.stop :] *= _RESTING
    denoiser.lip_levels.sub_(rest[:, None])


def _predicted_lips(denoiser: MotionDenoiser, clip: MotionClip) -> Tensor:
    features, linear = denoiser.speech.encode(clip.inputs[None])
    lips: Tensor = denoiser.predict_lips(features, linear)[0, denoiser.speech.lookahead_frames :]
    return lips


def _span(x: Tensor) -> Tensor:
    """Return the range of each number of `(T, D)`, 5th to 95th percentile."""
    span: Tensor = x.quantile(0.95, 0) - x.quantile(0.05, 0)
    return span


@torch.no_grad()
def free_run(
    denoiser: MotionDenoiser,
    clip: MotionClip,
    generator: torch.Generator,
    *,
    steps: int = STEPS,
) -> Tensor:
    """Return the codes that a denoiser generates for the speech of a clip, `(T', D)`.

    Its memory is what it generated before; T' is T in whole windows.
    """
    denoiser.eval()
    size, ahead = denoiser.config.window, denoiser.speech.lookahead_frames
    features, linear = (x[:, ahead:] for x in denoiser.speech.encode(clip.inputs[None]))
    memory, style, codes = denoiser.init_memory(1), torch.zeros(1, NUM_STYLE), []
    for start in range(0, len(clip.codes) // size * size, size):
        heard = features[:, start : start + size], linear[:, start : start + size]
        noise = torch.randn(1, denoiser.config.size, generator=generator)
        chance = torch.rand(1, generator=generator)
        made = denoiser(*heard, style, noise, chance, memory, steps=steps)
        denoiser.remember(made, *heard, memory)
        codes.append(made[0])
    return torch.cat(codes)


@torch.no_grad()
def fit_liveliness(denoiser: MotionDenoiser, clips: Sequence[MotionClip]) -> None:
    """Fit how far what is drawn moves, and how often eyes blink, so that free runs are like clips.

    The median person sets the measure: few people frown, and nobody would like an avatar that does.
    """
    filmed = [clip for clip in clips if clip.is_real and not clip.is_grid][:_CALIBRATED]
    true = torch.stack([_span(clip.codes[:, REST]) for clip in filmed]).median(0).values
    generator = torch.Generator().manual_seed(0)
    for _ in range(_ROUNDS if filmed else 0):
        runs = [free_run(denoiser, clip, generator) for clip in filmed]
        made = torch.stack([_span(codes[:, REST]) for codes in runs]).median(0).values
        ratio = (true / made.clamp(min=1e-6)).clamp(0.5, 2)
        denoiser.gain.mul_(ratio.sqrt()).clamp_(*_GAINS)
        wanted = sum(len(clip.blinks) for clip in filmed)
        blinks = sum(len(blink_onsets(codes[:, SHUT].numpy())) for codes in runs)
        if wanted:
            more = torch.tensor(wanted / max(1, blinks)).clamp(0.5, 2)
            denoiser.blink.bias[1:] += 0.7 * more.log()


def evaluate_motion(denoiser: MotionDenoiser, clips: Sequence[MotionClip]) -> dict[str, float]:
    """Return how generated codes of filmed clips compare with the true ones, medians over clips.

    `r_gap`: Pearson's r of the lip gap; `range_` and `speed_` of head and face: over the true
    ones', with the lips' size left out.
    """
    rows: dict[str, list[float]] = {name: [] for name in ("r_gap", *_SIZES)}
    generator = torch.Generator().manual_seed(0)
    for clip in clips:
        if clip.is_real:
            made = free_run(denoiser, clip, generator)
            true = clip.codes[: len(made)]
            lips = _predicted_lips(denoiser, clip)
            rows["r_gap"].append(correlation(lips[: len(made), 0].numpy(), true[:, 0].numpy()))
            for group, part in (("head", HEAD), ("face", FACE)):
                a, b = (denoiser.to_normal(codes)[:, part] for codes in (made, true))
                rows[f"range_{group}"].append(_ratio(_span(a), _span(b)))
                speeds = (x.diff(dim=0).abs().mean(0) for x in (a, b))
                rows[f"speed_{group}"].append(_ratio(*speeds))
    return {name: float(torch.tensor(values).median()) for name, values in rows.items() if values}


_SIZES = ("range_head", "range_face", "speed_head", "speed_face")


def _ratio(ours: Tensor, true: Tensor) -> float:
    return float(ours.mean() / true.mean().clamp(min=1e-6))


def train_motion(
    clips: Sequence[MotionClip],
    held_out: Sequence[MotionClip],
    folder: Path,
    config: LoopConfig,
    denoiser: MotionDenoiser,
    *,
    batch_size: int = 32,
) -> MotionDenoiser:
    """Train a motion denoiser whose `speech.usual` is set, and fit the size of its lips.

    Args:
        clips: Training clips.
        held_out: Clips of other people, for the log; may be empty.
        folder: The run's folder.
        config: Schedule.
        denoiser: The denoiser, not trained yet.
        batch_size: Items per step.
    """
    fit_statistics(denoiser, clips)
    model = TrainedMotion(denoiser)
    items = MotionItems(clips, denoiser, denoiser.config.memory)
    run = Run(
        folder,
        model,
        config,
        rate_factors={"denoiser.speech.linear.": 0.2},
        decay_factors={"denoiser.speech.linear.": 10.0},
    )

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        parts = motion_loss(model, items.draw(batch_size, run.generator))
        return sum(parts.values(), torch.zeros(())), {
            name: float(part.detach()) for name, part in parts.items()
        }

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, TrainedMotion)
        return evaluate_motion(averaged.denoiser, held_out)

    averaged = run.train(loss, evaluate)
    assert isinstance(averaged, TrainedMotion)
    trained = averaged.denoiser.cpu().eval()
    fit_lips(trained, held_out or clips, clips)
    fit_liveliness(trained, clips)
    return trained
