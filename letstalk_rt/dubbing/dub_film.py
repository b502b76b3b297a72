"""Dubs a film file: reads it, gives it other lips and another sound, and writes it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from letstalk_rt.audio.files import AudioFacts, audio_chunks, audio_facts
from letstalk_rt.audio.resample import check_pcm, check_rate
from letstalk_rt.dubbing.dubber import Dubber
from letstalk_rt.dubbing.extension import Longer, extended
from letstalk_rt.dubbing.film import Film, FilmFrame
from letstalk_rt.dubbing.film_writer import FilmWriter, SoundFeed
from letstalk_rt.dubbing.latent_dubber import LatentDubber
from letstalk_rt.dubbing.lip_track import LipTrack
from letstalk_rt.dubbing.planes import put
from letstalk_rt.errors import AudioFormatError, FilmError
from letstalk_rt.inference.film_faces import has_film_conditions
from letstalk_rt.inference.lower_face import has_lower_faces
from letstalk_rt.inference.mouth_renderer import Patch
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.parts import MOTION
from letstalk_rt.portrait.watermark import DUBBED_SOURCE_TYPE, badge_place, with_badge
from letstalk_rt.recording.credentials import SigningCredentials
from letstalk_rt.recording.provenance import Provenance


@dataclass(frozen=True)
class DubOptions:
    """How a film is dubbed.

    Attributes:
        longer: what is shown while the speech is longer than the film.
        trim: end with the speech, even if the film is longer; otherwise the lips then rest.
        badge: draw the badge "AI avatar" into the frames.
        provenance: what metadata and signature state; None knows the badge alone.
        credentials: sign the film with these when it is complete; mkv cannot be signed.
    """

    longer: Longer = Longer.LOOP
    trim: bool = False
    badge: bool = True
    provenance: Provenance | None = None
    credentials: SigningCredentials | None = None


@dataclass(frozen=True)
class DubResult:
    """What came out.

    Attributes:
        frames: number of frames.
        changed: how many of them show other lips; the others are as they were.
        seconds: length of the film that was written.
        width: in pixels.
        height: in pixels.
    """

    frames: int
    changed: int
    seconds: float
    width: int
    height: int


class Speech:
    """The new voice: a file, or samples.

    Args:
        source: path of an audio or video file; or samples as for `Avatar.render`, `(n,)` or
            `(n, channels)`.
        rate: sample rate of samples in Hz; ignored for a file.

    Raises:
        AudioFormatError: the file, the samples or the rate cannot be used.
    """

    def __init__(self, source: str | Path | np.ndarray, rate: int) -> None:
        self._source = source
        if isinstance(source, np.ndarray):
            check_pcm(source)
            check_rate(rate)
            if not len(source):
                raise AudioFormatError("the audio is empty; pass at least one sample")
            channels = 1 if source.ndim == 1 else source.shape[1]
            self.facts = AudioFacts(rate, channels, len(source) / rate)
        else:
            self.facts = audio_facts(source)

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the samples from the beginning, float32."""
        if not isinstance(self._source, np.ndarray):
            yield from audio_chunks(self._source)
            return
        whole = self._source
        for start in range(0, len(whole), self.facts.rate):
            part = whole[start : start + self.facts.rate]
            yield part / np.float32(32768) if part.dtype == np.int16 else part


def dubber_of(pipeline: AvatarPipeline) -> Dubber | LatentDubber:
    """Return what dubs one film with a model.

    Raises:
        ConfigError: the model has neither a motion denoiser nor the conditions of films.
    """
    model = pipeline.model
    if has_film_conditions(model):
        return LatentDubber(model, pipeline.finder)
    return Dubber(model, pipeline.finder, pipeline.dtype)


def heard_by(model: AvatarModel, speech: Iterable[np.ndarray], rate: int) -> LipTrack:
    """Return what a model hears of speech, mono samples at `rate` Hz in chunks, over time."""
    if has_film_conditions(model):
        return LipTrack(None, speech, rate, model.audio)
    encoder = model.audio if has_lower_faces(model) else None
    return LipTrack(model.part(MOTION), speech, rate, encoder)


def dub_film(
    pipeline: AvatarPipeline,
    film: Film,
    speech: Speech,
    output: str | Path,
    options: DubOptions | None = None,
    on_frame: Callable[[], object] = lambda: None,
) -> DubResult:
    """Write a film whose person says something else. Blocks until it is done.

    Args:
        pipeline: the model.
        film: the film.
        speech: the new voice.
        output: a path that ends in .mp4, .m4v, .mov or .mkv.
        options: how it is dubbed.
        on_frame: called after each frame.

    Raises:
        FilmError: the film is damaged, or shows no face that can be dubbed.
        AudioFormatError: the speech is damaged.
        ConfigError: the output cannot be written, or the model cannot dub.
    """
    options = options or DubOptions()
    facts, model = film.facts, pipeline.model
    dubber = dubber_of(pipeline)
    rate = speech.facts.rate
    lips = heard_by(model, speech.chunks(), rate)
    frames = extended(film.frames(), facts, options.longer, lips.is_over, trim=options.trim)
    half = float(1 / facts.rate) / 2
    timed = ((f, f.rgb, float(f.time * facts.time_base) + half) for f in frames)
    count = changed = 0
    made = options.provenance or Provenance(badge=options.badge)
    made = replace(made, source_type=DUBBED_SOURCE_TYPE)
    with FilmWriter(
        output, facts, rate, speech.facts.channels, made, options.credentials
    ) as writer:
        sound = SoundFeed(speech.chunks(), rate, writer)
        end_s = 0.0
        for frame, patch in dubber.dub(timed, lips):
            writer.write(_changed(frame, patch, film, badge=options.badge), frame.time)
            end_s = float(frame.time * facts.time_base + 1 / facts.rate)
            sound.until(end_s)
            count, changed = count + 1, changed + (patch is not None)
            on_frame()
        if not changed:
            raise FilmError(
                f"No face was found in the film{film.name} that could be dubbed. Use a film of a "
                "person who looks towards the camera, well lit and not covered."
            )
    return DubResult(count, changed, end_s, facts.width, facts.height)


def _changed(
    frame: FilmFrame, patch: Patch | None, film: Film, *, badge: bool
) -> tuple[np.ndarray, ...]:
    """Return the planes of a frame with a patch and the badge; the frame may be shown again."""
    rgb, tags = frame.rgb, film.facts.tags
    planes = tuple(plane.copy() for plane in frame.planes)
    shown = rgb
    if patch is not None:
        before = rgb[patch.rows, patch.columns]
        put(planes, patch.rows, patch.columns, before, patch.rgb, tags)
        shown = rgb.copy()
        shown[patch.rows, patch.columns] = patch.rgb
    if badge:
        rows, columns = badge_place(*rgb.shape[:2])
        rows = slice(rows.start // 2 * 2, rows.stop)
        columns = slice(columns.start // 2 * 2, columns.stop)
        after = with_badge(shown)[rows, columns]
        put(planes, rows, columns, shown[rows, columns], after, tags)
    return planes
