"""The motion denoiser: samples the motion code of a window from noise, told speech and memory.

A causal transformer reads the memory bank, one token a window: the code that was shown in the
window before, and the speech of the window itself. Its output conditions three heads. Lips follow
speech almost alone and are regressed. Whether a blink begins, and in which frame, is drawn from
five probabilities. All else is denoised by a small network, told the lips, the blink and the
context. What it denoises is not the code itself but how the window differs from a linear prediction
from the frames before: whitened, and divided by a deviation that follows from the context. So heads
that hold still stay still, and motion has the spectrum of true motion. What is left is nearly
normal, and on a path that keeps the variance hardly changes from noise to data, so one or two steps
do.

Source: LetsTalk, arXiv:2411.16748 (memory bank, noise-regularised); the denoising head on a causal
transformer: MAR, arXiv:2406.11838; residuals of a regression denoised after it: CorrDiff,
arXiv:2309.15214; paths that keep the variance: TrigFlow, arXiv:2410.11081.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.face.lip_values import NUM_LIP_VALUES
from letstalk_rt.models.motion.code import (
    LIPS,
    NUM_LIPS,
    NUM_MOTION,
    NUM_REST,
    NUM_STYLE,
    REST,
)
from letstalk_rt.models.motion.expression import Expression
from letstalk_rt.models.motion.memory import MotionMemory
from letstalk_rt.models.motion.speech_encoder import (
    SpeechEncoder,
    SpeechEncoderConfig,
    SpeechState,
)

NUM_KINDS = 3
"""Kinds of motion: of filmed people, of other generators, and of people who sit still and read."""

PURE_NOISE = math.pi / 2
"""The timestep of pure noise; that of data is 0."""

PAST_WINDOWS = 3
"""Windows of memory from which the linear prediction is made."""

LIP_LEAD = 0.3
"""Frames by which lips are ahead of what was learnt. MediaPipe tracks films 0.4 frames late: read
backwards, the same film is that much early. So lips that follow its tracks are late, too."""

KNOTS = torch.linspace(-3, 3, 25)
"""Quantiles of the normal distribution at which the code's own distribution is known."""

_LOG_DEVIATIONS = (-2.5, 2.0)  # limits of the logarithm of predicted deviations


@dataclass(frozen=True)
class MotionDenoiserConfig:
    """Shape of a motion denoiser.

    Attributes:
        speech: shape of the speech encoder.
        window: frames denoised together, N.
        memory: windows in the memory bank, M.
        width: width of the transformer.
        depth: number of its blocks.
        heads: heads of its attention.
        head_width: width of the denoising head.
        head_depth: number of its blocks.
        dropout: dropout rate while training.
    """

    speech: SpeechEncoderConfig = SpeechEncoderConfig()
    window: int = 4
    memory: int = 16
    width: int = 192
    depth: int = 3
    heads: int = 6
    head_width: int = 192
    head_depth: int = 2
    dropout: float = 0.1

    @property
    def size(self) -> int:
        """Numbers that are denoised together."""
        return self.window * NUM_REST

    def with_lookahead(self, lookahead_ms: int) -> "MotionDenoiserConfig":
        """Return a copy with another look-ahead of the speech encoder."""
        return replace(self, speech=replace(self.speech, lookahead_ms=lookahead_ms))

    @property
    def events(self) -> int:
        """Outcomes of the blink: it begins in one of N frames, or not."""
        return self.window + 1


class Block(nn.Module):
    """Causal attention over windows with a learned bias for each distance, and an MLP."""

    positions: Tensor

    def __init__(self, config: MotionDenoiserConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(config.heads, config.memory))
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, filled: Tensor) -> Tensor:
        """Return the next hidden states `(B, W, D)`.

        Args:
            x: hidden states of the windows, the oldest first.
            filled: which windows there are, `(B, W)` bool; each attends to itself anyway.
        """
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.project(self.norm_attention(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(filled, x.dtype))
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return out

    def _mask(self, filled: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the bias of each pair of windows, `(B, H, W, W)`; -inf where it may not attend."""
        count = filled.shape[1]
        place = torch.arange(count, device=filled.device)
        distance = place[:, None] - place
        seen = (distance > 0) & filled[:, None] | (distance == 0)
        bias = self.bias[:, distance.clamp(min=0)].to(dtype)
        return torch.where(seen[:, None], bias, float("-inf"))


class HeadBlock(nn.Module):
    """A residual MLP whose scale and shift follow from context and timestep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the next hidden states, `(..., D)`."""
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        out: Tensor = x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)
        return out


class DenoisingHead(nn.Module):
    """Predicts the velocity of a window's code on the path from data to noise.

    Args:
        size: numbers in the code of a window.
        context: width of the context.
        width: width of the hidden states.
        depth: number of blocks.
    """

    frequencies: Tensor

    def __init__(self, size: int, context: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter, self.tell = nn.Linear(size, width), nn.Linear(context, width)
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, 5, 16)), persistent=False)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.leave = nn.Linear(width, 2 * width), nn.Linear(width, size)
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Return the velocity `cos(t) noise - sin(t) data`, `(..., size)`.

        Args:
            x: the noisy code, `(..., size)`.
            t: timesteps, `(...)`; see `PURE_NOISE`.
            context: `(..., context)`.
        """
        angle = t[..., None] * self.frequencies
        time = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        condition = F.silu(self.tell(context) + time)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition).chunk(2, -1)
        velocity: Tensor = self.leave(self.norm(h) * (1 + scale) + shift)
        return velocity


class MotionDenoiser(nn.Module):
    """Generates motion codes; before it is trained, faces stay at rest.

    Args:
        config: shape.

    Attributes:
        lip_unit: usual deviation of the lips of the code, `(Q,)`.
        levels: the rest of the code at the `KNOTS` of a normal distribution, increasing, `(R, K)`.
        change_scale: usual change of each number of the normal code from frame to frame, `(D,)`.
        predict: per number of the rest, from the last frames to those of a window, `(R, P, N)`.
        whiten: per number of the rest, from the errors of that to white ones, `(R, N, N)`.
        unwhiten: the inverse.
        gain: factor on what is drawn for each number of the rest, `(R,)`.
        lip_knots: quantiles of predicted lips, increasing, `(Q, K)`.
        lip_levels: lips of filmed people at these quantiles, less those at the quantile of
            silence, `(Q, K)`.
    """

    lip_unit: Tensor
    levels: Tensor
    gain: Tensor
    change_scale: Tensor
    knots: Tensor
    predict: Tensor
    whiten: Tensor
    unwhiten: Tensor
    lip_knots: Tensor
    lip_levels: Tensor

    def __init__(self, config: MotionDenoiserConfig | None = None) -> None:
        super().__init__()
        self.config = config or MotionDenoiserConfig()
        c = self.config
        self.speech = SpeechEncoder(NUM_LIPS, c.speech)
        heard = c.window * (c.speech.width + NUM_LIPS)
        self.embed_speech = nn.Linear(heard, c.width)
        self.embed_past = nn.Linear(c.window * NUM_MOTION, c.width)
        changes = (c.window - 1) * NUM_MOTION
        self.embed_changes = nn.Linear(changes, c.width, bias=False)
        self.tell_changes = nn.Linear(changes, c.width, bias=False)
        for layer in (self.embed_changes, self.tell_changes):
            nn.init.zeros_(layer.weight)
        self.embed_style = nn.Linear(NUM_STYLE, c.width, bias=False)
        self.embed_kind = nn.Embedding(NUM_KINDS, c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width)
        self.lips = nn.Linear(c.speech.width, NUM_LIPS)
        self.blink = nn.Linear(c.width, c.events)
        self.embed_blink = nn.Embedding(c.events, c.width)
        self.expect = nn.Linear(c.width, 2 * c.size)
        nn.init.zeros_(self.expect.weight)
        nn.init.zeros_(self.expect.bias)
        self.head = DenoisingHead(c.size, c.width, c.head_width, c.head_depth)
        self.expression = Expression()
        self.register_buffer("knots", KNOTS.repeat(NUM_REST, 1), persistent=False)
        self.register_buffer("lip_unit", torch.ones(NUM_LIPS))
        self.register_buffer("levels", KNOTS.repeat(NUM_REST, 1))
        self.register_buffer("gain", torch.ones(NUM_REST))
        self.register_buffer("change_scale", torch.ones(NUM_MOTION))
        hold = torch.zeros(NUM_REST, PAST_WINDOWS * c.window, c.window)
        hold[:, -1] = 1
        self.register_buffer("predict", hold)
        eye = torch.eye(c.window).repeat(NUM_REST, 1, 1)
        self.register_buffer("whiten", eye.clone())
        self.register_buffer("unwhiten", eye.clone())
        self.register_buffer("lip_knots", KNOTS.repeat(NUM_LIPS, 1))
        self.register_buffer("lip_levels", torch.zeros(NUM_LIPS, len(KNOTS)))
        self.dropout = nn.Dropout(c.speech.dropout)

    def predict_lips(self, features: Tensor, linear: Tensor) -> Tensor:
        """Return lips in deviations of a person's own, `(B, n, Q)`.

        Args:
            features: from the speech encoder, `(B, n, W)`.
            linear: its linear lips, `(B, n, Q)`.
        """
        lips: Tensor = linear + self.lips(self.dropout(features))
        return lips

    def shown_lips(self, lips: Tensor) -> Tensor:
        """Return the lips of the motion code, `(..., Q)`: at rest in silence, sized as people's.

        A prediction keeps to the middle; mapped by quantiles, lips close and open as people's.
        """
        return _interpolate(self.lip_knots, self.lip_levels, lips)

    def lip_values(self, pcm: Tensor, state: SpeechState | None = None) -> Tensor:
        """Return the lip values of the next part of a stream, or of a whole one without `state`.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a positive multiple of 640.
            state: of the speech encoder; updated in place.

        Returns:
            `(B, n / 640, Q)`; entry `i` of the stream belongs to frame
            `i - speech.lookahead_frames`.
        """
        heard = self.speech(pcm, state)
        return self.shown_lips(self.predict_lips(heard.features, heard.lips))[..., :NUM_LIP_VALUES]

    def context(
        self,
        past: Tensor,
        features: Tensor,
        lips: Tensor,
        style: Tensor,
        kind: Tensor,
        filled: Tensor,
    ) -> Tensor:
        """Return the context of each of W windows, `(B, W, D)`.

        Args:
            past: normal codes shown in the window before each, `(B, W, N, D)`.
            features: of speech in each, `(B, W, N, F)`.
            lips: predicted lips in each, `(B, W, N, Q)`.
            style: `(B, S)`; zeros for the usual person.
            kind: `(B,)`; 0 for filmed people.
            filled: which windows there are, `(B, W)` bool.
        """
        heard = torch.cat([features, lips], -1).flatten(2)
        # Changes are far smaller than levels, and the head goes on as it moves.
        changes = (past.diff(dim=2) / self.change_scale).flatten(2)
        h = (
            self.embed_past(past.flatten(2))
            + self.embed_speech(heard)
            + self.embed_changes(changes)
        )
        h = h + (self.embed_style(style) + self.embed_kind(kind))[:, None]
        for block in self.blocks:
            h = block(h, filled)
        out: Tensor = self.norm(h) + self.tell_changes(changes)
        return out

    def to_normal(self, codes: Tensor) -> Tensor:
        """Return normal codes, `(..., D)`: scaled lips, and a rest that is normally distributed.

        Lids are open most of the time, and few people frown often. What is drawn from a normal
        distribution and mapped back has such a distribution, too, and never exceeds it.
        """
        rest = _interpolate(self.levels, self.knots, codes[..., REST])
        return torch.cat([codes[..., LIPS] / self.lip_unit, rest], -1)

    def to_rest(self, normal: Tensor) -> Tensor:
        """Return the rest of the code for the rest of a normal one, `(..., R)`."""
        return _interpolate(self.knots, self.levels, normal)

    def white(self, rest: Tensor, past: Tensor) -> Tensor:
        """Return white errors of the linear prediction of normal codes, `(..., N * R)`.

        Args:
            rest: the codes, `(..., N, R)`.
            past: those of the frames before, `(..., P, R)`.
        """
        error = rest - self._prediction(past)
        return torch.einsum("...nr,rnk->...kr", error, self.whiten).flatten(-2)

    def unwhite(self, white: Tensor, past: Tensor) -> Tensor:
        """Return normal codes `(..., N, R)`, the inverse of `white`."""
        error = white.unflatten(-1, (self.config.window, NUM_REST))
        return torch.einsum("...kr,rkn->...nr", error, self.unwhiten) + self._prediction(past)

    def _prediction(self, past: Tensor) -> Tensor:
        return torch.einsum("...pr,rpn->...nr", past, self.predict)

    def expected(self, context: Tensor, blink: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the deviation of white errors, `(..., size)` each."""
        mean, log = self.expect(context + self.embed_blink(blink)).chunk(2, -1)
        return mean, log.clamp(*_LOG_DEVIATIONS)

    def velocity(self, x: Tensor, t: Tensor, context: Tensor, blink: Tensor) -> Tensor:
        """Return the velocity of standard errors `(..., size)` given the drawn blink, `(...)`."""
        out: Tensor = self.head(x, t, context + self.embed_blink(blink))
        return out

    def sample(self, noise: Tensor, context: Tensor, blink: Tensor, steps: int) -> Tensor:
        """Return white errors, `(..., size)`, by Euler's method from noise of that shape."""
        x, times = noise, torch.linspace(PURE_NOISE, 0, steps + 1, device=noise.device)
        for start, end in zip(times[:-1], times[1:], strict=True):
            t = start.expand(x.shape[:-1])
            x = x + (end - start) * self.velocity(x, t, context, blink)
        mean, log = self.expected(context, blink)
        drawn: Tensor = mean + self.gain.repeat(self.config.window) * log.exp() * x
        return drawn

    def init_memory(self, batch_size: int) -> MotionMemory:
        """Return the memory of new sessions."""
        c = self.config
        heard = c.speech.width + NUM_LIPS
        memory = MotionMemory.at_rest(batch_size, (c.memory, c.window, NUM_MOTION), heard)
        return memory

    def forward(
        self,
        features: Tensor,
        linear: Tensor,
        style: Tensor,
        noise: Tensor,
        chance: Tensor,
        memory: MotionMemory,
        *,
        steps: int,
        blink_gain: Tensor | None = None,
        kind: int = 0,
    ) -> Tensor:
        """Return the motion code of the next window, `(B, N, D)`; memory is not written.

        Args:
            features: of speech in the window, `(B, N, W)`.
            linear: its linear lips, `(B, N, Q)`.
            style: `(B, S)`.
            noise: normal numbers, `(B, N * R)`.
            chance: uniform numbers in (0, 1) that decide about a blink, `(B,)`.
            memory: what was shown.
            steps: steps of the sampler.
            blink_gain: factor on how often the eyes blink, `(B,)`; 1 when None.
            kind: whose motion: 0 for filmed people.
        """
        lips = self.predict_lips(features, linear)
        heard = torch.cat([memory.heard[:, 1:], torch.cat([features, lips], -1)[:, None]], 1)
        width = self.config.speech.width
        kinds = torch.full((len(features),), kind, device=features.device)
        context = self.context(
            memory.codes, heard[..., :width], heard[..., width:], style, kinds, memory.filled
        )[:, -1]
        blink = self._draw_blink(context, chance, blink_gain)
        white = self.sample(noise, context, blink, steps)
        past = memory.codes[:, -PAST_WINDOWS:, :, REST].flatten(1, 2)
        rest = self.to_rest(self.unwhite(white, past))
        return torch.cat([self._led(lips, memory.heard[:, -1, -1:, width:]), rest], -1)

    def _led(self, lips: Tensor, last: Tensor) -> Tensor:
        """Return the lips of the motion code, `(B, N, Q)`, ahead by `LIP_LEAD`.

        Args:
            lips: predicted lips, `(B, N, Q)`.
            last: those of the frame before, `(B, 1, Q)`; zeros in a new session, which had none.
        """
        last = torch.where(last.any(-1, keepdim=True), last, lips[:, :1])
        shown = self.shown_lips(torch.cat([last, lips], 1))
        return shown[:, 1:] + LIP_LEAD * shown.diff(dim=1)

    def remember(
        self, codes: Tensor, features: Tensor, linear: Tensor, memory: MotionMemory
    ) -> None:
        """Write a window that was shown to memory: codes `(B, N, D)` and its speech."""
        lips = self.predict_lips(features, linear)
        memory.write(self.to_normal(codes), torch.cat([features, lips], -1))

    def _draw_blink(self, context: Tensor, chance: Tensor, gain: Tensor | None) -> Tensor:
        """Return in which frame a blink begins, counted from 1, or 0 for none, `(B,)`."""
        shares = self.blink(context).softmax(-1)
        onsets = shares[:, 1:] if gain is None else gain[:, None] * shares[:, 1:]
        below = onsets.cumsum(-1)
        begun = (chance[:, None] > below).sum(-1) + 1  # events + 1 where none begins
        return torch.where(begun > self.config.window, 0, begun)


def _interpolate(knots: Tensor, levels: Tensor, x: Tensor) -> Tensor:
    """Interpolate linearly between knots, each number by a function of its own.

    Args:
        knots: increasing, `(Q, K)`.
        levels: values at these, `(Q, K)`; they stay constant beyond the knots.
        x: `(..., Q)`.

    Returns:
        `(..., Q)`.
    """
    width = knots.diff(dim=1).clamp(min=1e-6)
    inside = (x[..., None] - knots[:, :-1]).clamp(min=0).minimum(width)
    return levels[:, 0] + (inside * (levels.diff(dim=1) / width)).sum(-1)
