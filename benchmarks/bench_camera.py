"""Measures camera drive: how well an avatar follows filmed people, and how late.

`--data` drives a default avatar with the filmed clips of the split `eval` and compares driver and
avatar frame by frame, by MediaPipe and by a face recognition network that the model has never seen:
correlation of yaw, pitch and roll, the share of blinks that are shown, and the likeness to the
portrait over that of the driver to their own neutral look. It needs the extra `eval`.

`--page` drives the avatar with these clips once more as visitors do: each clip is the camera of
headless Chromium, and the avatar's frames come from the page of the server.

`--latency` shows that camera a film of a face that moves sideways once a second. It measures the
time from the middle of a move in the visitor's mirror to that in the avatar, and tells where the
time goes: `server_ms` has the stages of `letstalk_rt.metrics`, from the capture of a frame to its
playout. `--microphone` switches the microphone on, too: frames then wait for their sound. `--film`
shows a film of yours instead.

`--rate` runs a session as the server does, with the model in a process of its own, in real time:
sound as from a microphone and frames as from a webcam, 25 a second. It measures what is shown and
the processor time of each part, without the camera for a quarter of the time and then with it.

    python benchmarks/bench_camera.py --rate --seconds 60
    python benchmarks/bench_camera.py --data DATA --cache CACHE --clips 8
    python benchmarks/bench_camera.py --data DATA --cache CACHE --clips 8 --page --seconds 30
    python benchmarks/bench_camera.py --latency --seconds 60

The last line is JSON.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from camera_page import LEAST_MOTION, bench_latency, bench_page
from camera_rate import bench_rate
from card import commit, processor_name
from instruction_sets import add_option, run_limited
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.models.face.driver import NEUTRAL_FRAMES
from letstalk_rt.models.face.head_pose import head_angles
from letstalk_rt.models.geometry.landmarks import SUBSET, eye_openings
from letstalk_rt.threads import shorten_openmp_spin

WARM_UP = 15
"""Frames before the neutral look is known and the camera has faded in."""

_SHUT = 0.65  # share of the median opening below which an eye counts as closed
_NEAR = 2  # frames by which a blink may be off


def bench_drive(options: argparse.Namespace) -> dict[str, Any]:
    """Drive an avatar with filmed clips; return the figures of each and their means."""
    from letstalk_rt.inference.pipeline import AvatarPipeline
    from letstalk_rt.portrait.library import AvatarLibrary
    from letstalk_rt.training.data.dataset import landmarker_file, load_clips
    from letstalk_rt.training.evaluation.identity import Identity

    pipeline = AvatarPipeline.load(threads=options.threads)
    library = AvatarLibrary()
    portrait = library.prepare(library.find(options.avatar), pipeline.finder, size=options.size)
    clips = [c for c in load_clips(options.data, options.cache, "eval") if c.kind == "real"]
    clips = sorted(clips, key=lambda c: -float(head_angles(c.pose)[:, :3].std(0).mean()))
    judge, identity = Judge(landmarker_file(options.data)), Identity()
    still = identity.likeness(portrait.canvas, undriven(pipeline, portrait, 40))
    rows = []
    for clip in clips[: options.clips]:
        frames = driven(pipeline, portrait, clip, options)
        row = {"clip": clip.name, **compare(clip, frames, judge)}
        row |= likeness(identity, portrait, frames, clip, still)
        rows.append(row)
        if not options.json:
            print(json.dumps(row), flush=True)
    names = ("yaw", "pitch", "roll", "identity_ratio", "identity_true", "identity_undriven")
    means = {name: _mean([row[name] for row in rows]) for name in names}
    shown, blinked = (sum(row[k] for row in rows) for k in ("blinks_shown", "blinks"))
    means["blink_recall"] = shown / blinked if blinked else float("nan")
    means["seen"] = _mean([row["seen"] for row in rows])
    result: dict[str, Any] = {"drive": {"clips": rows, "mean": means}}
    if options.page:
        compared = partial(identity.likeness, portrait.canvas)
        result["page"] = drive_page(clips[: options.clips], rows, judge, compared, options)
    return result


def drive_page(
    clips: Sequence[Any],
    rows: Sequence[dict[str, Any]],
    judge: Any,
    likeness: Callable[[np.ndarray], float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Drive the avatar of the page with clips, each of them a browser's camera.

    Args:
        clips: the clips.
        rows: what was measured of each without the browser.
        judge: sees poses.
        likeness: returns the likeness of frames to the portrait.
        options: of the command line.
    """
    seen = []
    for clip, row in zip(clips, rows, strict=True):
        one = bench_page(clip, judge, likeness, head_angles(clip.pose), options)
        seen.append(one | {"identity_ratio": one["identity"] / row["identity_true"]})
        if not options.json:
            print(json.dumps(seen[-1]), flush=True)
    names = ("yaw", "pitch", "roll", "identity_ratio", "delay_ms")
    return {"clips": seen, "mean": {name: _mean([one[name] for one in seen]) for name in names}}


def likeness(
    identity: Any, portrait: Any, frames: np.ndarray, clip: Any, still: float
) -> dict[str, float]:
    """Return the likeness to the portrait over that of the driver to their own neutral look.

    A face that turns or laughs is less like its picture, whoever it is: so is the driver's. The
    ratio to the undriven avatar, which looks into the camera, is given beside it.
    """
    shown = range(WARM_UP, len(frames), 8)
    moved = identity.likeness(portrait.canvas, frames[list(shown)])
    rest = np.asarray(clip.frames[NEUTRAL_FRAMES // 2])
    true = identity.likeness(rest, np.asarray(clip.frames[list(shown)]))
    return {
        "identity_ratio": moved / true,
        "identity_true": true,
        "identity_undriven": moved / still,
    }


def driven(pipeline: Any, portrait: Any, clip: Any, options: argparse.Namespace) -> np.ndarray:
    """Return the frames of an avatar that is driven by a clip, frame by frame."""
    from letstalk_rt.inference.protocol import CameraStatus, StateOptions
    from letstalk_rt.models.face.face_motion import NUM_MOTION, DriveWindow

    reader, state = pipeline.open_camera(), pipeline.init_state(portrait, StateOptions())
    lips = options.lips or "camera"
    count = 4 * (min(options.frames, clip.num_frames) // 4)
    frames, last = [], np.zeros(NUM_MOTION, np.float32)
    for first in range(0, count, 4):
        motion, weights = [], []
        for index in range(first, first + 4):
            reading = reader.read(clip.frames[index], index / 25, absolute=False)
            last = last if reading.motion is None else reading.motion
            motion.append(last)
            weights.append(float(reading.status is CameraStatus.FACE))
        window = DriveWindow(np.array(weights, np.float32), np.stack(motion), lips)
        pipeline.steer(state, window.part)
        pcm = clip.pcm[None, first * 640 : (first + 4) * 640]
        frames.append(pipeline.step(np.ascontiguousarray(pcm), [state])[0])
    return np.concatenate(frames)


def undriven(pipeline: Any, portrait: Any, count: int) -> np.ndarray:
    """Return frames of the avatar's own life."""
    state = pipeline.init_state(portrait)
    silence = np.zeros((1, pipeline.hop), np.float32)
    return np.concatenate([pipeline.step(silence, [state])[0] for _ in range(count // 4)])[::4]


class Judge:
    """MediaPipe's face landmarker with head pose."""

    def __init__(self, model: Path | None) -> None:
        import mediapipe as mp
        from mediapipe.tasks.python import BaseOptions, vision

        self._mp = mp
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model)),
            running_mode=vision.RunningMode.IMAGE,
            output_facial_transformation_matrixes=True,
        )
        self._detector = vision.FaceLandmarker.create_from_options(options)

    def __call__(self, rgb: np.ndarray) -> tuple[np.ndarray, float] | None:
        """Return the pose `(4, 4)` and the opening of the eyes; None without a face."""
        data = np.ascontiguousarray(rgb)
        found = self._detector.detect(
            self._mp.Image(image_format=self._mp.ImageFormat.SRGB, data=data)
        )
        if not found.facial_transformation_matrixes:
            return None
        height, width = rgb.shape[:2]
        points = np.array([(p.x * width, p.y * height) for p in found.face_landmarks[0]])
        return np.array(found.facial_transformation_matrixes[0]), float(opening(points))


def compare(clip: Any, frames: np.ndarray, judge: Judge) -> dict[str, Any]:
    """Compare a driver with the avatar."""
    seen = [judge(frame) for frame in frames]
    found = np.array([one is not None for one in seen])
    found[:WARM_UP] = False
    avatar = head_angles(np.stack([one[0] if one else np.eye(4) for one in seen]))[found]
    driver = head_angles(clip.pose[: len(frames)])[found]
    out: dict[str, Any] = {"frames": len(frames), "seen": float(found[WARM_UP:].mean())}
    for axis, name in enumerate(("yaw", "pitch", "roll")):
        moves = driver[:, axis].std() > LEAST_MOTION
        r = np.corrcoef(driver[:, axis], avatar[:, axis])[0, 1] if moves else float("nan")
        out[name] = float(r)
        out[f"{name}_gain"] = float(np.polyfit(driver[:, axis], avatar[:, axis], 1)[0])
    ours = np.array([one[1] if one else np.nan for one in seen])
    spans = blinks(opening(clip.landmarks[: len(frames)]))
    closed = ours < _SHUT * np.nanmedian(ours)
    shown = [s for s in spans if closed[max(0, s[0] - _NEAR) : s[1] + _NEAR].any()]
    return out | {"blinks": len(spans), "blinks_shown": len(shown)}


def opening(points: np.ndarray) -> np.ndarray:
    """Return the opening of the eyes over their width, `(...,)`, of meshes `(..., 478, 2)`."""
    return np.asarray(eye_openings(points[..., SUBSET, :]).mean(-1))


def blinks(opened: np.ndarray) -> list[tuple[int, int]]:
    """Return the first frame of each blink after the warm-up, and the first frame after it."""
    closed = opened < _SHUT * np.median(opened)
    closed[:WARM_UP] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], closed, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a <= 15]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--data", type=Path, help="data folder; drive an avatar with its clips")
    add("--cache", type=Path, default=Path("cache"), help="folder of decoded frames")
    add("--clips", type=int, default=8, help="how many clips, those with most motion first")
    add("--frames", type=int, default=250, help="of each clip, at most")
    add("--avatar", default="mira")
    add("--size", type=int, default=512)
    add("--lips", choices=("sound", "camera", "blend"), help="(camera; with --rate sound)")
    add("--rate", action="store_true", help="measure the frame rate in real time")
    add("--threads", type=int)
    add("--latency", action="store_true", help="measure the delay in Chromium")
    add("--page", action="store_true", help="send a clip through Chromium, too; needs --data")
    add("--microphone", action="store_true", help="measure the delay with a live microphone")
    add("--film", type=Path, help="film (y4m, mjpeg) for Chromium's fake camera")
    add("--seconds", type=float, default=60)
    add("--screenshot", type=Path)
    add("--output", type=Path, help="write the result to a file, too")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line of the result only")
    add_option(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the wanted parts and print the result as JSON."""
    shorten_openmp_spin()
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(words)
    if options.data is None and not options.latency and not options.rate:
        raise SystemExit("choose --data DATA, --rate, --latency or several of them")
    run_limited(options.isa, __file__, words)
    result: dict[str, Any] = {
        "version": __version__,
        "commit": commit(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "isa": options.isa,
    }
    with time_limit(limit_s(options, 1800.0), result):
        if options.rate:
            result["rate"] = bench_rate(options)
        if options.data is not None:
            result |= bench_drive(options)
        if options.latency:
            result["latency"] = bench_latency(options)
    if options.output is not None:
        options.output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
