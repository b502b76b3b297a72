"""One frame of all sessions of a batch, composited by several threads, and then inpainted at once.

The mouth painter's network runs once for the open mouths of all sessions. Their pictures may have
different sizes, because crops of mouths have one size.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

import numpy as np
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter
from letstalk_rt.portrait.mouth_compositor import OpenMouths, inpaint


@dataclass(frozen=True)
class Composited:
    """Composited frames of one session.

    Attributes:
        shown: `(m, H, W, 3)` uint8.
        mouths: the open mouths among them, which are still to be inpainted; None if there are none.
    """

    shown: Tensor
    mouths: OpenMouths | None


def finish(
    sessions: Sequence[Composited | None], painter: MouthPainter | None
) -> list[np.ndarray | None]:
    """Inpaint the open mouths of all sessions; return the images of each."""
    mouths = [one.mouths for one in sessions if one is not None and one.mouths is not None]
    if mouths:
        assert painter is not None
        inpaint(painter, mouths)
    return [None if one is None else one.shown.cpu().numpy() for one in sessions]


class BatchFrame:
    """One frame of B sessions, composited by several threads; the last one inpaints all mouths.

    Args:
        plan: for each session, which frame is decoded for this one; see `plan_window`.
        painter: the mouth painter, if the model has one.

    Attributes:
        images: resolved to the new image of each session, `(1, H, W, 3)` uint8, or None.
    """

    def __init__(self, plan: Sequence[int | None], painter: MouthPainter | None) -> None:
        self.images: Future[list[np.ndarray | None]] = Future()
        self._painter = painter
        self._composited: list[Composited | None] = [None] * len(plan)
        self._missing = sum(decoded is not None for decoded in plan)
        self._lock = Lock()  # of `_missing`
        if not self._missing:
            self.images.set_result(finish(self._composited, painter))

    def add(self, index: int, composited: Composited) -> None:
        """Add what is shown of one session."""
        self._composited[index] = composited
        with self._lock:
            self._missing -= 1
            if self._missing:
                return
        self.images.set_result(finish(self._composited, self._painter))

    def fail(self, error: BaseException) -> None:
        """Let the frame fail because one session could not be added."""
        with self._lock:
            if not self.images.done():
                self.images.set_exception(error)
