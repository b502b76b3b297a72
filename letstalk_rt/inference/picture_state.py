"""What shows the frames of one session: its portrait, the compositors, and the quality."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.inference.session_state import ShownPortrait
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.parts import EYE_PAINTER, MOUTH_PAINTER
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.portrait.eye_compositor import EyeCompositor
from letstalk_rt.portrait.mouth_compositor import MouthCompositor
from letstalk_rt.types import FPS


@dataclass
class PictureState:
    """What shows the frames of one session, and where it is in the pattern of repeated images.

    What depends on the portrait is only read.

    Attributes:
        features: portrait features, for the decoder.
        compositor: puts the face back into the canvas.
        mouths: inpaints open mouths in composited frames; None for a model without mouth painter.
        eyes: shows the eyes of composited frames as wanted; None for a model without eye painter.
        quality: what is computed for each frame.
        made: frames made since that was set, or the portrait.
        last_image: the last image, `(H, W, 3)` uint8, kept while images are repeated.
    """

    features: Any
    compositor: Compositor
    mouths: MouthCompositor | None
    eyes: EyeCompositor | None
    quality: Quality = FULL_QUALITY
    made: int = 0
    last_image: np.ndarray | None = None

    @classmethod
    def of(cls, model: AvatarModel, shown: ShownPortrait, seed: int) -> "PictureState":
        """Create the state of a session, whose `seed` chooses what the portrait does not show."""
        device, features = model.motion_scale.device, shown.features
        compositor = Compositor(shown.portrait, device, layered=model.face is not None)
        mouths, eyes = None, None
        if (mouth_painter := model.get(MOUTH_PAINTER)) is not None:
            points = compositor.to_canvas(features.points)
            mouths = MouthCompositor(mouth_painter, compositor.canvas, points, seed)
        if (eye_painter := model.get(EYE_PAINTER)) is not None:
            points = compositor.to_canvas(features.points)
            eyes = EyeCompositor(eye_painter, compositor.canvas, points, features.points)
        return cls(features, compositor, mouths, eyes)

    def set_quality(self, quality: Quality) -> None:
        """Change what is computed from the next frame on, which has a new image."""
        self.quality, self.made, self.last_image = quality, 0, None

    def image(self, made: np.ndarray | None) -> np.ndarray:
        """Return the next image: what was made, or the last one again."""
        image = self.last_image if made is None else made
        assert image is not None, "the first frame has an image"
        if self.quality.fps < FPS:
            self.last_image = image.copy()  # the caller may change what it gets
        return image

    def interrupt(self, unseen: int) -> None:
        """Do nothing: pictures depend on no speech."""

    def reset(self) -> None:
        """Return to the initial state: full quality."""
        self.set_quality(FULL_QUALITY)
