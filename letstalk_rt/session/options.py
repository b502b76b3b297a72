"""The options of a session, and values derived from them and the model."""

from typing import Any, TypedDict

from letstalk_rt.audio.segmenter import Segmenter
from letstalk_rt.audio.voice_activity import VoiceActivity
from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.protocol import Pipeline
from letstalk_rt.performance.listening import Listening
from letstalk_rt.performance.moods import Style
from letstalk_rt.session.adaptive_quality import DegradationPreference
from letstalk_rt.session.playback import PlaybackMode
from letstalk_rt.types import FPS, SAMPLE_RATE, CameraOptions, MotionOptions

_FRAME_MS = 1000 // FPS


class SessionOptions(TypedDict, total=False):
    """The options of a session; see `AvatarSession`."""

    idle: bool
    seed: int
    max_hops: int
    steps: int | None
    lookahead_ms: int | None
    motion: MotionOptions
    voice_activity: VoiceActivity
    playback: PlaybackMode
    camera: CameraOptions
    output_sample_rate: int
    recovery_s: float
    degradation_preference: DegradationPreference
    mood: str | Style
    mood_strength: float
    listening: Listening


def segmenter_for(
    pipeline: Pipeline[Any],
    lookahead_frames: int | None = None,
    output_rate: int = SAMPLE_RATE,
) -> Segmenter:
    """Create the segmenter for a model, with the model's look-ahead or a shorter one."""
    ahead = pipeline.lookahead_frames if lookahead_frames is None else lookahead_frames
    return Segmenter(pipeline.hop, pipeline.frames_per_window, ahead, output_rate)


def lookahead_in_frames(pipeline: Pipeline[Any], lookahead_ms: int | None) -> int:
    """Convert a look-ahead to frames; None is the model's own.

    Raises:
        ConfigError: `lookahead_ms` is not a multiple of 40 ms from 0 to the model's own.
    """
    most = pipeline.lookahead_frames
    if lookahead_ms is None:
        return most
    if lookahead_ms not in range(0, most * _FRAME_MS + 1, _FRAME_MS):
        raise ConfigError(
            f"lookahead_ms must be a multiple of {_FRAME_MS} from 0 to {most * _FRAME_MS}, "
            f"got {lookahead_ms!r}"
        )
    return lookahead_ms // _FRAME_MS
