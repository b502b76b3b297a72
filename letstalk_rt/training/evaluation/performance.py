"""Whether moods, gestures and listening show: read by a tracker from outside in shown frames.

Still portraits of people whom the model never saw speak with the audio of clips, in each mood and
without one, from the same seed. What a mood moves is given in deviations between people: those of
the same measure in the true videos of the data folder.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from letstalk_rt.errors import InputError
from letstalk_rt.inference.code_control import directed
from letstalk_rt.inference.pipeline import AvatarPipeline
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
from letstalk_rt.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Portrait

WATCHED: Mapping[str, Mapping[str, float]] = {
    "warm": {"smile": 1},
    "cheerful": {"smile": 1},
    "serious": {"brow_down": 1, "smile": -1},
    "concerned": {"brow_up": 1, "smile": -1},
    "surprised": {"brow_up": 1},
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

_LEVELS = ("smile", "frown", "brow_up", "brow_down", "squint", "lids", "pitch")
_SKIPPED = 25  # frames in which a mood would ease in, and a video begins
_IDENTITY_EVERY = 12
_GESTURE_S, _GESTURE_AT_S = 3.0, 1.2
_EYES = ((159, 145, 33, 133), (386, 374, 263, 362))  # upper and lower lid, corners: left in image
_LISTENED_S, _SILENT_S = 60.0, 60.0
_PHRASE_S, _PAUSE_S = (1.5, 4.0), (0.4, 1.0)
_NOD_DEG = 2.5
_WINDOWS = 500


def measures(channels: np.ndarray) -> dict[str, float]:
    """Return what is measured of a video, by name: levels, and how lively head and brows are.

    Args:
        channels: `(T, 16)`, see `whole_face.CHANNELS`.
    """
    middle = np.median(channels, 0)
    found = {name: float(middle[CHANNELS.index(name)]) for name in _LEVELS}
    speed = np.linalg.norm(np.diff(channels[:, HEAD], axis=0), axis=1)
    brows = channels[:, CHANNELS.index("brow_up")]
    return found | {"head_speed": float(speed.mean()), "brow_range": float(span(brows[:, None])[0])}


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
    rows = [measures(true_motion(clip).channels) for clip in filmed]
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
    """

    name: str
    motions: dict[str, FaceMotion] = field(default_factory=dict)
    identity: dict[str, float] = field(default_factory=dict)
    heard: np.ndarray = field(default_factory=lambda: np.zeros(0))
    samples: dict[str, np.ndarray] = field(default_factory=dict)

    def row(self, mood: str) -> dict[str, float]:
        """Return what a mood changes against none: measures, lips and likeness."""
        own, base = self.motions[mood].channels, self.motions["neutral"].channels
        of_own, of_base = measures(own[_SKIPPED:]), measures(base[_SKIPPED:])
        moved = {name: of_own[name] - of_base[name] for name in of_own}
        lips = {
            name: value - other
            for (name, value), other in zip(
                _lips(own, self.heard).items(), _lips(base, self.heard).values(), strict=True
            )
        }
        return moved | lips | {"identity": self.identity[mood]}


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
) -> Iterator[Performed]:
    """Yield each portrait, which speaks in all moods with the audio of one of the clips.

    Raises:
        InputError: no clip has audio.
    """
    spoken = [clip for clip in clips if clip.has_audio]
    if not spoken:
        raise InputError("no clip has audio; add such clips to the split `eval`")
    samples = int(seconds * FPS) * SAMPLES_PER_FRAME
    for seed, (name, portrait) in enumerate(tqdm(portraits, desc="moods", file=sys.stderr)):
        pcm = np.resize(spoken[seed % len(spoken)].pcm, samples).astype(np.float32)
        found = Performed(name, heard=heard_gaps(pipeline, pcm, samples // SAMPLES_PER_FRAME))
        for mood in MOODS:
            performer = Performer(mood)
            video = _video(pipeline, portrait, pcm, performer, seed)
            found.motions[mood] = tracker(video)
            every = video[_SKIPPED::_IDENTITY_EVERY]
            found.identity[mood] = identity.likeness(portrait.canvas, every)
            found.samples[mood] = video[_quiet(found.motions[mood], found.motions["neutral"])]
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
        for name in ("lip_r", "closures", "identity"):
            figures[f"{mood}_{name}"] = float(np.mean([row[name] for row in rows]))
    own = [one.identity["neutral"] for one in performed]
    return figures | {"neutral_identity": float(np.mean(own)), "portraits": float(len(performed))}


def gesture_figures(
    pipeline: AvatarPipeline, tracker: MotionTracker, portraits: Sequence[tuple[str, Portrait]]
) -> dict[str, float]:
    """Return the figures of a nod and a wink: medians over portraits that are silent."""
    pcm = np.zeros(int(_GESTURE_S * FPS) * SAMPLES_PER_FRAME, np.float32)
    rows = []
    for seed, (_, portrait) in enumerate(tqdm(portraits, desc="gestures", file=sys.stderr)):
        motions = {}
        for name in (None, "nod", "wink"):
            performer = Performer()
            if name is not None:
                performer.gesture(name, 1.0, 0, _GESTURE_AT_S)
            motions[name] = tracker(_video(pipeline, portrait, pcm, performer, seed))
        rows.append(_nod(motions["nod"], motions[None]) | _wink(motions["wink"], motions[None]))
    figures = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    figures["nod_in_range"] = float(
        sum(4 <= row["nod_deg"] <= 10 and abs(row["nod_late_s"]) <= 0.2 for row in rows)
    )
    figures["wink_one_eye"] = float(
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


def listening_figures(
    pipeline: AvatarPipeline, tracker: MotionTracker, portrait: Portrait, mode: str = "attentive"
) -> dict[str, float]:
    """Return the figures of two minutes: somebody speaks with pauses, and then is silent."""
    pattern = voice_pattern(_LISTENED_S, _SILENT_S)
    silent_pcm = np.zeros(len(pattern) * SAMPLES_PER_FRAME, np.float32)
    courses = {}
    for which in (mode, "off"):
        performer, video = Performer(listening=which), []
        shown = generate_frames(pipeline, [portrait], silent_pcm[None], performers=[performer])
        for number, (frame,) in enumerate(shown):
            performer.hear(bool(pattern[number]), None, number / FPS)
            video.append(frame)
        courses[which] = tracker(np.stack(video)).channels
    return _listened(courses[mode], courses["off"], pattern)


def _listened(own: np.ndarray, idle: np.ndarray, pattern: np.ndarray) -> dict[str, float]:
    pitch, gaze = CHANNELS.index("pitch"), CHANNELS.index("gaze_x")
    curve = np.abs(own[:, pitch] - idle[:, pitch])
    begins = np.flatnonzero((curve[1:] >= _NOD_DEG) & (curve[:-1] < _NOD_DEG)) + 1
    nods = [place for n, place in enumerate(begins) if not n or place - begins[n - 1] > FPS]
    listened = int(_LISTENED_S * FPS)
    late = listened + 5 * FPS
    return {
        "listening_nods_per_min": sum(n < listened + FPS for n in nods) * 60 / _LISTENED_S,
        "listening_nods_in_pauses": float(
            np.mean([not pattern[max(0, n - 3) : n + 3].all() for n in nods]) if nods else np.nan
        ),
        "listening_nods_in_silence": float(sum(n > late for n in nods)),
        "listening_gaze_ratio": float(own[:listened, gaze].std() / idle[:listened, gaze].std()),
    }


def cost_ms(pipeline: AvatarPipeline, portrait: Portrait) -> float:
    """Return what directing adds to a window: a mood, a gesture and listening; median in ms."""
    performer, state = Performer("warm", listening="attentive"), pipeline.init_state(portrait)
    motion = state.motion
    assert motion is not None, "the model has a motion denoiser"
    spoken, took_s = [_Quiet()] * pipeline.frames_per_window, []
    codes = motion.memory.codes[0, -1]
    for number in range(_WINDOWS):
        if number % 8 == 0:
            performer.gesture("nod")
        began_s = time.perf_counter()
        performer.hear(number % 20 < 15, 120.0, 0.16 * number)
        direction = performer.window(spoken, now_s=0.16 * number)
        if direction is not None:
            directed(codes, direction)
        took_s.append(time.perf_counter() - began_s)
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
) -> tuple[dict[str, float], np.ndarray]:
    """Return the figures of moods, gestures and listening, and a contact sheet of the moods.

    Raises:
        InputError: there are no portraits, no clip has audio, or too few have head poses.
    """
    if not portraits:
        raise InputError("the data folder has no portraits of the split `eval`")
    people = between_people(clips)
    performed = list(perform(pipeline, tracker, Identity(), portraits, clips, seconds))
    figures = mood_figures(performed, people)
    figures |= gesture_figures(pipeline, tracker, portraits)
    figures |= listening_figures(pipeline, tracker, portraits[0][1])
    figures["window_added_ms"] = cost_ms(pipeline, portraits[0][1])
    return figures | {"seconds": seconds, "rate": float(SAMPLE_RATE)}, contact_sheet(performed)
