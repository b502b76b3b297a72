"""Gestures: how head, brows and gaze move with speech, and when the eyes blink.

A recurrent network reads prosody and the latest motion, and predicts a mixture of normal
distributions of what comes next, from which one sample is drawn for each window. So heads hold
still and then move, as people's do, instead of swaying evenly. Motion is a spline: what is drawn
are its coefficients, one for each window.

Source: mixture density networks, Bishop 1994; for recurrent networks, Graves, arXiv:1308.0850.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.prosody import LOUDNESS, NUM_PROSODY_VALUES, ProsodyReader
from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.face.head_motion import MOVEMENTS
from letstalk_rt.models.face.spline import COEFFICIENTS, SPAN, continue_from, span_weights

GESTURES = ("head_1", "head_2", "head_3", "head_4", "brows", "gaze_x", "gaze_y")
"""Names of the gestures. The first four are the components of `HeadMotion`, in its standard
deviations. Brows are a sum of blendshapes: raised minus lowered. Gaze is the offset of the irises
that head motion does not explain, in face sizes."""

NUM_GESTURES = len(GESTURES)
HEAD, BROWS, GAZE = slice(0, MOVEMENTS), slice(4, 5), slice(5, 7)

NUM_NOISE = NUM_GESTURES + 2
"""Normal numbers that one window needs: for the motion, the choice of a mode, and the blink."""

BLINK = (0.35, 0.9, 1.0, 0.65, 0.3, 0.1)
"""How far the eyes are closed in each frame of a blink: 240 ms, closing faster than opening."""

LEAST_PAUSE = 20
"""Frames from the beginning of one blink to the earliest beginning of the next."""

_KEPT = 34  # frames of history: as many as an interrupt may rewind, and two to continue from
_LONG_AGO = 1000.0  # frames since the last blink in a new session
_STEP = 0.35  # share of the new window in the smoothed loudness
_LOUDNESS_RANGE = (-0.8, 1.0)  # pauses of speech; long silence, which clips lack, counts as one
_UNUSUAL = 2.0  # deviations of prosody that the network hears no more of: digital silence
_FREE, _MARGIN = 2.5, 1.5  # coefficients are bounded smoothly between these two and their sum
_FRAMES_PER_MIN = 1500.0
_MAX_LOG_SCALE, _MIN_LOG_SCALE = 2.0, -5.0


@dataclass(frozen=True)
class GestureConfig:
    """Shape of the gesture network.

    Attributes:
        audio_width: channels of the prosody of a window.
        width: channels of the recurrent layer.
        modes: normal distributions in the mixture.
        dropout: dropout rate while training.
        lookahead_ms: 0, 40, 80 or 160; that of the audio encoder.
    """

    audio_width: int = 24
    width: int = 48
    modes: int = 3
    dropout: float = 0.2
    lookahead_ms: int = 80


@dataclass
class GestureState:
    """The gestures of a batch of sessions, updated in place.

    Attributes:
        shown: gestures in the last frames, oldest first, `(B, 34, D)`.
        spline: the last three coefficients, `(B, 3, D)`.
        hidden: state of the recurrent layer, `(B, H)`.
        loudness: smoothed loudness, `(B, 1)`.
        since_blink: frames since the last blink began, `(B, 1)`.
        blinks_per_min: mean number of blinks per minute, a setting that stays, `(B, 1)`.
    """

    shown: Tensor
    spline: Tensor
    hidden: Tensor
    loudness: Tensor
    since_blink: Tensor
    blinks_per_min: Tensor

    def reset(self) -> None:
        """Return to the state of a new session: the face at rest."""
        for part in (self.shown, self.spline, self.hidden, self.loudness):
            part.zero_()
        self.since_blink.fill_(_LONG_AGO)

    def rewind(self, frames: int) -> None:
        """Take back the last frames, which were not shown; motion continues from the one before."""
        frames = min(frames, _KEPT - 3)
        if not frames:
            return
        kept = self.shown[:, : _KEPT - frames].clone()
        self.shown.zero_()[:, frames:] = kept
        self.spline.copy_(continue_from(kept[:, -3:]))
        begun = self.since_blink - frames
        self.since_blink.copy_(torch.where(begun < 0, float(LEAST_PAUSE), begun))


@dataclass(frozen=True)
class GestureWindow:
    """The gestures of the frames of a window.

    Attributes:
        motion: `(B, N, D)`, see `GESTURES`.
        eye_closures: how far the eyes are closed, `(B, N)` in [0, 1].
    """

    motion: Tensor
    eye_closures: Tensor


@dataclass(frozen=True)
class Mixture:
    """A mixture of K normal distributions of the next coefficients, minus their expectation.

    Attributes:
        logits: of the weights, `(..., K)`.
        means: `(..., K, D)`.
        log_scales: `(..., K, D)`.
        expected: the coefficients if nothing pushes the head, `(..., D)`.
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    expected: Tensor

    def log_likelihood(self, target: Tensor) -> Tensor:
        """Return the log-density of coefficients `(..., D)`, `(...,)`."""
        surprise = (target - self.expected)[..., None, :]
        z = (surprise - self.means) * (-self.log_scales).exp()
        each = -0.5 * z**2 - self.log_scales - 0.9189385
        return torch.logsumexp(self.logits.log_softmax(-1) + each.sum(-1), -1)

    def sample(self, noise: Tensor, choice: Tensor, gain: Tensor) -> Tensor:
        """Draw coefficients, `(B, D)`.

        Args:
            noise: normal numbers, `(B, D)`.
            choice: uniform numbers that choose the mode, `(B, 1)`.
            gain: factor on what differs from the expectation, `(B, 1)`.
        """
        passed = (self.logits.softmax(-1).cumsum(-1) < choice).sum(-1)
        mode = passed.clamp(max=self.logits.shape[-1] - 1)[:, None, None]
        mode = mode.expand(-1, 1, self.means.shape[-1])
        mean, scale = (x.gather(1, mode)[:, 0] for x in (self.means, self.log_scales))
        return _bounded(self.expected + gain * (mean + scale.exp() * noise))


class Gestures(nn.Module):
    """The network, its calibration, and how faces show gestures; no motion before it is fitted.

    Args:
        config: shape.

    Attributes:
        prosody: reads prosody from audio.
        amplitude: size of each gesture as shown, `(D,)`.
        speech_gain: how much livelier loud speech is.
        blink_weights: how blinks depend on loudness: now, smoothed, and a constant, `(3,)`.
        brow_motion: the face part of the latent per unit of the brows, `(256,)`.
    """

    amplitude: Tensor
    speech_gain: Tensor
    blink_weights: Tensor
    brow_motion: Tensor
    prosody_mean: Tensor
    prosody_scale: Tensor
    weights: Tensor

    def __init__(self, config: GestureConfig | None = None) -> None:
        super().__init__()
        self.config = config or GestureConfig()
        c, inputs = self.config, SPAN * NUM_PROSODY_VALUES
        self.prosody = ProsodyReader(c.lookahead_ms)
        self.enter = nn.Linear(inputs, c.audio_width)
        self.recurrent = nn.GRU(c.audio_width + 3 * NUM_GESTURES, c.width, batch_first=True)
        self.leave = nn.Linear(c.width, c.modes * (1 + 2 * NUM_GESTURES))
        self.inertia = nn.Parameter(torch.tensor([1.0, 0.5, 0.0])[:, None].repeat(1, NUM_GESTURES))
        self.log_scale = nn.Parameter(-torch.ones(NUM_GESTURES))
        self.register_buffer("prosody_mean", torch.zeros(inputs))
        self.register_buffer("prosody_scale", torch.ones(inputs))
        self.register_buffer("amplitude", torch.zeros(NUM_GESTURES))
        self.register_buffer("speech_gain", torch.zeros(()))
        self.register_buffer("blink_weights", torch.zeros(3))
        self.register_buffer("brow_motion", torch.zeros(FACE_SIZE))
        self.register_buffer("weights", span_weights(), persistent=False)

    def init_state(self, batch_size: int, blinks_per_min: float = 0.0) -> GestureState:
        """Create the state of new sessions."""

        def zeros(*shape: int) -> Tensor:
            return self.amplitude.new_zeros(batch_size, *shape)

        return GestureState(
            shown=zeros(_KEPT, NUM_GESTURES),
            spline=zeros(COEFFICIENTS - 1, NUM_GESTURES),
            hidden=zeros(self.config.width),
            loudness=zeros(1),
            since_blink=zeros(1) + _LONG_AGO,
            blinks_per_min=zeros(1) + blinks_per_min,
        )

    def forward(self, prosody: Tensor, noise: Tensor, state: GestureState) -> GestureWindow:
        """Return the gestures of the next windows.

        Args:
            prosody: `(B, W * 4, P)` from the prosody reader.
            noise: independent normal numbers, `(B, W, NUM_NOISE)`.
            state: updated in place.
        """
        windows = prosody.unflatten(1, (-1, SPAN))
        assert windows.shape[1] == noise.shape[1], (prosody.shape, noise.shape)
        motion, closures = [], []
        for index in range(windows.shape[1]):
            coefficients = self._next(windows[:, index], noise[:, index], state)
            motion.append(self.amplitude * (self.weights @ coefficients))
            closures.append(self._blink(windows[:, index], noise[:, index, -1:], state))
            shown = torch.cat([state.shown[:, SPAN:], self.weights @ coefficients], 1)
            state.shown.copy_(shown)
        return GestureWindow(torch.cat(motion, 1), torch.cat(closures, 1))

    def predict(
        self, prosody: Tensor, past: Tensor, hidden: Tensor | None = None
    ) -> tuple[Mixture, Tensor]:
        """Predict the next coefficients of W windows.

        Args:
            prosody: `(B, W, 4, P)`.
            past: the last three coefficients before each window, `(B, W, 3, D)`.
            hidden: state of the recurrent layer, `(1, B, H)`; zeros if None.

        Returns:
            The mixture, with `...` as `B, W`, and the new state of the recurrent layer.
        """
        p = self.config.dropout
        heard = (prosody.flatten(2) - self.prosody_mean) / self.prosody_scale
        heard = heard.clamp(-_UNUSUAL, _UNUSUAL)
        heard = F.gelu(self.enter(F.dropout(heard, p, self.training)))
        newest, velocity = past[:, :, 2], past[:, :, 2] - past[:, :, 1]
        before = past[:, :, 1] - past[:, :, 0]
        course = torch.cat([heard, newest, 2 * velocity, 2 * before], 2)
        h, hidden = self.recurrent(course, hidden)
        out = self.leave(F.dropout(h, p, self.training))
        modes = self.config.modes
        logits, means, scales = out.split([modes, *[modes * NUM_GESTURES] * 2], -1)
        log_scales = self.log_scale + scales.unflatten(-1, (modes, -1))
        expected = self.inertia[0] * newest + self.inertia[1] * velocity + self.inertia[2] * before
        mixture = Mixture(
            logits,
            0.3 * means.unflatten(-1, (modes, -1)),
            log_scales.clamp(_MIN_LOG_SCALE, _MAX_LOG_SCALE),
            expected,
        )
        return mixture, hidden

    def _next(self, prosody: Tensor, noise: Tensor, state: GestureState) -> Tensor:
        """Draw the next coefficients; return those of the window, `(B, 4, D)`."""
        state.loudness.lerp_(window_loudness(prosody), _STEP)
        mixture, hidden = self.predict(prosody[:, None], state.spline[:, None], state.hidden[None])
        state.hidden.copy_(hidden[0])
        now = Mixture(
            mixture.logits[:, 0],
            mixture.means[:, 0],
            mixture.log_scales[:, 0],
            mixture.expected[:, 0],
        )
        gain = (self.speech_gain * _clamped(state.loudness)).exp()
        drawn = now.sample(noise[:, :NUM_GESTURES], _uniform(noise[:, -2:-1]), gain)
        coefficients = torch.cat([state.spline, drawn[:, None]], 1)
        state.spline.copy_(coefficients[:, 1:])
        return coefficients

    def _blink(self, prosody: Tensor, noise: Tensor, state: GestureState) -> Tensor:
        """Return how far the eyes are closed in the frames of the next window, `(B, 4)`."""
        rate = self.blink_rate(window_loudness(prosody), state.loudness, state.blinks_per_min)
        chance = 1 - torch.exp(-SPAN * rate)
        draw = _uniform(noise)
        due = (draw < chance) & (state.since_blink >= LEAST_PAUSE)
        start = (SPAN * draw / chance.clamp(min=1e-9)).floor().clamp(max=SPAN - 1)
        frames = torch.arange(SPAN, device=noise.device)
        since = torch.where(due & (frames >= start), frames - start, state.since_blink + frames)
        state.since_blink.copy_(since[:, -1:] + 1).clamp_(max=_LONG_AGO)
        table = F.pad(since.new_tensor(BLINK), (0, 1))
        closures: Tensor = table[since.clamp(max=len(BLINK)).long()]
        return closures

    def blink_rate(self, now: Tensor, smoothed: Tensor, per_min: Tensor) -> Tensor:
        """Return how many blinks are expected per frame, once the least pause is over, `(B, 1)`."""
        usual = 1 / (_FRAMES_PER_MIN / per_min.clamp(min=1e-6) - LEAST_PAUSE)
        on_now, on_smoothed, constant = self.blink_weights
        factor = on_now * _clamped(now) + on_smoothed * _clamped(smoothed) + constant
        rate: Tensor = usual * factor.exp()
        return rate

    def blink_inputs(self, prosody: Tensor) -> Tensor:
        """Return what blinks depend on in windows `(B, W, 4, P)`: loudness and its mean."""
        now, smoothed = window_loudness(prosody), []
        level = now.new_zeros(len(now), 1)
        for index in range(now.shape[1]):
            level = level.lerp(now[:, index], _STEP)
            smoothed.append(level)
        return torch.cat([_clamped(now), _clamped(torch.stack(smoothed, 1))], 2)


def window_loudness(prosody: Tensor) -> Tensor:
    """Return the mean loudness of windows `(..., 4, P)`, `(..., 1)`."""
    return prosody[..., LOUDNESS].mean((-2, -1))[..., None]


def _clamped(loudness: Tensor) -> Tensor:
    return loudness.clamp(*_LOUDNESS_RANGE)


def _uniform(normal: Tensor) -> Tensor:
    """Map normal numbers to uniform ones in (0, 1)."""
    uniform: Tensor = torch.special.ndtr(normal)
    return uniform


def _bounded(x: Tensor) -> Tensor:
    """Bound coefficients smoothly, so that a rare large sample does not turn the face away."""
    beyond = (x.abs() - _FREE).clamp(min=0)
    return x - x.sign() * (beyond - _MARGIN * torch.tanh(beyond / _MARGIN))
