"""A step of sessions whose portraits are footage: only the mouths of its frames are generated."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
from torch import Tensor

from letstalk_rt.inference.footage_player import FootagePlayer
from letstalk_rt.inference.frame_decoder import FrameDecoder
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.quality import new_images
from letstalk_rt.inference.session_state import SessionState, ShownPortrait
from letstalk_rt.models.avatar_model import AvatarModel

RenderFrame = Callable[[], np.ndarray]


class FootageStage:
    """Renders windows of footage.

    Args:
        model: in eval mode, on its device.
        decoder: has the threads, and says how many frames are in each partial window.
    """

    kind = FootagePlayer

    def __init__(self, model: AvatarModel, decoder: FrameDecoder) -> None:
        self._model, self._decoder = model, decoder
        self._window: int = model.denoiser.config.window

    def init_state(self, shown: ShownPortrait, options: StateOptions) -> FootagePlayer | None:
        """Create the player of a session whose portrait is a film; None for a picture.

        Raises:
            ConfigError: the model has no motion denoiser.
            PortraitError: no face of the film can be used.
        """
        footage = shown.portrait.footage
        if footage is None:
            return None
        return FootagePlayer(self._model, footage, options.motion.expressiveness, options.seed)

    def change_portrait(
        self, state: FootagePlayer | None, shown: ShownPortrait, options: StateOptions
    ) -> FootagePlayer | None:
        """Play another film from its beginning, or none."""
        return self.init_state(shown, options)

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
        player, pictures = state[FootagePlayer], state[PictureState]
        is_new = new_images(pictures.made, self._window, pictures.quality.fps)
        pictures.made += self._window
        shown = zip(player.next(values, tokens), is_new, strict=True)
        return [partial(player.render, frame) if new else None for frame, new in shown]

    @staticmethod
    def _shown(
        states: Sequence[SessionState], images: Sequence[np.ndarray | None]
    ) -> list[np.ndarray]:
        pairs = zip(states, images, strict=True)
        return [state[PictureState].image(image) for state, image in pairs]


def _rendered(jobs: Sequence[RenderFrame | None]) -> list[np.ndarray | None]:
    """Return the same frame of each session, `(H, W, 3)` uint8; None for one without a job."""
    return [None if job is None else job() for job in jobs]
