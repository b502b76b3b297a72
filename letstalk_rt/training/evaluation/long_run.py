"""The long run: ten minutes of speech by one portrait, for drift from slice to slice, and speed."""

import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.training.data.audio_features import correlation
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.evaluation.clips import EvaluationModels, EvaluationResult, Row, mean
from letstalk_rt.training.evaluation.faces import FaceTrack, blink_rate, head_range, read_faces
from letstalk_rt.training.evaluation.generation import generate_frames, true_track
from letstalk_rt.training.evaluation.reconstruction import sharpness
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, Portrait

SLICE_S = 10
CANVAS_PX = 512
SPEED_S = 20
TRACKED_FIGURES = ("identity", "sharpness", "mouth_corr", "opening", "seam_flicker", "head_range",
            "blinks", "brightness")  # fmt: skip
"""Figures of a slice whose slope over the run is reported."""


class TimedFrames:
    """An iterator that measures how long each item took."""

    def __init__(self, frames: Iterator[np.ndarray]) -> None:
        self._frames = frames
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the items."""
        while True:
            started_s = time.monotonic()
            try:
                frame = next(self._frames)
            except StopIteration:
                return
            self.seconds.append(time.monotonic() - started_s)
            yield frame

    def figures(self, window: int) -> dict[str, float]:
        """Return frames per second and the 99th percentile of a window's time in ms.

        All frames of a window come with its first one, so the slowest frames are the windows.
        """
        slowest = sorted(self.seconds)[-max(len(self.seconds) // window, 1) :]
        return {
            "fps": len(self.seconds) / sum(self.seconds),
            "window_p99_ms": 1000 * float(np.percentile(slowest, 99)),
        }


def large_portrait(frame: np.ndarray) -> Portrait:
    """Return a clip's frame as a portrait whose crop fills a 512 px canvas."""
    canvas = np.asarray(Image.fromarray(frame).resize((CANVAS_PX, CANVAS_PX)))
    return Portrait(canvas.copy(), frame.copy(), (0.0, 0.0, float(CANVAS_PX)))


def measure_speed(
    pipeline: AvatarPipeline, portrait: Portrait, clips: Sequence[Clip], seconds: int = SPEED_S
) -> dict[str, float]:
    """Measure the speed of one session from audio to composited frame, after one second."""
    audio, _ = long_speech(clips, seconds)
    for _ in generate_frames(pipeline, [portrait], audio[None, : FPS * SAMPLES_PER_FRAME]):
        pass
    timed = TimedFrames(generate_frames(pipeline, [portrait], audio[None]))
    for _ in timed:
        pass
    return timed.figures(pipeline.frames_per_window)


def run_long(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    portrait: Portrait,
    clips: Sequence[Clip],
    seconds: int,
    findings: EvaluationResult,
) -> None:
    """Animate a portrait for `seconds` without a pause; add the figures of slices and slopes."""
    seconds -= seconds % SLICE_S
    audio, openings = long_speech(clips, seconds)
    still = read_faces(models.landmarker, [portrait.canvas])
    box = _face_box(still.points[0], portrait.canvas.shape)
    timed = TimedFrames(generate_frames(pipeline, [portrait], audio[None], seed=11))
    frames = tqdm(timed, total=seconds * FPS, desc="long run", file=sys.stderr)
    slice_, held = Slice(models, portrait, box), []
    for index, batch in enumerate(frames):
        slice_.add(batch[0], (index + pipeline.lookahead_frames) % pipeline.frames_per_window == 0)
        if slice_.count == SLICE_S * FPS:
            start = index + 1 - slice_.count
            findings.slices.append(slice_.close(start / FPS, openings[start : index + 1]))
            held.append(batch[0])
    findings.sheets.append(("long run, one frame per minute", _strip(held)))
    findings.figures |= timed.figures(pipeline.frames_per_window)
    findings.figures |= _long_figures(findings)


class Slice:
    """Collects the measurements of ten seconds, one slice after the other.

    Args:
        models: The networks that measure.
        portrait: The animated portrait.
        box: Left, top, right and bottom of the face on the canvas.
    """

    def __init__(
        self, models: EvaluationModels, portrait: Portrait, box: tuple[int, int, int, int]
    ) -> None:
        self._models, self._portrait, self._box = models, portrait, box
        self._sharp = self._sharpness(portrait.canvas)
        self._last: np.ndarray | None = None
        self._clear()

    @property
    def count(self) -> int:
        """The number of frames collected."""
        return len(self._points)

    def add(self, frame: np.ndarray, at_seam: bool) -> None:
        """Add the next frame; `at_seam` is true for the first frame of a window."""
        if self._last is not None:
            change = np.abs(frame.astype(np.int16) - self._last).mean()
            self._changes[at_seam].append(float(change))
        self._last = frame.astype(np.int16)
        self._points.append(self._models.landmarker(frame))
        if self.count % FPS == 0:
            self._kept.append(frame)

    def close(self, start_s: float, openings: np.ndarray) -> Row:
        """Return the row of the slice from `start_s` on; `openings` are the true ones."""
        points = iter(self._points)
        track: FaceTrack = read_faces(lambda _: next(points), self._kept[:1] * self.count)
        kept = np.stack(self._kept)
        row: Row = {
            "start_s": start_s,
            "identity": self._models.likeness(self._portrait.canvas, kept),
            "sharpness": float(np.mean([self._sharpness(f) for f in kept])) / self._sharp,
            "mouth_corr": correlation(track.opening, openings),
            "opening": float(track.opening.mean()),
            "seam_flicker": float(np.mean(self._changes[True]) / np.mean(self._changes[False])),
            "head_range": head_range(track),
            "blinks": blink_rate(track),
            "brightness": float(kept.mean()),
            "faces_missing": track.missing,
        }
        self._clear()
        return row

    def _clear(self) -> None:
        self._points: list[np.ndarray | None] = []
        self._kept: list[np.ndarray] = []
        self._changes: dict[bool, list[float]] = {True: [], False: []}

    def _sharpness(self, frame: np.ndarray) -> float:
        left, top, right, bottom = self._box
        cut = torch.from_numpy(frame[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
        return float(sharpness(cut.float() / 127.5 - 1)[0])


def slope(times_min: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return the slope of values per minute, and its p-value."""
    from scipy.stats import linregress

    known = np.isfinite(values)
    if known.sum() < 3 or np.ptp(values[known]) == 0:
        return (0.0, 1.0) if known.any() else (float("nan"), float("nan"))
    line = linregress(times_min[known], values[known])
    return float(line.slope), float(line.pvalue)


def _long_figures(findings: EvaluationResult) -> dict[str, float | int | str | None]:
    """Return means and slopes over the slices.

    `drift` is the change of identity over the whole run as a share of its mean.
    """
    rows = findings.slices
    times = np.array([row["start_s"] for row in rows], float) / 60
    figures: dict[str, float | int | str | None] = {"long_s": len(rows) * SLICE_S}
    for name in TRACKED_FIGURES:
        rate, chance = slope(times, np.array([row[name] for row in rows], float))
        figures |= {
            f"long_{name}": mean(rows, name),
            f"drift_{name}_per_min": rate,
            f"drift_{name}_p": chance,
        }
    minutes = len(rows) * SLICE_S / 60
    for name, key in (("identity", "drift"), ("sharpness", "drift_sharpness")):
        rate = float(figures[f"drift_{name}_per_min"] or 0.0)
        figures[key] = rate * minutes / mean(rows, name)
    true = findings.figures.get("identity_true")
    if isinstance(true, float):
        figures["long_identity_ratio"] = mean(rows, "identity") / true
    return figures


def long_speech(clips: Sequence[Clip], seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the audio of held-out clips in sequence, and the true mouth opening per frame."""
    chosen = [c for c in clips if c.has_audio and c.kind == "real"] or list(clips)
    audio = np.concatenate([c.pcm for c in chosen])
    openings = np.concatenate([true_track(c).opening for c in chosen])
    frames = seconds * FPS
    return np.resize(audio, frames * SAMPLES_PER_FRAME), np.resize(openings, frames)


def _face_box(points: np.ndarray, shape: Sequence[int]) -> tuple[int, int, int, int]:
    low, high = points.min(0), points.max(0)
    left, top = np.clip(low, 0, None).astype(int)
    right, bottom = np.clip(high, 16, [shape[1], shape[0]]).astype(int)
    return min(int(left), int(right) - 16), min(int(top), int(bottom) - 16), int(right), int(bottom)


def _strip(frames: list[np.ndarray], count: int = 10) -> np.ndarray:
    """Return frames side by side, evenly spaced in time."""
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int)
    return np.concatenate([frames[i][::2, ::2] for i in chosen], 1)
