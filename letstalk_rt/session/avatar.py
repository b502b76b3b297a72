"""Avatars: a model, a face and the thread they run in.

    avatar = Avatar.load("portrait.jpg")
    async with avatar.session() as session:
        await session.push_audio(pcm, 48_000)   # one task
        async for item in session:              # another task
            ...

The verbs are those of LiveKit's `VideoGenerator`, so an adapter to it is a few lines. This room
knows no torch and no transport.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import numpy as np

from letstalk_rt.audio.resample import Resampler, check_pcm
from letstalk_rt.audio.segmenter import Hop, SegmentBoundary
from letstalk_rt.errors import AudioFormatError, EngineError
from letstalk_rt.inference.protocol import (
    DEFAULT_MOTION,
    Pipeline,
    State,
    StateOptions,
)
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.session.options import SessionOptions, segmenter_for
from letstalk_rt.session.session import AvatarSession
from letstalk_rt.types import SAMPLE_RATE, AVFrame, MotionOptions, Portrait

__all__ = ["AudioSource", "Avatar", "AvatarSession", "Pipeline"]

T = TypeVar("T")

AudioSource = str | os.PathLike[str] | np.ndarray | Iterable[np.ndarray]


class Avatar:
    """A portrait that can speak: the model, the face, and the one thread that runs the model.

    Make it with `load` or `from_pipeline`. Any number of sessions may share it. Close it when done,
    by `close` or `with`.

    Args:
        worker: runs the model.
        portrait: the face.
        owns_worker: closing the avatar shuts the worker down.
    """

    def __init__(
        self, worker: ModelWorker[Any], portrait: Portrait, *, owns_worker: bool = False
    ) -> None:
        self.pipeline = worker.pipeline
        self.portrait = portrait
        self._worker = worker
        self._owns_worker = owns_worker

    @classmethod
    def load(
        cls,
        portrait: Any,
        preset: str = "tiny",
        device: str = "auto",
        *,
        size: int = 512,
        steps: int | None = None,
        threads: int | None = None,
    ) -> Self:
        """Load a model and prepare a portrait for it. Blocking, some seconds.

        Args:
            portrait: path, bytes of a picture file, `(H, W, 3)` uint8 RGB array, or PIL image.
            preset: name of the model.
            device: `auto`, `cpu` or `cuda`.
            size: of the picture that is shown, in pixels.
            steps: sampler steps per window; the preset's own when None.
            threads: of the CPU that the model may use; as torch decides when None.

        Raises:
            PortraitError: not a picture, or no usable face in it.
            WeightsError: the weights are missing or damaged.
            ConfigError: unknown preset or device, or a setting out of range.
        """
        from letstalk_rt.inference.pipeline import AvatarPipeline
        from letstalk_rt.portrait.image import prepare_portrait

        pipeline = AvatarPipeline.load(preset=preset, device=device, steps=steps, threads=threads)
        return cls.from_pipeline(pipeline, prepare_portrait(portrait, pipeline.finder, size=size))

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Pipeline[State],
        portrait: Portrait,
        *,
        worker: ModelWorker[State] | None = None,
    ) -> Self:
        """Make an avatar of a model that is loaded.

        Args:
            pipeline: the model.
            portrait: the face.
            worker: what runs this model, when there is one already; it stays the caller's to shut
                down. None makes one.
        """
        if worker is None:
            return cls(ModelWorker(pipeline), portrait, owns_worker=True)
        assert worker.pipeline is pipeline, "the worker runs another model"
        return cls(worker, portrait)

    def with_portrait(self, portrait: Portrait) -> Self:
        """Give an avatar with another face on the same model and thread; this one keeps both."""
        return type(self)(self._worker, portrait)

    def session(self, **options: Unpack[SessionOptions]) -> AvatarSession:
        """Make a live session; `AvatarSession` explains the options."""
        return AvatarSession(self._worker, self.portrait, **options)

    def render(
        self,
        audio: AudioSource,
        sample_rate: int = SAMPLE_RATE,
        *,
        seed: int = 0,
        steps: int | None = None,
        motion: MotionOptions = DEFAULT_MOTION,
    ) -> Iterator[AVFrame]:
        """Make the frames of one whole utterance, as fast as the machine can.

        The sound of the frames, joined, is `audio` at 16 kHz, filled with silence to a whole frame.
        The next window is computed while the caller uses the last.

        Args:
            audio: path of a sound file; or samples as `push_audio` takes them, one array or an
                iterable of arrays.
            sample_rate: of the arrays, in Hz, a whole number from 8000 to 192000; a file says its
                own.
            seed: of everything random in the pictures.
            steps: sampler steps per window; the model's own when None.
            motion: how the face moves.

        Returns:
            An iterator of frames, numbered from 0. It raises `AudioFormatError` where the sound
            cannot be used, or there is none, and `EngineError` where a step failed.

        Raises:
            AudioFormatError: the file or the rate cannot be used.
            ConfigError: `steps` is below 1.
        """
        options = StateOptions(seed, steps, motion=motion)
        if isinstance(audio, str | os.PathLike):
            audio, sample_rate = _read_file(audio)
        chunks = [audio] if isinstance(audio, np.ndarray) else audio
        return self._render(self._hops(chunks, Resampler(sample_rate)), options)

    def close(self) -> None:
        """Let the model thread end. Safe to call twice; sessions must be closed before."""
        if self._owns_worker:
            self._worker.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _hops(self, chunks: Iterable[np.ndarray], resampler: Resampler) -> Iterator[Hop]:
        segmenter = segmenter_for(self.pipeline)
        for chunk in chunks:
            check_pcm(chunk)
            for start in range(0, len(chunk), resampler.sample_rate):
                second = chunk[start : start + resampler.sample_rate]
                yield from segmenter.push(resampler.push(second))
        yield from segmenter.push(resampler.flush())
        for item in segmenter.end_segment():
            if isinstance(item, SegmentBoundary):
                raise AudioFormatError("the audio is empty; give at least one sample")
            yield item

    def _render(self, hops: Iterator[Hop], options: StateOptions) -> Iterator[AVFrame]:
        state = _result(self._worker.submit(self.pipeline.init_state, self.portrait, options))
        index = -self.pipeline.lookahead_frames  # the first frames show what was before the sound
        for hop, frames in self._windows(hops, state):
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

    def _windows(self, hops: Iterator[Hop], state: Any) -> Iterator[tuple[Hop, np.ndarray]]:
        """Run one step for each hop, one ahead of the caller."""
        ahead: tuple[Hop, Future[np.ndarray]] | None = None
        for hop in hops:
            future = self._worker.step(hop.pcm, state)
            if ahead is not None:
                yield ahead[0], _result(ahead[1])
            ahead = hop, future
        if ahead is not None:
            yield ahead[0], _result(ahead[1])


def _read_file(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    from letstalk_rt.audio.files import read_audio

    samples, sample_rate = read_audio(Path(path))
    if samples.ndim == 2:  # a file may have six channels
        samples = samples.mean(axis=1, dtype=np.float32)
    return samples, sample_rate


def _result(future: "Future[T]") -> T:
    try:
        return future.result()
    except Exception as error:
        raise EngineError("a step failed") from error
