"""Avatars: a portrait and a model with the thread that runs it.

    avatar = Avatar.load("portrait.jpg")
    async with avatar.session() as session:
        await session.push_audio(pcm, 48_000)   # one task
        async for item in session:              # another task
            ...

The methods of a session are named like those of LiveKit's `VideoGenerator`, so an adapter takes a
few lines. This module imports neither torch nor a transport.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np

from letstalk_rt.audio.resample import check_pcm
from letstalk_rt.audio.segmenter import Hop, SegmentBoundary
from letstalk_rt.audio.speech_resampler import SpeechResampler
from letstalk_rt.errors import AudioFormatError, ConfigError
from letstalk_rt.inference.admission import MeasuredLoad, StepCost
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.inference.protocol import (
    DEFAULT_MOTION,
    NOT_DIRECTABLE,
    Pipeline,
    State,
    StateOptions,
)
from letstalk_rt.inference.step_times import StepTimes
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.performance.moods import Style
from letstalk_rt.performance.performer import Performer
from letstalk_rt.session.options import SessionOptions, segmenter_for
from letstalk_rt.session.portraits import AnyPortrait, FaceReader, prepare_any, result_of
from letstalk_rt.session.session import AvatarSession
from letstalk_rt.types import SAMPLE_RATE, AVFrame, MotionOptions, Portrait

if TYPE_CHECKING:
    from letstalk_rt.dubbing.dub_film import DubResult

__all__ = ["AudioSource", "Avatar", "AvatarSession", "Pipeline"]

_LOAD = "letstalk_rt.inference.pipeline:AvatarPipeline.load"

AudioSource = str | os.PathLike[str] | np.ndarray | Iterable[np.ndarray]


class Avatar:
    """A portrait with the model that animates it and the thread that runs the model.

    Create one with `load` or `from_pipeline`. Any number of sessions may share it. Close it with
    `close` or use it in a `with` statement.

    Args:
        worker: runs the model.
        portrait: the portrait to animate.
        owns_worker: whether closing the avatar shuts the worker down.
    """

    def __init__(
        self, worker: ModelWorker[Any], portrait: Portrait, *, owns_worker: bool = False
    ) -> None:
        self.pipeline = worker.pipeline
        self.portrait = portrait
        self._worker = worker
        self._owns_worker, self._owns_pipeline = owns_worker, False

    @classmethod
    def load(
        cls,
        portrait: AnyPortrait,
        preset: str = "tiny",
        device: str = "auto",
        *,
        size: int = 512,
        face_at: tuple[float, float] | None = None,
        steps: int | None = None,
        threads: int | None = None,
        weights: str | os.PathLike[str] | None = None,
        isolated: bool = False,
    ) -> Self:
        """Load a model and prepare a portrait for it. Blocks for some seconds.

        The first time on a machine, it also measures how fast that is; further portraits of a
        model that is loaded are ready in less than a second.

        Args:
            portrait: path, bytes of an image file, `(H, W, 3)` uint8 RGB array, or PIL image; or
                path or bytes of a short film of a person, which is then shown back and forth; or
                the name of a default avatar, such as `mira`, where no file is called so; or a
                portrait that `prepare` has returned.
            preset: name of the model.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            size: longer side of the video in pixels.
            face_at: a point on the face to animate, as shares of width and height of the upright
                image: `(0.75, 0.4)` is right of the middle. None takes the largest face; if there
                are others, a `PortraitWarning` says so.
            steps: sampling steps per window; None for the preset's default.
            threads: CPU threads that the model may use; None for torch's default.
            weights: weights file of the preset; None for the one in the package.
            isolated: run the model in a process of its own, which is started again when it dies.
                The main module must then be importable: guard its code by
                `if __name__ == "__main__"`.

        Raises:
            PortraitError: the source is not an image or a film, or has no usable face.
            WeightsError: the weights are missing, damaged or of another preset.
            ConfigError: the preset or device is unknown, or a setting is out of range.

        Warns:
            PortraitWarning: the image shows several faces, or a small one.
        """
        options = {
            "preset": preset,
            "device": device,
            "steps": steps,
            "threads": threads,
            "weights": None if weights is None else Path(weights),
        }
        pipeline = IsolatedPipeline(_LOAD, options) if isolated else _load(options)
        try:
            prepared = prepare_any(portrait, pipeline, size, face_at)
        except BaseException:
            _close(pipeline)
            raise
        avatar = cls.from_pipeline(pipeline, prepared)
        avatar._owns_pipeline = True
        try:
            avatar.measure_steps()
        except BaseException:
            avatar.close()
            raise
        return avatar

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Pipeline[State],
        portrait: Portrait,
        *,
        worker: ModelWorker[State] | None = None,
    ) -> Self:
        """Create an avatar from a loaded model.

        Args:
            pipeline: the model.
            portrait: the portrait to animate.
            worker: an existing worker of this pipeline, which the caller shuts down; None creates
                one that the avatar owns.
        """
        if worker is None:
            return cls(ModelWorker(pipeline), portrait, owns_worker=True)
        assert worker.pipeline is pipeline, "the worker runs another model"
        return cls(worker, portrait)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its frames."""
        height, width = self.portrait.canvas.shape[:2]
        return width, height

    def prepare(
        self,
        image: AnyPortrait,
        *,
        size: int | None = None,
        face_at: tuple[float, float] | None = None,
    ) -> Portrait:
        """Find the face of an image and frame it, once; blocks for about half a second.

        A session takes the result at once (`AvatarSession.change_portrait`), and so does
        `with_portrait`. `Portrait.save` and `Portrait.load` keep it in a file. May be called from
        any thread but the one of the event loop, also while sessions run.

        Args:
            image: what `load` takes.
            size: longer side of the video in pixels, 256 to 1080; None for that of this avatar.
            face_at: a point on the face to animate; see `load`.

        Raises:
            PortraitError: the source is not an image or a film, or has no usable face.
            ConfigError: `size` or `face_at` is out of range, or the model finds no faces.

        Warns:
            PortraitWarning: the image shows several faces, or a small one.
        """
        longer = max(self.size) if size is None else size
        return prepare_any(image, FaceReader(self._worker), longer, face_at)

    def with_portrait(self, portrait: Portrait) -> Self:
        """Return an avatar with another portrait that shares this one's model and thread.

        This avatar keeps the ownership of both: close it last.
        """
        return type(self)(self._worker, portrait)

    def session(self, **options: Unpack[SessionOptions]) -> AvatarSession:
        """Create a live session; see `AvatarSession` for the options."""
        return AvatarSession(self._worker, self.portrait, **options)

    def measure_steps(self, *, anew: bool = False) -> StepTimes | None:
        """Measure how long steps take here, unless a start before has; None if nothing keeps it.

        Blocks for some seconds the first time. Sessions then begin at a quality level that fits
        this machine; `load` does this, too.

        Args:
            anew: measure even if a start before has.
        """
        return self._worker.measure_steps(self.portrait, anew=anew)

    def measure_load(self) -> MeasuredLoad:
        """Measure what a step costs here; the result tells how full the worker is.

        Blocks for some seconds. Call it before the first session, which would be delayed.
        """
        return MeasuredLoad(self._worker, StepCost.measure(self._worker, self.portrait))

    def render(
        self,
        audio: AudioSource,
        sample_rate: int = SAMPLE_RATE,
        *,
        seed: int = 0,
        steps: int | None = None,
        motion: MotionOptions = DEFAULT_MOTION,
        mood: str | Style = "neutral",
        mood_strength: float = 1.0,
        cues: Sequence[tuple[float, str]] = (),
    ) -> Iterator[AVFrame]:
        """Render the frames of one whole utterance, as fast as the machine can.

        The audio of all frames, joined, is `audio` at 16 kHz, padded with silence to whole frames.
        The next window is computed while the caller uses the current one.

        Args:
            audio: path of an audio file; or samples as for `AvatarSession.push_audio`, as one array
                or an iterable of arrays.
            sample_rate: sample rate of the arrays in Hz, from 8000 to 192000; ignored for a file.
            seed: seed of all randomness in the video, not negative.
            steps: sampling steps per window, from 1 to 50; None for the model's default.
            motion: how the face moves.
            mood: how the avatar feels; see `AvatarSession.set_mood`.
            mood_strength: how much of that is shown, from 0 to 1.
            cues: seconds of audio, and the name of a mood or a gesture that falls there.

        Returns:
            An iterator of frames, numbered from 0. It raises `AudioFormatError` if the audio is
            empty or not supported, `PortraitError` if the portrait is not prepared for this model,
            and `EngineError` if a step failed.

        Raises:
            AudioFormatError: the file or the sample rate is not supported.
            ConfigError: `seed` or `steps` is out of range, there is no such mood or gesture, or
                this model cannot be directed.
        """
        options = StateOptions(seed, steps, motion=motion)
        performer = Performer(mood, mood_strength, max_waiting=math.inf)
        for at_s, name in cues:
            performer.cue(name, 0, at_s)
        if (cues or mood != "neutral") and not self.pipeline.is_directable:
            raise ConfigError(NOT_DIRECTABLE)
        if isinstance(audio, str | os.PathLike):
            audio, sample_rate = _read_file(audio)
        chunks = [audio] if isinstance(audio, np.ndarray) else audio
        hops = self._hops(chunks, SpeechResampler(sample_rate))
        return self._render(hops, options, performer)

    @staticmethod
    def dub(
        film: str | os.PathLike[str],
        speech: str | os.PathLike[str] | np.ndarray,
        output: str | os.PathLike[str],
        sample_rate: int = SAMPLE_RATE,
        *,
        preset: str = "tiny",
        device: str = "auto",
        threads: int | None = None,
        weights: str | os.PathLike[str] | None = None,
        longer: str = "loop",
        trim: bool = False,
        badge: bool = True,
        on_frame: Callable[[], object] = lambda: None,
    ) -> "DubResult":
        """Write a film of a person that says something else. Blocks until it is done.

        Head, gaze, body and background stay those of the film; frames without a face, and faces in
        profile, stay as they are. Memory does not grow with the length. The person must have
        consented.

        Args:
            film: path of a video file.
            speech: path of an audio or video file, or samples as for `render`.
            output: a path that ends in .mp4, .m4v, .mov or .mkv.
            sample_rate: sample rate of samples in Hz; ignored for a file.
            preset: name of the model.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            threads: CPU threads that the model may use; None for torch's default.
            weights: weights file of the preset; None for the one in the package.
            longer: what is shown while the speech is longer than the film: `loop` goes back and
                forth, `hold` keeps the last frame, whose lips still move, `cut` ends.
            trim: end with the speech, even if the film is longer.
            badge: draw the badge "AI avatar" into the frames.
            on_frame: called after each frame.

        Raises:
            FilmError: the film cannot be read, or shows no face that can be dubbed.
            AudioFormatError: the speech cannot be read.
            ConfigError: an option is unknown, or the output cannot be written.
        """
        from letstalk_rt.dubbing.dub_film import DubOptions, Speech, dub_film
        from letstalk_rt.dubbing.extension import longer_from
        from letstalk_rt.dubbing.film import Film

        options = DubOptions(longer_from(longer), trim, badge)
        source = speech if isinstance(speech, np.ndarray) else Path(speech)
        opened, voice = Film(Path(film)), Speech(source, sample_rate)
        own = None if weights is None else Path(weights)
        pipeline = _load({"preset": preset, "device": device, "threads": threads, "weights": own})
        return dub_film(pipeline, opened, voice, Path(output), options, on_frame)

    def close(self) -> None:
        """Stop the model thread, once its queued calls are done. Close all sessions first.

        May be called twice.
        """
        if self._owns_worker:
            self._worker.shutdown(wait=True)
        if self._owns_pipeline:
            _close(self.pipeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _hops(self, chunks: Iterable[np.ndarray], resampler: SpeechResampler) -> Iterator[Hop]:
        segmenter = segmenter_for(self.pipeline)
        for chunk in chunks:
            check_pcm(chunk)
            for start in range(0, len(chunk), resampler.sample_rate):
                second = chunk[start : start + resampler.sample_rate]
                yield from segmenter.push(resampler.push(second))
        yield from segmenter.push(resampler.flush())
        for item in segmenter.end_segment():
            if isinstance(item, SegmentBoundary):
                raise AudioFormatError("the audio is empty; pass at least one sample")
            yield item

    def _render(
        self, hops: Iterator[Hop], options: StateOptions, performer: Performer
    ) -> Iterator[AVFrame]:
        state = result_of(self._worker.submit(self.pipeline.init_state, self.portrait, options))
        index = -self.pipeline.lookahead_frames  # the first frames show the time before the audio
        for hop, frames in self._windows(hops, state, performer):
            for rgb, audio in zip(frames[: hop.end_after], hop.frame_audio, strict=False):
                if index >= 0:
                    yield AVFrame(
                        rgb,
                        audio.pcm,
                        index,
                        audio.segment_id,
                        epoch=0,
                        spoken=audio.spoken,
                        voiced=audio.spoken > 0,
                    )
                index += 1

    def _windows(
        self, hops: Iterator[Hop], state: Any, performer: Performer
    ) -> Iterator[tuple[Hop, np.ndarray]]:
        """Run one step per hop, one step ahead of the caller."""
        ahead: tuple[Hop, Future[np.ndarray]] | None = None
        for hop in hops:
            if (direction := performer.window(hop.frame_audio)) is not None:
                self._worker.submit(self.pipeline.direct, state, direction)  # in its turn
            future = self._worker.step(hop.pcm, state)
            if ahead is not None:
                yield ahead[0], result_of(ahead[1])
            ahead = hop, future
        if ahead is not None:
            yield ahead[0], result_of(ahead[1])


def _load(options: dict[str, Any]) -> Any:
    from letstalk_rt.inference.pipeline import AvatarPipeline

    return AvatarPipeline.load(**options)


def _close(pipeline: Pipeline[Any]) -> None:
    """End the process of an isolated model."""
    if isinstance(pipeline, IsolatedPipeline):
        pipeline.close()


def _read_file(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    from letstalk_rt.audio.files import read_audio

    samples, sample_rate = read_audio(Path(path))
    if samples.ndim == 2:  # a file may have six channels
        samples = samples.mean(axis=1, dtype=np.float32)
    return samples, sample_rate
