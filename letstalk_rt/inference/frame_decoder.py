"""From latents to the frames of a window: decoded, composited, and returned in partial windows."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.batch_frame import BatchFrame, Composited, finish
from letstalk_rt.inference.cuda_graphs import CompiledFunction
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.quality import FULL_QUALITY, Quality, plan_window
from letstalk_rt.inference.session_state import ShownPortrait
from letstalk_rt.metrics import StageTimer
from letstalk_rt.models.autoencoder.latents import DecodedLayers
from letstalk_rt.models.autoencoder.part_decoding import decode_mouths
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather
from letstalk_rt.models.parts import MOUTH_PAINTER
from letstalk_rt.portrait.brow_compositor import move_brows
from letstalk_rt.threads import DecodePool
from letstalk_rt.types import FPS

T = TypeVar("T")

_FULL_SIZE_COST, _DECODE_COST = 0.05, 0.2
"""What the parts of a step take that a lower quality leaves out, of a step of full quality."""

_IMAGE_COST = 0.7
"""Share of a step that depends on the number of images."""

_LOW_FPS = (20, 15, 12)


@dataclass(frozen=True)
class FrameDetails:
    """What is drawn onto the decoded frames of one session.

    Attributes:
        eye_closures: how far both eyes are closed in each of N frames, in [0, 1]; the eye on the
            left of the image first.
        sound: the sound around each frame, for the mouth, `(N, S)`; None if unknown.
        eyes: how far lids and irises are from the portrait's, `(N, 4)`: see `moved_eyes`; None for
            what the latents hold.
        brows: motion of the brows, `(N, 3)`: see `BROW_MOTION`; None for what the latents hold.
    """

    eye_closures: Sequence[tuple[float, float]]
    sound: Tensor | None
    eyes: Tensor | None = None
    brows: Tensor | None = None

    def of(self, numbers: Sequence[int]) -> "FrameDetails":
        """Return the details of some of the frames."""
        closures = [self.eye_closures[number] for number in numbers]
        sound = None if self.sound is None else self.sound[list(numbers)]
        eyes = None if self.eyes is None else self.eyes[list(numbers)]
        brows = None if self.brows is None else self.brows[list(numbers)]
        return FrameDetails(closures, sound, eyes, brows)


class FrameDecoder:
    """Decodes the latents of a window and composites the faces into the portraits.

    Args:
        model: in eval mode, on its device and in its number formats.
        compiled: whether the decoder is compiled by torch.compile.
        recorded: whether the decoder is recorded as CUDA graphs.

    Attributes:
        partial_sizes: number of frames in each partial window. On a CPU they are single frames,
            because the first is due while the last is still being decoded; a GPU decodes the whole
            window at once, and so does compiled code, which would be recompiled for each shape.
        decode_pool: threads that decode frames in parallel; None for whole windows. Frames that are
            decoded one by one are decoded around the mouth only: see `decode_mouths`.
        quality_levels: see `Pipeline`.
    """

    kind = PictureState

    def __init__(self, model: AvatarModel, *, compiled: bool, recorded: bool) -> None:
        self._model = model
        window: int = model.denoiser.config.window
        whole = self._device.type != "cpu" or compiled
        self.partial_sizes: Sequence[int] = (window,) if whole else (1,) * window
        self.decode_pool = None if whole else DecodePool(window)
        self._per_frame = not whole
        self._decode = CompiledFunction(
            self._decoder(), name="decoder", compiled=compiled, recorded=recorded
        )
        self.quality_levels = self._levels()

    def init_state(self, shown: ShownPortrait, options: StateOptions) -> PictureState:
        """Create what shows a session's portrait."""
        return PictureState.of(self._model, shown, options.seed)

    def change_portrait(
        self, state: PictureState, shown: ShownPortrait, options: StateOptions
    ) -> PictureState:
        """Show another portrait at the same quality; no image of the old size is repeated."""
        changed = self.init_state(shown, options)
        changed.set_quality(state.quality)
        return changed

    def prepare(self, latents: Tensor, states: Sequence[PictureState]) -> list[Any]:
        """Prepare latents `(B, n, C, h, w)` of a window; return B inputs to slice by frame.

        If frames are decoded one by one, work that costs the same for one frame as for all is done
        here.
        """
        if not self._per_frame:
            return list(latents)
        pairs = zip(latents, states, strict=True)
        return [
            self._model.autoencoder.prepare_decoder(x, s.features.repeat(len(x))) for x, s in pairs
        ]

    def set_quality(self, state: PictureState, quality: Quality) -> None:
        """Change what is computed for a session from the next window on.

        Raises:
            ConfigError: this decoder has no such quality.
        """
        if not 1 <= quality.fps <= FPS or quality.decode_every < 1:
            raise ConfigError(f"fps must be from 1 to {FPS}, decode_every at least 1: {quality}")
        if quality.decode_every > 1 and not self._can_follow:
            raise ConfigError("this decoder has no flow between frames: decode_every must be 1")
        state.set_quality(quality)

    def decode(
        self,
        inputs: Sequence[Any],
        details: Sequence[FrameDetails],
        states: Sequence[PictureState],
        clock: StageTimer,
    ) -> Generator[list[np.ndarray], None, None]:
        """Yield partial windows in order, B arrays `(n, H, W, 3)` uint8, as soon as possible.

        Frames are decoded in parallel if there are threads. The sizes of the pictures may differ.

        Args:
            inputs: B results of `prepare`, for a window or the next frames of one.
            details: of each session, for the same frames.
            states: of B sessions; updated in place.
            clock: measures the stages decode and composite of each frame or window.
        """
        count = len(details[0].eye_closures)
        window = _Window.planned(inputs, details, states, clock, count)
        images = self._whole_window(window) if self.decode_pool is None else self._frames(window)
        sizes = (1,) * count if self._per_frame else (count,)
        with closing(images):
            for part in pairwise(accumulate(sizes, initial=0)):
                yield window.with_repeats(range(*part), next(images))
        window.note_end(count)

    def in_order(self, jobs: Sequence[Callable[[], T]]) -> Generator[T, None, None]:
        """Yield the results of jobs in order, which run in parallel if there are threads."""
        if self.decode_pool is None:
            return (job() for job in jobs)
        return _results_in_order([self.decode_pool.submit(job) for job in jobs])

    @torch.inference_mode()
    def _whole_window(self, window: "_Window") -> Generator[list[np.ndarray | None], None, None]:
        """Yield once: the new images of each session, `(m, H, W, 3)` uint8."""
        with window.clock.stage("decode"):
            frames = self._decode_all(window)
        with window.clock.stage("composite"):
            made: list[Composited | None] = []
            for index, (one, plan) in enumerate(zip(frames, window.plans, strict=True)):
                new = [number for number, decoded in enumerate(plan) if decoded is not None]
                chosen = one if len(new) == len(plan) else one[new]
                made.append(window.composite(index, new, chosen) if new else None)
            images = finish(made, self._model.get(MOUTH_PAINTER))
        yield images

    def _decode_all(self, window: "_Window") -> Sequence[Tensor | DecodedLayers]:
        pairs = zip(window.inputs, window.states, strict=True)
        if self._device.type == "cpu":
            return [self._decode(x[None], s.features)[0] for x, s in pairs]
        features = gather([s.features for s in window.states])
        frames = self._decode(torch.stack(list(window.inputs)), features)
        return [frames[i] for i in range(len(window.states))]

    def _frames(self, window: "_Window") -> Generator[list[np.ndarray | None], None, None]:
        """Yield for each frame the new image of each session, `(1, H, W, 3)` uint8, or None.

        A thread decodes one frame of one session, and those that follow it: the feature maps of
        several sessions do not fit into the cache of a CPU, where a batch of four takes a tenth
        longer. The thread that composites the last of them inpaints the mouths of all sessions.
        When closed or failed, wait until all threads have ended.
        """
        assert self.decode_pool is not None
        groups = sorted(
            (group, index) for index in range(len(window.plans)) for group in window.groups(index)
        )
        painter = self._model.get(MOUTH_PAINTER)
        frames = [BatchFrame(column, painter) for column in zip(*window.plans, strict=True)]
        jobs = [
            self.decode_pool.submit(self._decode_group, window, index, group, frames)
            for group, index in groups
        ]
        try:
            for frame in frames:
                yield frame.images.result()
        finally:
            wait(jobs)

    @torch.inference_mode()
    def _decode_group(
        self,
        window: "_Window",
        index: int,
        group: Sequence[int],
        frames: Sequence[BatchFrame],
    ) -> None:
        """Decode the first frame of a group; the others follow it. Add what is composited."""
        added = 0
        try:
            features, first = window.states[index].features, window.frame(index, group[0])
            with window.clock.stage("decode"):
                decoded = self._decode(first, features)
            for number in group:
                frame = decoded
                if number != group[0]:
                    with window.clock.stage("follow"):
                        inputs = window.frame(index, number)
                        frame = self._follow(inputs, features, first, decoded)
                with window.clock.stage("composite"):
                    frames[number].add(index, window.composite(index, [number], frame))
                added += 1
        except BaseException as error:
            for number in group[added:]:
                frames[number].fail(error)

    def _follow(self, *arguments: Any) -> DecodedLayers:
        autoencoder = self._model.autoencoder.landmarks
        assert autoencoder is not None, "see `set_quality`"
        return autoencoder.follow_landmarks(*arguments)

    @property
    def _can_follow(self) -> bool:
        return self._per_frame and self._model.autoencoder.landmarks is not None

    def _levels(self) -> tuple[Quality, ...]:
        """Return the quality levels of this model: what is seen least is left out first.

        The mouth painter stays at every level: the decoder has not learned to draw teeth.
        """
        levels = [FULL_QUALITY]

        def add(saved: float, **changes: Any) -> None:
            levels.append(replace(levels[-1], cost=levels[-1].cost - saved, **changes))

        if self._model.face is not None:
            add(_FULL_SIZE_COST, full_size=False)
        if self._can_follow:
            add(_DECODE_COST, decode_every=2)
        each = levels[-1].cost * _IMAGE_COST / FPS  # of one image per second
        for fps in _LOW_FPS:
            add(each * (levels[-1].fps - fps), fps=fps)
        return tuple(levels)

    def _decoder(self) -> Callable[..., Any]:
        autoencoder = self._model.autoencoder
        if not self._per_frame:
            return autoencoder.decode_layers
        if autoencoder.landmarks is None:
            return autoencoder.run_decoder
        return partial(decode_mouths, autoencoder.landmarks)

    @property
    def _device(self) -> torch.device:
        return self._model.motion_scale.device


@dataclass
class _Window:
    """The window of B sessions that is being decoded.

    Attributes:
        inputs: see `FrameDecoder.decode`.
        details: see `FrameDecoder.decode`.
        states: states of B sessions.
        clock: measures the stages.
        plans: for each session, see `plan_window`.
    """

    inputs: Sequence[Any]
    details: Sequence[FrameDetails]
    states: Sequence[PictureState]
    clock: StageTimer
    plans: list[list[int | None]]

    @classmethod
    def planned(
        cls,
        inputs: Sequence[Any],
        details: Sequence[FrameDetails],
        states: Sequence[PictureState],
        clock: StageTimer,
        count: int,
    ) -> "_Window":
        """Plan a window of `count` frames."""
        plans = [plan_window(s.quality, s.made, count) for s in states]
        return cls(inputs, details, states, clock, plans)

    def groups(self, index: int) -> list[list[int]]:
        """Return the frames of a session that are decoded, each with those that follow it."""
        plan = self.plans[index]
        decoded = [number for number, source in enumerate(plan) if source == number]
        return [[n for n, source in enumerate(plan) if source == first] for first in decoded]

    def frame(self, index: int, number: int) -> Any:
        """Return the decoder's inputs for one frame of a session."""
        return self.inputs[index][number : number + 1]

    def composite(
        self, index: int, numbers: Sequence[int], frames: Tensor | DecodedLayers
    ) -> Composited:
        """Composite these frames of a session into its portrait."""
        state = self.states[index]
        if isinstance(frames, Tensor):  # such a model generates blinks and mouths itself
            return Composited(torch.from_numpy(state.compositor.compose(frames)), None)
        details = self.details[index].of(numbers)
        full_size = state.quality.full_size
        shown = state.compositor.compose_layers(frames, full_size=full_size)
        points = state.compositor.to_canvas(frames.points)
        if details.brows is not None:
            move_brows(shown, points, details.brows)
        if state.eyes is not None:
            motion = state.eyes.motion(frames.points) if details.eyes is None else details.eyes
            state.eyes(shown, points, motion, details.eye_closures)
        if state.mouths is None:
            return Composited(shown, None)
        return Composited(shown, state.mouths.crop_open(shown, points, details.sound))

    def with_repeats(self, part: range, images: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Return the frames of each session in a partial window, `(n, H, W, 3)` uint8.

        Args:
            part: numbers of its frames.
            images: the new images of each session among them.
        """
        filled = []
        for state, plan, new in zip(self.states, self.plans, images, strict=True):
            is_new = [plan[number] is not None for number in part]
            if new is not None and state.quality.fps == FPS:
                filled.append(new)
                continue
            made = iter(() if new is None else new)
            each = [state.image(next(made) if one else None) for one in is_new]
            filled.append(np.stack(each))
        return filled

    def note_end(self, count: int) -> None:
        """Record that `count` frames were made."""
        for state in self.states:
            state.made += count


def _results_in_order(jobs: "Sequence[Future[T]]") -> Generator[T, None, None]:
    """Yield the results of jobs in order; when closed or failed, wait until all have ended."""
    try:
        for job in jobs:
            yield job.result()
    finally:
        wait(jobs)
