"""Prepares one raw video: the work of one process."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from letstalk_rt.errors import InputError, LetsTalkError
from letstalk_rt.models.face.detector import head_yaw
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.training.data.dataset import SYNC_LAG_IN_STEP
from letstalk_rt.training.prepare.clips import (
    ClipWriter,
    Cut,
    Dropped,
    Limits,
    crop_frame,
    cut_track,
    model_points,
    write_sound,
    write_tracks,
)
from letstalk_rt.training.prepare.faces import FoundFace, follow_one
from letstalk_rt.training.prepare.landmarkers import FrameLandmarker
from letstalk_rt.training.prepare.segments import RawVideo, Segment
from letstalk_rt.training.prepare.shots import ShotDetector
from letstalk_rt.training.prepare.sound import (
    REACH,
    SyncMeter,
    best_offset,
    gain_to,
    loudness,
    separate,
)
from letstalk_rt.training.prepare.video import probe, read_frames, read_sound
from letstalk_rt.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

SILENT_LUFS = -60.0
"""Loudness below which a recording counts as silent."""


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of a preparation; all videos of a data folder are prepared with the same.

    Attributes:
        size: Side of the crops, px.
        min_s: Shortest clip, in seconds.
        max_s: Longest clip, in seconds.
        max_enlarge: By how much a crop may be enlarged to `size`.
        max_other: Height of a second face over that of the followed one from which on a shot is
            dropped.
        loudness: Loudness that sound is brought to, in LUFS.
        min_sync: Pearson's r of lips and sound below which a clip is dropped.
        landmarks: `mediapipe` or `own`.
        separate: Command that separates speech from music; empty for none.
        match_faces: Whether faces are recognised, so that one person in several videos is known.
    """

    size: int = 512
    min_s: float = 3.0
    max_s: float = 20.0
    max_enlarge: float = 1.25
    max_other: float = 0.6
    loudness: float = -23.0
    min_sync: float = 0.15
    landmarks: str = "mediapipe"
    separate: str = ""
    match_faces: bool = False

    @property
    def limits(self) -> Limits:
        """What a clip must be like."""
        shortest, longest = round(self.min_s * FPS), round(self.max_s * FPS)
        return Limits(self.size, shortest, longest, self.max_enlarge)


@dataclass
class Tools:
    """The networks that a process keeps from one video to the next.

    Attributes:
        landmarker: Makes a landmarker for a segment.
        sync: Measures the offset of lips and sound.
        embed: A face embedding of a frame, or None without a face; None if not asked for.
    """

    landmarker: Callable[[], FrameLandmarker]
    sync: SyncMeter
    embed: Callable[[np.ndarray], np.ndarray | None] | None = None


def prepare_video(video: RawVideo, output: Path, config: PrepareConfig, tools: Tools) -> Path:
    """Prepare one video and write its record, which makes it complete.

    Returns:
        The record, a JSON file with the lines of its clips and what was dropped.
    """
    rows: list[dict[str, Any]] = []
    dropped: list[Dropped] = []
    seconds = 0.0
    for segment in video.segments:
        try:
            made, lost, length = _prepare_segment(video, segment, output, config, tools)
        except (LetsTalkError, OSError, ValueError) as error:
            made, length = [], 0.0
            lost = [Dropped(segment.name, segment.start_s, 0.0, "unreadable", _first_line(error))]
        rows += made
        dropped += lost
        seconds += length
    record = record_file(output, video.key)
    partial = record.with_suffix(".part")
    told = {"clips": rows, "dropped": [asdict(d) for d in dropped], "seconds": round(seconds, 2)}
    partial.write_text(json.dumps(told))
    partial.replace(record)
    return record


def record_file(output: Path, key: str) -> Path:
    """Return the path of the record of a raw video."""
    return output / "prepared" / f"{key}.json"


def _prepare_segment(
    video: RawVideo, segment: Segment, output: Path, config: PrepareConfig, tools: Tools
) -> tuple[list[dict[str, Any]], list[Dropped], float]:
    """Return the lines of a segment's clips, what was dropped, and the segment's seconds."""
    facts = probe(video.path)
    region = segment.region(facts.width, facts.height)
    cuts, dropped, frames = _find_clips(video.path, segment, region, config, tools)
    if cuts and not facts.has_sound:
        dropped += [_whole(cut, segment, "no sound") for cut in cuts]
        cuts = []
    if not cuts:
        return [], dropped, frames / FPS
    sound = _Sound(video.path, cuts[0].start, cuts[-1].start + cuts[-1].count)
    level = loudness(sound.pcm)
    if level < SILENT_LUFS:
        silent = [_whole(cut, segment, "silent", f"{level:.0f} LUFS") for cut in cuts]
        return [], dropped + silent, frames / FPS
    if config.separate:
        with tempfile.TemporaryDirectory() as folder:
            sound.pcm = separate(sound.pcm, config.separate, Path(folder))
    gain = gain_to(sound.pcm, config.loudness)
    gaps = [mouth_opening(model_points(cut, config.size)) for cut in cuts]
    fits = [
        tools.sync.fits(gap, gain * sound.around(cut)) for gap, cut in zip(gaps, cuts, strict=True)
    ]
    shift, fit, before = best_offset(fits, [cut.count for cut in cuts])
    rows, kept = [], []
    for index, (cut, curve) in enumerate(zip(cuts, fits, strict=True)):
        r = float(curve[REACH + shift])
        if r < config.min_sync:
            why = f"r {r:.2f} at an offset of {shift} frames"
            dropped.append(_whole(cut, segment, "lips do not fit the sound", why))
            continue
        name = f"{segment.name}-{index:04d}"
        write_sound(output / "clips" / f"{name}.flac", gain * sound.of(cut, shift))
        write_tracks(output / "clips" / f"{name}.npz", cut, config.size)
        kept.append((name, cut))
        rows.append(
            _row(name, cut, video, segment, config)
            | {"sync_s": round(r, 3), "sync_lag": SYNC_LAG_IN_STEP, "audio_shift": shift}
            | {"sync_before": round(before, 3), "sync_source": round(fit, 3)}
            | {"loudness_lufs": round(level, 1), "gain_db": round(20 * float(np.log10(gain)), 1)}
        )
    embeddings = _write_videos(video.path, kept, output, config, tools)
    for row in rows:
        if (vector := embeddings.get(row["name"])) is not None:
            row["face"] = [round(float(v), 4) for v in vector]
    return rows, dropped, frames / FPS


def _find_clips(
    path: Path,
    segment: Segment,
    region: tuple[float, float, float, float],
    config: PrepareConfig,
    tools: Tools,
) -> tuple[list[Cut], list[Dropped], int]:
    """Find shots and faces in a first pass; return clips, what was dropped, and the frames."""
    left, top, right, bottom = (round(value) for value in region)
    landmarker, shots = tools.landmarker(), ShotDetector()
    faces: list[list[FoundFace]] = []
    first, size = None, (0, 0)
    for number, rgb in read_frames(path, segment.start_s, segment.end_s):
        first = number if first is None else first
        size = rgb.shape[1], rgb.shape[0]
        shots.add(rgb)
        found = landmarker(np.ascontiguousarray(rgb[top:bottom, left:right]))
        faces.append([_moved(face, left, top) for face in found])
    if first is None:
        raise InputError("the video has no frames in this part")
    cuts: list[Cut] = []
    dropped: list[Dropped] = []
    for begin, end in shots.shots():
        track, other = follow_one(faces[begin:end])
        if other > config.max_other:
            why = f"a second face is {other:.0%} as high"
            lost = Dropped(
                segment.name, (first + begin) / FPS, (end - begin) / FPS, "several faces", why
            )
            dropped.append(lost)
            continue
        made, lost_parts = cut_track(track, first + begin, size, config.limits, segment.name)
        cuts += made
        dropped += lost_parts
    return cuts, dropped, len(faces)


def _moved(face: FoundFace, left: int, top: int) -> FoundFace:
    return replace(face, landmarks=face.landmarks + np.array([left, top], np.float32))


class _Sound:
    """The sound around all clips of a segment, in frames of the video.

    Args:
        path: The video.
        start: First frame of the first clip.
        stop: End of the last clip.
    """

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self._start = start - REACH
        begin = max(self._start, 0)
        heard = read_sound(path, begin / FPS, (stop + REACH) / FPS)
        self.pcm = np.zeros((stop + REACH - self._start) * SAMPLES_PER_FRAME, np.float32)
        offset = (begin - self._start) * SAMPLES_PER_FRAME
        room = len(self.pcm) - offset
        self.pcm[offset : offset + len(heard[:room])] = heard[:room]

    def of(self, cut: Cut, shift: int = 0) -> np.ndarray:
        """Return the sound of a clip, taken `shift` frames later."""
        first = (cut.start + shift - self._start) * SAMPLES_PER_FRAME
        return self.pcm[first : first + cut.count * SAMPLES_PER_FRAME]

    def around(self, cut: Cut) -> np.ndarray:
        """Return the sound from `REACH` frames before a clip to `REACH` after it."""
        first = (cut.start - REACH - self._start) * SAMPLES_PER_FRAME
        return self.pcm[first : first + (cut.count + 2 * REACH) * SAMPLES_PER_FRAME]


def _write_videos(
    path: Path, kept: list[tuple[str, Cut]], output: Path, config: PrepareConfig, tools: Tools
) -> dict[str, np.ndarray]:
    """Write the clips' videos in a second pass; return face embeddings of their middle frames."""
    embeddings: dict[str, np.ndarray] = {}
    for name, cut in kept:
        writer = ClipWriter(output / "clips" / f"{name}.mp4", config.size)
        stop = cut.start + cut.count
        for number, rgb in read_frames(path, cut.start / FPS, stop / FPS):
            crop = crop_frame(rgb, cut.box, config.size)
            writer.add(crop)
            if tools.embed is not None and number == cut.start + cut.count // 2:
                vector = tools.embed(crop)
                if vector is not None:
                    embeddings[name] = vector
        writer.close()
    return embeddings


def _row(
    name: str, cut: Cut, video: RawVideo, segment: Segment, config: PrepareConfig
) -> dict[str, Any]:
    points = model_points(cut, config.size)
    side = cut.box[2]
    return {
        "name": name,
        "kind": "real",
        "frames": cut.count,
        "size_px": config.size,
        "person": segment.person or video.key,
        "source": video.path.name,
        "start_s": round(cut.start / FPS, 2),
        "crop_px": [*cut.box],
        "face_px": round(float(np.ptp(points[..., 1], axis=1).mean()) * side / config.size),
        "upscale": round(config.size / side, 3),
        "yaw": round(float(np.mean([head_yaw(p) for p in points[::5]])), 2),
        "landmarks": config.landmarks,
        "samples": cut.count * SAMPLES_PER_FRAME,
        "sample_rate": SAMPLE_RATE,
    }


def _whole(cut: Cut, segment: Segment, reason: str, detail: str = "") -> Dropped:
    return Dropped(segment.name, round(cut.start / FPS, 2), cut.count / FPS, reason, detail)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
