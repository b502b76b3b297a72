"""A step of sessions whose portraits are footage: only the mouths of its frames are generated."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
from torch import Tensor

from letstalk_rt.inference.frame_decoder import FrameDecoder
from letstalk_rt.inference.quality import new_images
from letstalk_rt.inference.session_state import SessionState

RenderFrame = Callable[[], np.ndarray]


class FootageStage:
    """Renders windows of footage.

    Args:
        decoder: has the threads, and says how many frames are in each partial window.
        window: frames of a window.
    """

    def __init__(self, decoder: FrameDecoder, window: int) -> None:
        self._decoder, self._window = decoder, window

    def __call__(
        self, lips: Tensor, tokens: Tensor | None, states: Sequence[SessionState]
    ) -> Generator[list[np.ndarray], None, None]:
        """Yield the partial windows in order; see `FrameDecoder.decode`.

        Args:
            lips: lip values of what was heard in the hop, `(B, N, Q)`.
            tokens: audio tokens, `(B, N, K, A)`; None if the model cannot generate lower faces.
            states: states of B sessions; updated in place.
        """
        heard = [None] * len(states) if tokens is None else list(tokens)
        triples = zip(states, lips, heard, strict=True)
        rows = zip(*[self._jobs(*one) for one in triples], strict=True)
        with closing(self._decoder.in_order([partial(_rendered, row) for row in rows])) as images:
            for count in self._decoder.partial_sizes:
                frames = [self._shown(states, next(images)) for _ in range(count)]
                yield [np.stack(one) for one in zip(*frames, strict=True)]

    def _jobs(
        self, state: SessionState, values: Tensor, tokens: Tensor | None
    ) -> list[RenderFrame | None]:
        """Return what renders each frame of a session; None for one that repeats its image."""
        assert state.player is not None, "one batch is all footage"
        quality = state.quality.quality
        render = partial(state.player.render, with_painter=quality.mouth_painter)
        is_new = new_images(state.quality.made, self._window, quality.fps)
        state.quality.made += self._window
        shown = zip(state.player.next(values, tokens), is_new, strict=True)
        return [partial(render, frame) if new else None for frame, new in shown]

    @staticmethod
    def _shown(
        states: Sequence[SessionState], images: Sequence[np.ndarray | None]
    ) -> list[np.ndarray]:
        pairs = zip(states, images, strict=True)
        return [state.quality.image(image) for state, image in pairs]


def _rendered(jobs: Sequence[RenderFrame | None]) -> list[np.ndarray | None]:
    """Return the same frame of each session, `(H, W, 3)` uint8; None for one without a job."""
    return [None if job is None else job() for job in jobs]
