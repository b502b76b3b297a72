"""Changes the lips in a stream of frames: frames in, frames out, in constant memory.

A short look-ahead finds the first references of a shot before it is shown, and lets the change fade
out before a face is lost. References are added while the film goes on; from one to the next there
is a cross-fade. Frames without a face, and faces in profile, pass through untouched.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.dubbing.cuts import CutDetector
from letstalk_rt.dubbing.lip_track import LipValues
from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.face_reader import FaceReader, FilmedFace
from letstalk_rt.inference.lower_face import LowerFaces, has_lower_faces
from letstalk_rt.inference.mouth_renderer import MouthRenderer, MouthTask, Patch
from letstalk_rt.inference.reference_frames import (
    FADE_FRAMES,
    MOST_REFERENCES,
    NEW_POSE,
    TURNED,
    Reference,
    ReferenceMixer,
    head_pose,
    make_reference,
    pose_distance,
    reference_cost,
    shown_share,
)
from letstalk_rt.inference.steady_latents import MOOD_FRAMES, PlacedLatent, steady_latent
from letstalk_rt.inference.teeth import Teeth
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.detector import FaceFinder
from letstalk_rt.models.parts import MOTION, MOUTH_PAINTER
from letstalk_rt.threads import thread_limit

LOOKAHEAD = 30
"""Frames that are read before one is returned; fewer of large frames, see `LOOKAHEAD_BYTES`."""

LOOKAHEAD_BYTES = 256 * 2**20

_BETTER = 0.12  # a reference is replaced by one whose cost is lower by this

TOGETHER = 4
"""Frames that are rendered together."""

_LARGE_BYTES = 8 * 2**20  # frames that are larger are rendered one by one

Item = TypeVar("Item")


@dataclass
class _Shown(Generic[Item]):
    """A frame in the look-ahead."""

    item: Item
    rgb: np.ndarray
    time_s: float
    face: FilmedFace | None
    shot: int


@dataclass
class _Shot:
    """What is known of the shot that is shown.

    Attributes:
        number: counts the cuts.
        references: references of the person.
        mixer: chooses among them.
        strength: of the last frame; None before the first.
        teeth: how the inside of the mouth looks.
        past: latents of the last frames with a face, and the places of their crops.
        lower: generates lower faces; None before the first, and for a model that cannot.
        generated: latents with generated lower faces, of the next frames.
    """

    number: int
    teeth: Teeth
    references: list[Reference] = field(default_factory=list)
    mixer: ReferenceMixer = field(default_factory=ReferenceMixer)
    strength: float | None = None
    past: deque[FilmedFace] = field(default_factory=lambda: deque(maxlen=MOOD_FRAMES))
    lower: LowerFaces | None = None
    generated: deque[Tensor] = field(default_factory=deque)

    def interrupt(self) -> None:
        """Begin anew with generated lower faces, as after a frame without a face."""
        self.generated.clear()
        if self.lower is not None:
            self.lower.forget()


class Dubber:
    """Changes the lips of one film.

    Args:
        model: a model with a motion denoiser.
        finder: finds faces in whole images.
        dtype: number format of the encoder.

    Raises:
        ConfigError: the model has no motion denoiser.
    """

    def __init__(
        self, model: AvatarModel, finder: FaceFinder, dtype: torch.dtype = torch.float32
    ) -> None:
        if model.face is None or model.get(MOTION) is None:
            raise ConfigError(
                f"preset {model.preset.name!r} has no motion denoiser, which dubbing needs; use "
                "the preset 'tiny', or train `letstalk train landmarks` for a large one"
            )
        self._model = model
        self._reader = FaceReader(finder, model.face.autoencoder, dtype)
        self._renderer = MouthRenderer(model)

    def dub(
        self, frames: Iterable[tuple[Item, np.ndarray, float]], lips: LipValues
    ) -> Iterator[tuple[Item, Patch | None]]:
        """Yield each frame's item with the part that changes; None if nothing does.

        One thread follows the face while others render.

        Args:
            frames: anything that stands for the frame, its pixels `(H, W, 3)` uint8, and the time
                of its middle in seconds.
            lips: lip values of the new speech, and its audio tokens.
        """
        workers = max(1, torch.get_num_threads() - 1)
        groups: deque[tuple[list[Item], Future[list[Patch | None]]]] = deque()
        with ThreadPoolExecutor(workers, "letstalk-dub") as pool, thread_limit(1):
            try:
                for group in _grouped(self._tasks(frames, lips)):
                    tasks = [task for _, task in group]
                    future = pool.submit(_rendered, self._renderer, tasks)
                    groups.append(([item for item, _ in group], future))
                    if len(groups) > 2 * workers:
                        yield from _results(groups.popleft())
                while groups:
                    yield from _results(groups.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _tasks(
        self, frames: Iterable[tuple[Item, np.ndarray, float]], lips: LipValues
    ) -> Iterator[tuple[Item, MouthTask | None]]:
        """Yield each frame's item with what is to be rendered."""
        self._reader.reset()
        ahead: deque[_Shown[Item]] = deque()
        cuts, number, shot = CutDetector(), 0, None
        for item, rgb, time_s in frames:
            if cuts.is_cut(rgb):
                number += 1
                self._reader.reset()
            ahead.append(_Shown(item, rgb, time_s, self._reader.read(rgb), number))
            if len(ahead) > min(LOOKAHEAD, LOOKAHEAD_BYTES // rgb.nbytes):
                shot = self._shot(ahead, shot)
                self._extend(shot, ahead[-1])
                yield ahead[0].item, self._show(ahead, shot, lips)
                ahead.popleft()
        while ahead:
            shot = self._shot(ahead, shot)
            yield ahead[0].item, self._show(ahead, shot, lips)
            ahead.popleft()

    def _shot(self, ahead: deque[_Shown[Item]], shot: _Shot | None) -> _Shot:
        """Return the shot of the next frame; a new one begins with the best of the look-ahead."""
        number = ahead[0].shot
        if shot is None or shot.number != number:
            shot = _Shot(number, Teeth(self._model.get(MOUTH_PAINTER)))
            for shown in ahead:
                if shown.shot == number and shown.face is not None:
                    shot.teeth.offer(shown.face)
        if not shot.references:
            self._begin(shot, ahead)
        return shot

    def _begin(self, shot: _Shot, ahead: deque[_Shown[Item]]) -> None:
        """Make the first references of a shot: of the frames ahead, those that suit best."""
        usable = [s for s in ahead if s.shot == shot.number and _is_usable(s.face)]
        if usable:
            first = head_pose(_face(usable[0]).points)

            def total(shown: _Shown[Item]) -> float:
                face = _face(shown)
                cost = reference_cost(face.points, face.sharpness)
                return pose_distance(head_pose(face.points), first) + cost

            best = min(usable, key=total)
            shot.references.append(make_reference(self._model, best.rgb, _face(best)))
            for shown in ahead:
                self._extend(shot, shown)

    def _extend(self, shot: _Shot, newest: _Shown[Item]) -> None:
        """Add or replace references by a frame of the look-ahead."""
        if newest.shot != shot.number or newest.face is None or not _is_usable(newest.face):
            return
        shot.teeth.offer(newest.face)
        pose = head_pose(newest.face.points)
        cost = reference_cost(newest.face.points, newest.face.sharpness)
        near = [r for r in shot.references if pose_distance(r.pose, pose) < NEW_POSE]
        if near and min(r.cost for r in near) - _BETTER <= cost:
            return
        made = make_reference(self._model, newest.rgb, newest.face)
        kept = [r for r in shot.references if all(r is not other for other in near)]
        shot.references = [made, *kept][:MOST_REFERENCES]

    def _show(self, ahead: deque[_Shown[Item]], shot: _Shot, lips: LipValues) -> MouthTask | None:
        """Return what is to be rendered in the next frame; None if it passes through."""
        shown = ahead[0]
        values = lips.at(shown.time_s)
        strength = shot.strength = _strength(ahead, shot)
        if strength <= 0 or shown.face is None or not shot.references:
            shot.interrupt()
            return None
        shot.teeth.change_if_closed(values)
        coming = [s.face for s in ahead if s.shot == shot.number and s.face is not None]
        steady = replace(shown.face, latent=_steady(shot, coming, 0))
        mood = torch.stack([f.latent for f in [*shot.past, *coming[:MOOD_FRAMES]]]).mean(0)
        poses = [head_pose(face.points) for face in coming[: FADE_FRAMES + 1]]
        mixed = shot.mixer.mix(shot.references, poses)
        if not shot.generated:
            shot.generated.extend(self._generate(ahead, shot, lips, mixed[-1][0]))
        shot.past.append(shown.face)
        paint = shot.teeth.painter
        generated = shot.generated.popleft() if shot.generated else None
        return MouthTask(shown.rgb, steady, mixed, values, paint, strength, mood, generated)

    def _generate(
        self, ahead: deque[_Shown[Item]], shot: _Shot, lips: LipValues, reference: Reference
    ) -> list[Tensor]:
        """Return the next frames' latents with generated lower faces; none if the model cannot.

        If the face is lost or the shot ends within the window, its last frame stands for the rest.
        """
        count = self._model.denoiser.config.window
        window = list(
            takewhile(lambda s: s.shot == shot.number and s.face is not None, islice(ahead, count))
        )
        tokens = lips.tokens_at([s.time_s for s in window])
        if not has_lower_faces(self._model) or tokens is None:
            return []
        if shot.lower is None:
            shot.lower = LowerFaces(self._model)
        coming = [s.face for s in ahead if s.shot == shot.number and s.face is not None]
        latents = torch.stack([_steady(shot, coming, i) for i in range(len(window))])
        places = [min(i, len(window) - 1) for i in range(count)]
        made = shot.lower.generate(latents[places], tokens[places], reference.motion)
        return list(made[: len(window)])


def _face(shown: _Shown[Item]) -> FilmedFace:
    assert shown.face is not None
    return shown.face


def _steady(shot: _Shot, coming: list[FilmedFace], index: int) -> Tensor:
    """Return the latent of one of the faces to come, with less noise if the head is still."""
    before = map(_placed, [*reversed(coming[:index]), *reversed(shot.past)])
    return steady_latent(_placed(coming[index]), before, map(_placed, coming[index + 1 :]))


def _placed(face: FilmedFace) -> PlacedLatent:
    return PlacedLatent(id(face.to_crop), face.latent)


def _is_usable(face: FilmedFace | None) -> bool:
    return face is not None and abs(face.yaw) < TURNED


def _strength(ahead: deque[_Shown[Item]], shot: _Shot) -> float:
    """Return how much of the change the next frame shows; it changes slowly within a shot."""
    most = 1.0 if shot.strength is None else shot.strength + 1 / FADE_FRAMES
    coming = [s for s in list(ahead)[: FADE_FRAMES + 1] if s.shot == shot.number]
    return min(most, *(_wanted(s) + i / FADE_FRAMES for i, s in enumerate(coming)), 1.0)


def _wanted(shown: _Shown[Item]) -> float:
    return shown_share(None if shown.face is None else shown.face.yaw)


def _grouped(
    tasks: Iterator[tuple[Item, MouthTask | None]],
) -> Iterator[list[tuple[Item, MouthTask | None]]]:
    """Yield tasks in groups to be rendered together; large frames one by one."""
    group: list[tuple[Item, MouthTask | None]] = []
    for item, task in tasks:
        group.append((item, task))
        if len(group) == TOGETHER or (task is not None and task.rgb.nbytes > _LARGE_BYTES):
            yield group
            group = []
    if group:
        yield group


def _rendered(renderer: MouthRenderer, tasks: list[MouthTask | None]) -> list[Patch | None]:
    """Render in this thread what is to be rendered."""
    with thread_limit(1):
        patches = iter(renderer.render([task for task in tasks if task is not None]))
    return [None if task is None else next(patches) for task in tasks]


def _results(
    group: tuple[list[Item], Future[list[Patch | None]]],
) -> Iterator[tuple[Item, Patch | None]]:
    items, future = group
    return zip(items, future.result(), strict=True)
