"""Whether moods, gestures and listening show: read by a tracker from outside in shown frames.

Still portraits of people whom the model never saw speak with the audio of clips, in each mood and
without one, from the same seed. What a mood moves is given in deviations between people: those of
the same measure in the true videos of the data folder.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from letstalk_rt.errors import InputError
from letstalk_rt.inference.code_control import directed
from letstalk_rt.inference.motion_stage import MotionState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.performance.direction import channel
from letstalk_rt.performance.moods import MOODS
from letstalk_rt.performance.performer import Performer
from letstalk_rt.training.data.audio_features import correlation
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.evaluation.dubbing import heard_gaps
from letstalk_rt.training.evaluation.generation import generate_frames
from letstalk_rt.training.evaluation.identity import Identity
from letstalk_rt.training.evaluation.whole_face import (
    CHANNELS,
    HEAD,
    FaceMotion,
    MotionTracker,
    span,
    true_motion,
)
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, Portrait

WATCHED: Mapping[str, Mapping[str, float]] = {
    "warm": {"smile": 1},
    "cheerful": {"smile": 1},
    "serious": {"inner_brows": -1, "brow_down": 1, "smile": -1},
    "concerned": {"inner_brows": 1, "brow_up": 1, "smile": -1},
    "surprised": {"outer_brows": 1, "inner_brows": 1, "brow_up": 1},
    "tired": {"lids": 1, "pitch": 1},
    "lively": {"head_speed": 1, "brow_range": 1},
}
"""What each mood should move, and to which side; the first one decides."""

ENOUGH = 0.5
"""A mood shows if it moves its first measure by so many deviations between people."""

CLOSED_GAP = 0.03
"""Lip gap of closed lips, over the distance of the eyes' outer corners."""

LEAST_S = 2.0
"""The shortest videos that are measured."""

_BROWS = {"inner_brows": ((55, 133), (285, 362)), "outer_brows": ((70, 33), (300, 263))}
"""Landmarks of brows, and of the corners of the eyes below them."""

_LEVELS = ("smile", "frown", "brow_up", "brow_down", "squint", "lids", "pitch")
_SKIPPED = 12  # frames in which a video begins
_IDENTITY_EVERY = 12
_GESTURE_S, _GESTURE_AT_S = 1.8, 0.8
_EYES = ((159, 145, 33, 133), (386, 374, 263, 362))  # upper and lower lid, corners: left in image
_LISTENED_S, _SILENT_S = 60.0, 60.0
_PHRASE_S, _PAUSE_S = (1.5, 4.0), (0.4, 1.0)
_NOD_RAD, _WINDOW = 0.06, 4
_WINDOWS = 500


def measures(motion: FaceMotion) -> dict[str, float]:
    """Return what is measured of a video, by name.

    Levels are medians over time: blendshapes, the pitch in degrees, and how high the inner and the
    outer brows are above the corners of the eyes, over the distance of the outer corners. Beside
    them stand the mean speed of the head in degrees a frame, and the range of the brows.
    """
    middle = np.median(motion.channels, 0)
    found = {name: float(middle[CHANNELS.index(name)]) for name in _LEVELS}
    for name, pairs in _BROWS.items():
        found[name] = float(np.median(_heights(motion.points, pairs)))
    speed = np.linalg.norm(np.diff(motion.channels[:, HEAD], axis=0), axis=1)
    brows = motion.channels[:, CHANNELS.index("brow_up")]
    return found | {"head_speed": float(speed.mean()), "brow_range": float(span(brows[:, None])[0])}


def _heights(points: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return how high the first landmark of each pair is above the second, `(T,)`: their mean."""
    across = points[:, 263] - points[:, 33]
    size = np.maximum(np.linalg.norm(across, axis=1), 1e-6)
    up = np.stack([across[:, 1], -across[:, 0]], 1) / size[:, None] ** 2
    each = [((points[:, brow] - points[:, corner]) * up).sum(1) for brow, corner in pairs]
    return np.asarray(np.mean(each, 0))


def between_people(clips: Sequence[Clip]) -> dict[str, float]:
    """Return the standard deviation of each measure between the people of true videos.

    Raises:
        InputError: fewer than three filmed clips have head poses.
    """
    filmed = [clip for clip in clips if clip.kind == "real" and clip.pose is not None]
    if len(filmed) < 3:
        raise InputError(
            f"three filmed clips with head poses are needed to know how people differ, got "
            f"{len(filmed)}; see docs/training.md"
        )
    rows = [measures(true_motion(clip)) for clip in filmed]
    return {name: float(np.std([row[name] for row in rows])) for name in rows[0]}


@dataclass
class Performed:
    """One portrait that speaks in all moods.

    Attributes:
        name: of the portrait.
        motions: the face in the video of each mood, by its name.
        identity: likeness to the portrait, by mood.
        heard: the lip gap that is heard, `(T,)`.
        samples: one frame of each mood, `(H, W, 3)` uint8.
        gestures: figures of a nod and of a wink in silence.
    """

    name: str
    motions: dict[str, FaceMotion] = field(default_factory=dict)
    identity: dict[str, float] = field(default_factory=dict)
    heard: np.ndarray = field(default_factory=lambda: np.zeros(0))
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    gestures: dict[str, float] = field(default_factory=dict)

    def row(self, mood: str) -> dict[str, float]:
        """Return what a mood changes against none: measures, lips and likeness."""
        own, base = self.motions[mood], self.motions["neutral"]
        of_own, of_base = measures(own.after(_SKIPPED)), measures(base.after(_SKIPPED))
        moved = {name: of_own[name] - of_base[name] for name in of_own}
        lips = {
            name: value - other
            for (name, value), other in zip(
                _lips(own.channels, self.heard).items(),
                _lips(base.channels, self.heard).values(),
                strict=True,
            )
        }
        return moved | lips | {"identity": self.identity[mood] / self.identity["neutral"]}


def _lips(channels: np.ndarray, heard: np.ndarray) -> dict[str, float]:
    gaps = channels[:, 0]
    return {
        "lip_r": correlation(gaps, heard[: len(gaps)]),
        "closures": float((gaps < CLOSED_GAP).mean()),
    }


def perform(
    pipeline: AvatarPipeline,
    tracker: MotionTracker,
    identity: Identity,
    portraits: Sequence[tuple[str, Portrait]],
    clips: Sequence[Clip],
    seconds: float,
    limit_s: float = math.inf,
) -> Iterator[Performed]:
    """Yield each portrait, which speaks in all moods with the audio of one of the clips.

    No portrait begins after `limit_s`.

    Raises:
        InputError: no clip has audio.
    """
    spoken = [clip for clip in clips if clip.has_audio]
    if not spoken:
        raise InputError("no clip has audio; add such clips to the split `eval`")
    samples, began_s = int(seconds * FPS) * SAMPLES_PER_FRAME, time.monotonic()
    for seed, (name, portrait) in enumerate(tqdm(portraits, desc="moods", file=sys.stderr)):
        if time.monotonic() > began_s + limit_s:
            return
        pcm = np.resize(spoken[seed % len(spoken)].pcm, samples).astype(np.float32)
        found = Performed(name, heard=heard_gaps(pipeline, pcm, samples // SAMPLES_PER_FRAME))
        for mood in MOODS:
            performer = Performer(mood)
            video = _video(pipeline, portrait, pcm, performer, seed)
            found.motions[mood] = tracker(video)
            every = video[_SKIPPED::_IDENTITY_EVERY]
            found.identity[mood] = identity.likeness(portrait.canvas, every)
            found.samples[mood] = video[_quiet(found.motions[mood], found.motions["neutral"])]
        found.gestures = _gestures(pipeline, tracker, portrait, seed)
        yield found


def _quiet(motion: FaceMotion, neutral: FaceMotion) -> int:
    """Return a frame with open eyes and lips that are nearly closed, for a picture."""
    lids = motion.channels[:, CHANNELS.index("lids")]
    cost = 3 * neutral.channels[:, 0] + lids - np.median(lids)
    return _SKIPPED + int(cost[_SKIPPED:].argmin())


def _video(
    pipeline: AvatarPipeline, portrait: Portrait, pcm: np.ndarray, performer: Performer, seed: int
) -> np.ndarray:
    frames = generate_frames(pipeline, [portrait], pcm[None], seed, performers=[performer])
    return np.concatenate(list(frames))


def mood_figures(performed: Sequence[Performed], people: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of all moods: means over portraits, and on how many a mood shows.

    Args:
        performed: the portraits.
        people: deviations between people, see `between_people`.
    """
    figures = {f"people_{name}": value for name, value in people.items()}
    for mood, watched in WATCHED.items():
        rows = [one.row(mood) for one in performed]
        for name, side in watched.items():
            moved = [side * row[name] / people[name] for row in rows]
            figures[f"{mood}_{name}"] = float(np.mean(moved))
            figures[f"{mood}_{name}_shown"] = float(sum(value >= ENOUGH for value in moved))
        for name in ("lip_r", "closures"):
            figures[f"{mood}_{name}"] = float(np.mean([row[name] for row in rows]))
        figures[f"{mood}_identity"] = _mean_known([row["identity"] for row in rows])
    own = _mean_known([one.identity["neutral"] for one in performed])
    return figures | {"neutral_identity": own, "portraits": float(len(performed))}


def _mean_known(values: Sequence[float]) -> float:
    """Return the mean of what is known: the identity network finds no face in some portraits."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _gestures(
    pipeline: AvatarPipeline, tracker: MotionTracker, portrait: Portrait, seed: int
) -> dict[str, float]:
    """Return the figures of a nod and a wink of a silent portrait."""
    pcm = np.zeros(int(_GESTURE_S * FPS) * SAMPLES_PER_FRAME, np.float32)
    motions = {}
    for name in ("none", "nod", "wink"):
        performer = Performer()
        if name != "none":
            performer.gesture(name, 1.0, 0, _GESTURE_AT_S)
        motions[name] = tracker(_video(pipeline, portrait, pcm, performer, seed))
    still = motions["none"]
    return _nod(motions["nod"], still) | _wink(motions["wink"], still)


def gesture_figures(performed: Sequence[Performed]) -> dict[str, float]:
    """Return the figures of a nod and a wink: medians over portraits, and how many are right."""
    rows = [one.gestures for one in performed]
    figures = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    figures["nod_right"] = float(
        sum(4 <= row["nod_deg"] <= 10 and abs(row["nod_late_s"]) <= 0.2 for row in rows)
    )
    figures["wink_right"] = float(
        sum(row["wink_closed"] < 0.35 and row["wink_other"] > 0.7 for row in rows)
    )
    return figures


def _nod(motion: FaceMotion, still: FaceMotion) -> dict[str, float]:
    pitch = CHANNELS.index("pitch")
    curve = motion.channels[:, pitch] - still.channels[:, pitch]
    lowest = int(np.abs(curve).argmax())
    return {"nod_deg": float(np.abs(curve[lowest])), "nod_late_s": lowest / FPS - _GESTURE_AT_S}


def _wink(motion: FaceMotion, still: FaceMotion) -> dict[str, float]:
    """Return how far open both eyes are in a wink at most closed, over what they are without."""
    ratio = openings(motion) / np.maximum(openings(still).mean(0), 1e-6)
    closed = int(ratio[:, 1].argmin())
    return {"wink_closed": float(ratio[closed, 1]), "wink_other": float(ratio[closed, 0])}


def openings(motion: FaceMotion) -> np.ndarray:
    """Return how far each eye is open, over its width, `(T, 2)`; left in the image first."""
    points = motion.points

    def distance(a: int, b: int) -> np.ndarray:
        return np.asarray(np.linalg.norm(points[:, a] - points[:, b], axis=1))

    return np.stack([distance(up, down) / distance(a, b) for up, down, a, b in _EYES], 1)


def voice_pattern(seconds: float, silent_s: float, seed: int = 0) -> np.ndarray:
    """Return in which frames somebody speaks, `(T,)` bool: phrases with pauses, then silence."""
    draw, frames = np.random.default_rng(seed), int(seconds * FPS)
    pattern: list[bool] = []
    while len(pattern) < frames:
        pattern += [True] * int(draw.uniform(*_PHRASE_S) * FPS)
        pattern += [False] * int(draw.uniform(*_PAUSE_S) * FPS)
    return np.array(pattern[:frames] + [False] * int(silent_s * FPS))


def listening_figures(mode: str = "attentive") -> dict[str, float]:
    """Return the figures of two minutes: somebody speaks with pauses, and then is silent.

    Nods are counted as they begin; how they show is measured as that of other nods.
    """
    pattern, performer = voice_pattern(_LISTENED_S, _SILENT_S), Performer(listening=mode)
    pitch, gaze, silent = [], [], [_Quiet()] * _WINDOW
    for first in range(0, len(pattern), _WINDOW):
        for number, speaks in enumerate(pattern[first : first + _WINDOW]):
            performer.hear(bool(speaks), None, (first + number) / FPS)
        window = performer.window(silent, now_s=first / FPS)
        pitch += [0.0] * _WINDOW if window is None else list(window.added[:, channel("pitch")])
        gaze += [1.0] * _WINDOW if window is None else list(window.kept[:, channel("gaze_x")])
    nods = np.flatnonzero(np.diff((np.array(pitch) > _NOD_RAD).astype(int)) > 0)
    listened = int(_LISTENED_S * FPS)
    return {
        "listening_nods_per_min": float((nods < listened + FPS).sum() * 60 / _LISTENED_S),
        "listening_nods_in_pauses": float(np.mean([not pattern[n - 8 : n].all() for n in nods])),
        "listening_nods_in_silence": float((nods > listened + 3 * FPS).sum()),
        "listening_gaze_kept": float(np.mean(gaze[:listened])),
        "idle_gaze_kept": float(np.mean(gaze[-listened // 2 :])),
    }


def cost_ms(pipeline: AvatarPipeline, portrait: Portrait) -> float:
    """Return what directing adds to a window: median CPU time in ms, with all of it at once."""
    performer, state = Performer("warm", listening="attentive"), pipeline.init_state(portrait)
    motion = state[MotionState]
    spoken, took_s = [_Quiet()] * pipeline.frames_per_window, []
    codes = motion.memory.codes[0, -1]
    for number in range(_WINDOWS):
        if number % 8 == 0:
            performer.gesture("nod")
        began_s = time.thread_time()
        performer.hear(number % 20 < 15, 120.0, 0.16 * number)
        direction = performer.window(spoken, now_s=0.16 * number)
        if direction is not None:
            directed(codes, direction)
        took_s.append(time.thread_time() - began_s)
    return 1000 * float(np.median(took_s))


@dataclass(frozen=True)
class _Quiet:
    spoken: int = 0
    segment_id: int = 0


def contact_sheet(performed: Sequence[Performed]) -> np.ndarray:
    """Return a picture with a row for each portrait and a column for each mood."""
    return np.concatenate(
        [np.concatenate([one.samples[mood] for mood in MOODS], 1) for one in performed]
    )


def evaluate_performance(
    pipeline: AvatarPipeline,
    tracker: MotionTracker,
    portraits: Sequence[tuple[str, Portrait]],
    clips: Sequence[Clip],
    seconds: float,
    limit_s: float = math.inf,
) -> tuple[dict[str, float], np.ndarray]:
    """Return the figures of moods, gestures and listening, and a contact sheet of the moods.

    Args:
        pipeline: the model.
        tracker: reads faces in shown frames.
        portraits: names and portraits.
        clips: clips of the eval split, for their audio and how people differ.
        seconds: length of each video.
        limit_s: no portrait begins later; `portraits` says how many there were.

    Raises:
        InputError: there are no portraits, no clip has audio, or too few have head poses.
    """
    if not portraits:
        raise InputError("the data folder has no portraits of the split `eval`")
    people = between_people(clips)
    mixed = [portraits[n] for n in np.random.default_rng(0).permutation(len(portraits))]
    performed = list(perform(pipeline, tracker, Identity(), mixed, clips, seconds, limit_s))
    figures = mood_figures(performed, people) | gesture_figures(performed)
    figures |= listening_figures() | {"window_added_ms": cost_ms(pipeline, portraits[0][1])}
    figures |= {"seconds": seconds, "portraits_wanted": float(len(portraits))}
    return figures, contact_sheet(performed)
