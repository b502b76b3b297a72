"""Makes the videos whose whole face is compared with the true one, and compares them by kind.

Beside what a session shows there are videos for scale: decoded from the latents of the true frames,
which show what the decoder can, and generated without a part of the model.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.frame_decoder import FrameDetails
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.metrics import NoClock
from letstalk_rt.models.motion.code import NUM_MOTION
from letstalk_rt.models.motion.denoiser import MotionDenoiser
from letstalk_rt.models.parts import MOTION
from letstalk_rt.training.data.dataset import MAX_SHIFT, Clip
from letstalk_rt.training.evaluation.generation import as_portrait, generate_frames
from letstalk_rt.training.evaluation.whole_face import (
    FaceMotion,
    MotionTracker,
    changed_variance,
    compare,
    expression,
    lip_agreement,
    lost_variance,
    true_motion,
)
from letstalk_rt.types import SAMPLES_PER_FRAME

WITHOUT = ("denoiser", "memory")
"""Parts without which videos can be generated."""

FRAMES = 150
"""The most frames of a clip."""

LEAST_FRAMES = 16

_KINDS: dict[str, Callable[[Clip], bool]] = {
    "filmed": lambda clip: clip.kind == "real" and not clip.is_grid,
    "grid": lambda clip: clip.is_grid,
    "generated": lambda clip: clip.kind == "generated",
}

Motions = dict[str, FaceMotion]
"""Motion by the name of the clip."""


def evaluate_whole_face(
    pipeline: AvatarPipeline,
    tracker: MotionTracker,
    clips: Sequence[Clip],
    *,
    without: Sequence[str] = (),
    frames: int = FRAMES,
) -> dict[str, float]:
    """Compare the whole face in generated videos with the true one.

    Args:
        pipeline: the model.
        tracker: reads faces in shown frames.
        clips: clips of the eval split.
        without: parts of the model, of `WITHOUT`, without which videos are made as well.
        frames: the most frames of a clip.

    Returns:
        Figures by name, each preceded by the kind of clips: `filmed_`, `grid_` or `generated_`;
        before that `latents_` for videos decoded from the latents of the true frames.

    Raises:
        ConfigError: there is no such part.
        InputError: no clip has audio and is long enough.
    """
    if unknown := set(without) - set(WITHOUT):
        raise ConfigError(f"unknown part {', '.join(unknown)}; known: {', '.join(WITHOUT)}")
    spoken = [clip for clip in clips if clip.has_audio and clip.num_frames >= LEAST_FRAMES]
    if not spoken:
        raise InputError(
            f"no clip has audio and {LEAST_FRAMES} frames; add such clips to the split `eval`"
        )
    shown = _motions(pipeline, tracker, spoken, frames, "shown")
    figures = _by_kind("", shown, spoken, frames)
    if pipeline.model.face is not None:
        decoded = {
            clip.name: tracker(decoded_frames(pipeline, clip, frames))
            for clip in tqdm(spoken, desc="latents of true frames", file=sys.stderr)
        }
        figures |= _by_kind("latents_", decoded, spoken, frames)
    for part in without:
        with left_out(pipeline, part):
            other = _motions(pipeline, tracker, spoken, frames, f"without {part}")
        figures |= _by_kind(f"without_{part}_", other, spoken, frames)
        figures[f"without_{part}_lost_variance"] = lost_variance(shown, other)
        figures[f"without_{part}_changed_variance"] = changed_variance(shown, other)
    return figures


def _motions(
    pipeline: AvatarPipeline,
    tracker: MotionTracker,
    clips: Sequence[Clip],
    frames: int,
    what: str,
) -> Motions:
    """Return the motion in videos generated from first frame and audio of each clip.

    Each has a seed of its own: chance, such as when eyes blink, is not the same in all of them.
    """
    motions = {}
    for seed, clip in enumerate(tqdm(clips, desc=what, file=sys.stderr)):
        speech = clip.pcm[None, : frames * SAMPLES_PER_FRAME]
        portrait = as_portrait(np.asarray(clip.frames[0]))
        video = np.concatenate(list(generate_frames(pipeline, [portrait], speech, seed)))
        motions[clip.name] = tracker(video)
    return motions


def _by_kind(prefix: str, motions: Motions, clips: Sequence[Clip], frames: int) -> dict[str, float]:
    """Return the figures of each kind of clips."""
    figures: dict[str, float] = {}
    for kind, belongs in _KINDS.items():
        chosen = [clip for clip in clips if belongs(clip)]
        if chosen:
            found = _figures(motions, chosen, frames)
            figures |= {f"{prefix}{kind}_{name}": value for name, value in found.items()}
    return figures


def _figures(motions: Motions, clips: Sequence[Clip], frames: int) -> dict[str, float]:
    pairs, rows = [], []
    for clip in clips:
        ours, true = motions[clip.name].channels, true_motion(clip, frames).channels
        count = min(len(ours), len(true))
        pairs.append((ours[:count], true[:count]))
        of_true = expression(true[:count], clip.pcm)
        late = clip.lips_late if abs(clip.lips_late) <= MAX_SHIFT else 0
        rows.append(
            expression(ours[:count], clip.pcm)
            | lip_agreement(ours[:count], true[:count], late)
            | {f"{name}_true": value for name, value in of_true.items()}
        )
    means = {name: _mean([row[name] for row in rows]) for name in rows[0]}
    return compare(pairs) | means | {"clips": float(len(clips))}


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


@torch.inference_mode()
def decoded_frames(pipeline: AvatarPipeline, clip: Clip, frames: int) -> np.ndarray:
    """Return the frames that a session shows if its latents are those of the true frames.

    Eyes are closed as far as the latents say, and the mouth painter hears nothing.

    Returns:
        `(T, H, W, 3)` uint8.
    """
    face = pipeline.model.face
    assert face is not None, "latents with landmarks"
    state = pipeline.init_state(as_portrait(np.asarray(clip.frames[0])))
    picture = state[PictureState]
    decoder, window = pipeline.frame_decoder, pipeline.frames_per_window
    shown: list[np.ndarray] = []
    count = min(frames, clip.num_frames) // window * window
    for first in range(0, count, window):
        true = torch.from_numpy(np.array(clip.frames[first : first + window]))
        pixels = true.permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = face.autoencoder.encode(pixels[None].to(pipeline.device))
        details = [FrameDetails([(0.0, 0.0)] * window, None)]
        parts = decoder.decode(decoder.prepare(latents, [picture]), details, [picture], NoClock())
        shown.extend(part[0] for part in parts)
    return np.concatenate(shown)


@contextmanager
def left_out(pipeline: AvatarPipeline, part: str) -> Iterator[None]:
    """Generate without a part of the model while the context lasts.

    Args:
        pipeline: the model.
        part: `denoiser`: it generates no motion; `memory`: it sees the anchor alone.

    Raises:
        ConfigError: the denoiser caches its memory, which then cannot be left out.
    """
    model: Any = pipeline.model
    owner, name = model, "sample_window"
    changed: Callable[..., Any] = _no_motion
    if (motion := model.get(MOTION)) is not None:
        owner, name = motion, "forward"
        changed = _at_rest if part == "denoiser" else _without_memory(motion)
    elif part == "memory":
        if model.denoiser.config.cached:
            raise ConfigError(
                f"preset {model.preset.name!r} caches its memory, which cannot be left out; "
                "expected a preset without a cache, such as 'tiny'"
            )
        owner, name = model.denoiser, "encode_memory"
        changed = _anchor_alone(owner.encode_memory)
    setattr(owner, name, changed)
    try:
        yield
    finally:
        delattr(owner, name)


def _no_motion(noise: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros_like(noise)


def _at_rest(features: Tensor, *_: Any, **__: Any) -> Tensor:
    return features.new_zeros(*features.shape[:2], NUM_MOTION)


def _without_memory(motion: MotionDenoiser) -> Callable[..., Tensor]:
    """Return the denoiser's `forward` with the memory of a new session in each window."""
    forward: Callable[..., Tensor] = motion.forward

    def changed(*inputs: Any, **settings: Any) -> Tensor:
        *others, memory = inputs
        return forward(*others, motion.init_memory(len(memory.codes)), **settings)

    return changed


def _anchor_alone(encode: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    def encode_anchor(latents: Tensor, filled: Tensor) -> Any:
        seen = torch.zeros_like(filled)
        seen[:, 0] = True
        return encode(latents, seen)

    return encode_anchor
