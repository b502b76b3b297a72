"""Latents to the frames that are shown: decoded, put back into the portrait, handed over in parts.

This room knows no asyncio, no queue and no clock.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.inference.cuda_graphs import CompiledFunction
from letstalk_rt.inference.session_state import SessionState
from letstalk_rt.metrics import StageTimer
from letstalk_rt.models.autoencoder.latents import DecodedLayers
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather
from letstalk_rt.threads import DecodePool


class FrameDecoder:
    """Decodes the latents of a window and composites the faces into the portraits.

    Args:
        model: in eval mode, on its device and in its number formats.
        compiled: by torch.compile.
        recorded: as CUDA graphs.

    Attributes:
        parts: in how many frames each a window is handed over. On a CPU frame by frame, for the
            first is due while the last is still painted; a GPU paints all at once, and code that is
            compiled would be so again for each part's shape.
        decode_pool: threads that paint the parts side by side, where there are any.
    """

    def __init__(self, model: AvatarModel, *, compiled: bool, recorded: bool) -> None:
        self._model = model
        window: int = model.denoiser.config.window
        whole = self._device.type != "cpu" or compiled
        self.parts: Sequence[int] = (window,) if whole else (1,) * window
        self.decode_pool = None if whole else DecodePool(window)
        self._lays_out = not whole
        self._decode = CompiledFunction(
            self._decoder(), name="decoder", compiled=compiled, recorded=recorded
        )

    def lay_out(self, latents: Tensor, states: Sequence[SessionState]) -> list[Any]:
        """Prepare the latents `(B, N, C, h, w)` of a window for painting; gives B things to slice.

        Where frames are painted one by one, what costs the same for one as for all is done here.
        """
        if not self._lays_out:
            return list(latents)
        pairs = zip(latents, states, strict=True)
        return [
            self._model.autoencoder.prepare_decoder(x, s.features.repeat(len(x))) for x, s in pairs
        ]

    def paint(
        self,
        sketches: Sequence[Any],
        eye_closures: Sequence[Sequence[float]],
        states: Sequence[SessionState],
        clock: StageTimer,
    ) -> Generator[np.ndarray, None, None]:
        """Give the parts of a window in order, `(B, n, H, W, 3)` uint8, each as soon as it is made.

        Painting changes no state, so parts are painted side by side where there are threads for it.

        Args:
            sketches: B things that `lay_out` made.
            eye_closures: how far the eyes of each session are closed, for each frame.
            states: of B sessions.
            clock: is told of the stages decode and composite of each part.
        """
        jobs, first = [], 0
        for count in self.parts:
            here = slice(first, first + count)
            first += count
            drawn, eyes = [one[here] for one in sketches], [one[here] for one in eye_closures]
            jobs.append(partial(self._paint_part, drawn, eyes, states, clock))
        if self.decode_pool is None:
            return (job() for job in jobs)
        return _in_order([self.decode_pool.submit(job) for job in jobs])

    @torch.inference_mode()
    def _paint_part(
        self,
        sketches: Sequence[Any],
        eye_closures: Sequence[Sequence[float]],
        states: Sequence[SessionState],
        clock: StageTimer,
    ) -> np.ndarray:
        """Give the pictures of n frames of each session: `(B, n, H, W, 3)` uint8."""
        with clock.stage("decode"):
            frames = self._decoded(sketches, states)
        with clock.stage("composite"):
            each = zip(states, frames, eye_closures, strict=True)
            return np.stack([_composed(*one) for one in each])

    def _decoded(
        self, sketches: Sequence[Any], states: Sequence[SessionState]
    ) -> Sequence[Tensor | DecodedLayers]:
        """Decode the frames of each session.

        A processor decodes one session after the other: the maps of several do not stay in its
        cache, and four together take a tenth longer.
        """
        pairs = zip(sketches, states, strict=True)
        if self._lays_out:
            return [self._decode(x, s.features.repeat(len(x))) for x, s in pairs]
        if self._device.type == "cpu":
            return [self._decode(x[None], s.features)[0] for x, s in pairs]
        frames = self._decode(torch.stack(list(sketches)), gather([s.features for s in states]))
        return [frames[i] for i in range(len(states))]

    def _decoder(self) -> Callable[..., Any]:
        autoencoder = self._model.autoencoder
        return autoencoder.run_decoder if self._lays_out else autoencoder.decode_layers

    @property
    def _device(self) -> torch.device:
        return self._model.motion_scale.device


def _composed(
    state: SessionState, frames: Tensor | DecodedLayers, eye_closures: Sequence[float]
) -> np.ndarray:
    """Put the frames of one session into its portrait: `(n, H, W, 3)` uint8."""
    if isinstance(frames, Tensor):
        return state.compositor.compose(frames)  # such a model blinks by itself
    return state.compositor.compose_layers(frames, eye_closures)


def _in_order(jobs: "Sequence[Future[np.ndarray]]") -> Generator[np.ndarray, None, None]:
    """Give what jobs give, each as soon as it is there; closed or failed, none goes on unseen."""
    try:
        for job in jobs:
            yield job.result()
    finally:
        wait(jobs)
