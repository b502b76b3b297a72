"""Footage in live use: its frames are shown back and forth, with the lips of the session's speech.

The faces were found once, when the footage was prepared. So a step decodes JPEGs and renders lower
faces, which the denoiser generates to fit the rest of each face.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.inference.face_reader import FilmedFace, crop_pixels, face_from
from letstalk_rt.inference.lower_face import LowerFaces, has_lower_faces
from letstalk_rt.inference.mouth_renderer import MouthRenderer, MouthTask
from letstalk_rt.inference.reference_frames import (
    FADE_FRAMES,
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
from letstalk_rt.inference.steady_latents import PlacedLatent, moods, steady_latent
from letstalk_rt.inference.teeth import painter_with_teeth, teeth_score
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.parts import MOTION, MOUTH_PAINTER
from letstalk_rt.types import FaceTrack, Footage

MOST_LIVE_REFERENCES = 6
"""References of one footage; each takes a tenth of a second when a session starts."""

_EASING = 0.5  # weight of the new lips in the first frame after an interrupt
_KEPT = 33  # lip values that are kept, for as many frames as an interrupt may rewind


@dataclass(frozen=True)
class _Plan:
    """How one frame of the footage is rendered.

    Attributes:
        strength: how much of the change is shown.
        mixed: numbers and weights of the references.
        latent: of its face, with less noise if the head is still; None without a face.
        mood: the mean latent of the frames around, whose expression stays; likewise.
    """

    strength: float
    mixed: tuple[tuple[int, float], ...]
    latent: Tensor | None
    mood: Tensor | None


@dataclass(frozen=True)
class FootageFrame:
    """The next frame of a session.

    Attributes:
        index: which frame of the footage it shows.
        values: its lip values, `(Q,)`.
        generated: the latent of its face with a generated lower face; None for the reference's.
    """

    index: int
    values: Tensor
    generated: Tensor | None = None


class FootagePlayer:
    """Plays one footage in one session.

    Args:
        model: a model with a motion denoiser.
        footage: the footage.
        expressiveness: scale of lip movement.
        seed: seed of what is generated.

    Raises:
        ConfigError: the model has no motion denoiser.
        PortraitError: no face of the footage can be used.
    """

    def __init__(
        self, model: AvatarModel, footage: Footage, expressiveness: float, seed: int = 0
    ) -> None:
        if model.face is None or model.get(MOTION) is None:
            raise ConfigError(
                f"preset {model.preset.name!r} has no motion denoiser, which films as portraits "
                "need; use a picture, or the preset 'tiny'"
            )
        self._footage, self.expressiveness = footage, expressiveness
        self._autoencoder = model.face.autoencoder
        self._renderer = MouthRenderer(model)
        self._points = [self._points_of(track) for track in footage.faces]
        chosen = self._choose_references()
        if not chosen:
            raise PortraitError(
                "The film shows no face that can be used. Use a film of one person who looks "
                "towards the camera, well lit and not covered."
            )
        self._references = [make_reference(model, *self._frame(index)) for index in chosen]
        painter = model.get(MOUTH_PAINTER)
        best = max(chosen + list(self._usable()), key=self._teeth_score)
        self._paint = None if painter is None else painter_with_teeth(painter, self._frame(best)[1])
        self._plans = self._plan()
        self._lower = LowerFaces(model, seed) if has_lower_faces(model) else None
        self.reset()

    def reset(self) -> None:
        """Return to the beginning."""
        self._position = 0
        self._values: list[Tensor] = []
        self._eases = False
        if self._lower is not None:
            self._lower.reset()

    def next(self, lip_values: Tensor, tokens: Tensor | None = None) -> list[FootageFrame]:
        """Return the next frames.

        Args:
            lip_values: their lip values, `(N, Q)`.
            tokens: audio tokens of a window, `(N, K, A)`; None generates no lower faces.
        """
        frames = []
        for values in self.expressiveness * lip_values:
            if self._eases and self._values:
                values = torch.lerp(self._values[-1], values, _EASING)
            self._eases = False
            self._values = [*self._values, values][-_KEPT:]
            frames.append(FootageFrame(self._index(self._position), values))
            self._position += 1
        return frames if tokens is None else self._with_lower_faces(frames, tokens)

    def _with_lower_faces(self, frames: list[FootageFrame], tokens: Tensor) -> list[FootageFrame]:
        """Return a window with generated lower faces, if there is a face in each of its frames."""
        if self._lower is None:
            return frames
        latents = [self._plans[frame.index].latent for frame in frames]
        seen = [latent for latent in latents if latent is not None]
        if len(seen) < len(frames):
            self._lower.forget()
            return frames
        nearest = self._references[self._plans[frames[0].index].mixed[-1][0]]
        faces = self._lower.generate(torch.stack(seen), tokens, nearest.motion)
        return [replace(f, generated=face) for f, face in zip(frames, faces, strict=True)]

    def interrupt(self, unseen: int) -> None:
        """Go back by frames that were not shown; the lips come to rest from where they are."""
        self._position = max(0, self._position - unseen)
        self._values = self._values[: max(1, len(self._values) - unseen)]
        self._eases = True
        if self._lower is not None:
            self._lower.rewind(unseen)

    @torch.inference_mode()
    def render(self, frame: FootageFrame) -> np.ndarray:
        """Return a frame, `(H, W, 3)` uint8; may be called from any thread."""
        rgb = decoded_frame(self._footage.frames[frame.index])
        plan, track = self._plans[frame.index], self._footage.faces[frame.index]
        if track is None or plan.latent is None or plan.strength <= 0:
            return rgb
        face = replace(face_from(track, rgb, self._autoencoder), latent=plan.latent)
        mixed = [(self._references[number], weight) for number, weight in plan.mixed]
        task = MouthTask(
            rgb, face, mixed, frame.values, self._paint, plan.strength, plan.mood, frame.generated
        )
        patch = self._renderer.render([task])[0]
        if patch is not None:
            rgb[patch.rows, patch.columns] = patch.rgb
        return rgb

    def _index(self, position: int) -> int:
        """Return which frame is shown at a position: forth, back, and so on."""
        last = len(self._footage.frames) - 1
        place = position % (2 * last) if last else 0
        return place if place <= last else 2 * last - place

    def _frame(self, index: int) -> tuple[np.ndarray, FilmedFace]:
        track = self._footage.faces[index]
        assert track is not None
        rgb = decoded_frame(self._footage.frames[index])
        return rgb, face_from(track, rgb, self._autoencoder)

    def _points_of(self, track: FaceTrack | None) -> Tensor | None:
        if track is None:
            return None
        latent = torch.from_numpy(track.latent).to(self._autoencoder.mean_points.device)
        return crop_pixels(self._autoencoder.decode_landmarks(latent))

    def _usable(self) -> Sequence[int]:
        """Return the frames whose face may be a reference."""
        faces = enumerate(self._footage.faces)
        return [i for i, track in faces if track is not None and abs(track.yaw) < TURNED]

    def _choose_references(self) -> list[int]:
        """Return frames that suit as references, each with another pose, the best first."""
        chosen: list[int] = []
        for index in sorted(self._usable(), key=self._cost):
            pose = head_pose(self._at(index))
            others = [head_pose(self._at(other)) for other in chosen]
            if all(pose_distance(pose, other) >= NEW_POSE for other in others):
                chosen.append(index)
        return chosen[:MOST_LIVE_REFERENCES]

    def _at(self, index: int) -> Tensor:
        points = self._points[index]
        assert points is not None
        return points

    def _cost(self, index: int) -> float:
        track = self._footage.faces[index]
        assert track is not None
        return reference_cost(self._at(index), track.sharpness)

    def _teeth_score(self, index: int) -> float:
        track = self._footage.faces[index]
        assert track is not None
        return teeth_score(self._at(index), track.yaw, track.sharpness)

    def _plan(self) -> list[_Plan]:
        """Plan each frame; what is shown going forth is shown going back."""
        count, mixer = len(self._footage.frames), ReferenceMixer()
        numbers = {id(reference): n for n, reference in enumerate(self._references)}
        wanted = [shown_share(None if t is None else t.yaw) for t in self._footage.faces]
        faces = [self._placed(track) for track in self._footage.faces]
        lasting = moods(faces)
        plans = []
        for index, points in enumerate(self._points):
            near = range(max(0, index - FADE_FRAMES), min(count, index + FADE_FRAMES + 1))
            strength = min(1.0, *(wanted[i] + abs(i - index) / FADE_FRAMES for i in near))
            mixed: list[tuple[Reference, float]] = []
            if points is not None:
                coming = self._points[index : index + FADE_FRAMES + 1]
                poses = [head_pose(one) for one in coming if one is not None]
                mixed = mixer.mix(self._references, poses)
            pairs = tuple((numbers[id(reference)], weight) for reference, weight in mixed)
            face, latent = faces[index], None
            if face is not None:
                latent = steady_latent(face, reversed(faces[:index]), faces[index + 1 :])
            plans.append(_Plan(strength, pairs, latent, lasting[index]))
        return plans

    def _placed(self, track: FaceTrack | None) -> PlacedLatent | None:
        if track is None:
            return None
        latent = torch.from_numpy(track.latent).to(self._autoencoder.mean_points.device)
        return PlacedLatent((track.rotation, track.shift), latent)


def decoded_frame(data: bytes) -> np.ndarray:
    """Decode a frame of footage, `(H, W, 3)` uint8."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, "frames are encoded when the footage is prepared"
    return np.ascontiguousarray(bgr[..., ::-1])
