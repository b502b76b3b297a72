"""Judges what a peer recorded over a bad network."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MAX_SKEW_MS = 80.0
MAX_BACK_S = 2.0
"""Within this time after an outage, picture and sound have to be back."""

FAR_S = 0.39
"""Half a period of the beeps: what is further away is another beep."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a bad network did to picture and sound.

    Attributes:
        skew_p50_ms: median of how much later the sound is than the picture.
        skew_p95_ms: 95th percentile of the size of that.
        in_step: share of the frames whose sound is within `MAX_SKEW_MS`.
        fps: frames shown per second, without the time of an outage.
        longest_gap_s: longest time between two frames, without the event and what follows it.
        picture_back_s: time from the end of the event to the next frame; None without an event.
        sound_back_s: likewise to the next sound.
        connections: peer connections that were opened.
        same_session: whether the session of the start is that of the end.
    """

    skew_p50_ms: float | None
    skew_p95_ms: float | None
    in_step: float | None
    fps: float
    longest_gap_s: float
    picture_back_s: float | None
    sound_back_s: float | None
    connections: int
    same_session: bool

    @property
    def passed(self) -> bool:
        """Whether all bounds were kept."""
        backs = [b for b in (self.picture_back_s, self.sound_back_s) if b is not None]
        return (
            self.skew_p95_ms is not None
            and self.skew_p95_ms <= MAX_SKEW_MS
            and all(back <= MAX_BACK_S for back in backs)
            and self.same_session
        )

    def as_json(self) -> dict[str, Any]:
        """Return all values, rounded, and whether it passed; what never came back has None."""
        rounded = {
            key: round(value, 3) if isinstance(value, float) and np.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        known = {key: None if value == float("inf") else value for key, value in rounded.items()}
        return known | {"passed": self.passed}


def judge(
    recording: dict[str, Any],
    started: dict[str, Any],
    *,
    began_s: float,
    ended_s: float | None,
) -> Judgement:
    """Judge a recording.

    Args:
        recording: of a peer, see `aiortc_peer.Recording`.
        started: the first line of a peer.
        began_s: when the link became bad.
        ended_s: when an outage or a change of the address was over; None without one.
    """
    shown = [frame for frame in recording["shown"] if frame[0] > began_s]
    skews = skews_ms(shown, recording["heard"])
    sizes = np.abs(skews)
    times = [frame[0] for frame in shown]
    gaps = np.diff(times) if len(times) > 1 else np.zeros(1)
    usual = [
        gap
        for gap, at in zip(gaps, times, strict=False)
        if ended_s is None or not at - 6 < ended_s < at + gap + MAX_BACK_S
    ]
    sounds = recording["sounds"]
    return Judgement(
        skew_p50_ms=float(np.median(skews)) if skews else None,
        skew_p95_ms=float(np.percentile(sizes, 95)) if skews else None,
        in_step=float((sizes <= MAX_SKEW_MS).mean()) if skews else None,
        fps=_rate(gaps),
        longest_gap_s=float(max(usual, default=0.0)),
        picture_back_s=_after([frame[0] for frame in recording["shown"]], ended_s),
        sound_back_s=_after(sounds, ended_s),
        connections=sum(state == "connected" for _, state in recording["states"]),
        same_session=recording.get("session", started["session"]) == started["session"],
    )


def skews_ms(shown: Sequence[Sequence[float | None]], heard: Sequence[float]) -> list[float]:
    """Return for each frame with marks how much later its beep is heard than it is due.

    A frame with the marks of the one before is repeated, because the server had no other in time;
    it has no sound of its own.
    """
    sounds = np.array(heard)
    if not sounds.size:
        return []
    before = [None, *(frame[2] for frame in shown)]
    due = [
        frame[1] - frame[2]
        for frame, age_before in zip(shown, before, strict=False)
        if frame[1] is not None and frame[2] is not None and frame[2] != age_before
    ]
    nearest = [float(sounds[np.abs(sounds - at).argmin()] - at) for at in due]
    return [1000 * skew for skew in nearest if abs(skew) < FAR_S]


def _after(times: Sequence[float], ended_s: float | None) -> float | None:
    if ended_s is None:
        return None
    return min((at - ended_s for at in times if at > ended_s), default=float("inf"))


def _rate(gaps: np.ndarray) -> float:
    """Return frames per second, without the longest gap."""
    kept = np.sort(gaps)[:-1]
    return float(kept.size / kept.sum()) if kept.size and kept.sum() else 0.0
