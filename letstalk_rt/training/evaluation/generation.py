"""Generates videos for the evaluation, by the streaming pipeline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.performance.performer import Performer
from letstalk_rt.training.data.audio_features import best_lag, correlation
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.evaluation.faces import FaceTrack, Landmarks, read_faces
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, MotionOptions, Portrait

_USUAL_MOTION = MotionOptions()


@dataclass(frozen=True)
class _Spoken:
    """The audio of a frame, as a performer sees it."""

    spoken: int
    segment_id: int = 0


@dataclass(frozen=True)
class GeneratedVideo:
    """A generated video and the face in it.

    Attributes:
        frames: `(T, H, W, 3)` uint8.
        track: The face in each frame, by the landmarker.
    """

    frames: np.ndarray
    track: FaceTrack


def as_portrait(frame: np.ndarray) -> Portrait:
    """Return a frame of a clip, which is aligned already, as a portrait."""
    return Portrait(canvas=frame.copy(), crop=frame.copy(), box=(0.0, 0.0, float(frame.shape[0])))


def with_crop_of(portrait: Portrait, size: int) -> Portrait:
    """Return a portrait whose crop has a side of `size` pixels."""
    side = portrait.crop.shape[0]
    if side == size:
        return portrait
    method = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
    return replace(portrait, crop=cv2.resize(portrait.crop, (size, size), interpolation=method))


def generate_frames(
    pipeline: AvatarPipeline,
    portraits: Sequence[Portrait],
    speech: np.ndarray,
    seed: int = 0,
    motion: MotionOptions = _USUAL_MOTION,
    performers: Sequence[Performer] = (),
) -> Iterator[np.ndarray]:
    """Animate portraits with speech, all in one batch.

    Args:
        pipeline: The model.
        portraits: B portraits of one canvas size; crops of another size than the model's are
            resized.
        speech: `(B, n)` float32 at 16 kHz, `n` a multiple of 640.
        seed: Seed of the first session; the others get the next numbers.
        motion: How the faces move.
        performers: Direct the sessions, one each; none by default.

    Yields:
        `(B, H, W, 3)` uint8, once for each frame of the speech.
    """
    size = pipeline.model.autoencoder.image_size
    states = [
        pipeline.init_state(with_crop_of(portrait, size), StateOptions(seed + index, motion=motion))
        for index, portrait in enumerate(portraits)
    ]
    batch, samples = speech.shape
    count = samples // SAMPLES_PER_FRAME
    needed = count + pipeline.lookahead_frames
    hops = -(-needed * SAMPLES_PER_FRAME // pipeline.hop)
    padded = np.zeros((batch, hops * pipeline.hop), np.float32)
    padded[:, :samples] = speech
    index, window = -pipeline.lookahead_frames, pipeline.frames_per_window
    for hop in range(hops):
        pcm = padded[:, hop * pipeline.hop : (hop + 1) * pipeline.hop]
        spoken = [_Spoken(SAMPLES_PER_FRAME * (0 <= index + n < count)) for n in range(window)]
        for state, performer in zip(states, performers, strict=False):
            at_s = (index + pipeline.lookahead_frames) / FPS
            if (direction := performer.window(spoken, now_s=at_s)) is not None:
                pipeline.direct(state, direction)
        frames = np.stack(pipeline.step(np.ascontiguousarray(pcm), states))
        for place in range(frames.shape[1]):
            if 0 <= index < count:
                yield frames[:, place]
            index += 1


def generate_videos(
    pipeline: AvatarPipeline,
    landmarker: Landmarks,
    portraits: Sequence[Portrait],
    speech: np.ndarray,
    seed: int = 0,
) -> list[GeneratedVideo]:
    """Generate one video for each portrait and its speech, and detect the faces."""
    frames = np.stack(list(generate_frames(pipeline, portraits, speech, seed)), 1)
    return [GeneratedVideo(video, read_faces(landmarker, video)) for video in frames]


def true_track(clip: Clip) -> FaceTrack:
    """Return the face of a clip's own video, from the data folder's landmarks."""
    return FaceTrack(clip.landmarks, np.ones(clip.num_frames, bool))


def mismatched_audio(clips: Sequence[Clip], index: int) -> np.ndarray:
    """Return the audio of a clip half the list away, cut or repeated to the clip's length."""
    clip, other = clips[index], clips[(index + len(clips) // 2) % len(clips)]
    return np.resize(other.pcm, clip.pcm.shape)


def opening_correlation(generated: FaceTrack, true: FaceTrack) -> tuple[float, int]:
    """Return r of generated against true mouth opening, and the best lag in frames."""
    count = min(len(generated.points), len(true.points))
    a, b = generated.opening[:count], true.opening[:count]
    return correlation(a, b), best_lag(a, b)[0]
