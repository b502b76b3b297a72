"""From latents to the frames of a window: decoded, composited, and returned in partial windows."""

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
        compiled: whether the decoder is compiled by torch.compile.
        recorded: whether the decoder is recorded as CUDA graphs.

    Attributes:
        partial_sizes: number of frames in each partial window. On a CPU they are single frames,
            because the first is due while the last is still being decoded; a GPU decodes the whole
            window at once, and so does compiled code, which would be recompiled for each shape.
        decode_pool: threads that decode partial windows in parallel; None for whole windows.
    """

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

    def prepare(self, latents: Tensor, states: Sequence[SessionState]) -> list[Any]:
        """Prepare the latents `(B, N, C, h, w)` of a window; return B inputs to slice by frame.

        If frames are decoded one by one, work that costs the same for one frame as for all is done
        here.
        """
        if not self._per_frame:
            return list(latents)
        pairs = zip(latents, states, strict=True)
        return [
            self._model.autoencoder.prepare_decoder(x, s.features.repeat(len(x))) for x, s in pairs
        ]

    def decode(
        self,
        inputs: Sequence[Any],
        eye_closures: Sequence[Sequence[float]],
        states: Sequence[SessionState],
        clock: StageTimer,
    ) -> Generator[np.ndarray, None, None]:
        """Yield the partial windows in order, `(B, n, H, W, 3)` uint8, each as soon as it is ready.

        Decoding changes no state, so partial windows are decoded in parallel if there are threads.

        Args:
            inputs: B results of `prepare`.
            eye_closures: how far the eyes of each session are closed in each frame, in [0, 1].
            states: states of B sessions.
            clock: measures the stages decode and composite of each partial window.
        """
        jobs, first = [], 0
        for count in self.partial_sizes:
            here = slice(first, first + count)
            first += count
            frame_inputs, eyes = [one[here] for one in inputs], [one[here] for one in eye_closures]
            jobs.append(partial(self._decode_part, frame_inputs, eyes, states, clock))
        return self.in_order(jobs)

    def in_order(
        self, jobs: Sequence[Callable[[], np.ndarray]]
    ) -> Generator[np.ndarray, None, None]:
        """Yield the results of jobs in order, which run in parallel if there are threads."""
        if self.decode_pool is None:
            return (job() for job in jobs)
        return _results_in_order([self.decode_pool.submit(job) for job in jobs])

    @torch.inference_mode()
    def _decode_part(
        self,
        inputs: Sequence[Any],
        eye_closures: Sequence[Sequence[float]],
        states: Sequence[SessionState],
        clock: StageTimer,
    ) -> np.ndarray:
        """Return n composited frames of each session: `(B, n, H, W, 3)` uint8."""
        with clock.stage("decode"):
            frames = self._decode_frames(inputs, states)
        with clock.stage("composite"):
            each = zip(states, frames, eye_closures, strict=True)
            return np.stack([_composite(*one) for one in each])

    def _decode_frames(
        self, inputs: Sequence[Any], states: Sequence[SessionState]
    ) -> Sequence[Tensor | DecodedLayers]:
        """Decode the frames of each session.

        A CPU decodes one session after another: the feature maps of several do not fit into its
        cache, and a batch of four takes a tenth longer.
        """
        pairs = zip(inputs, states, strict=True)
        if self._per_frame:
            return [self._decode(x, s.features.repeat(len(x))) for x, s in pairs]
        if self._device.type == "cpu":
            return [self._decode(x[None], s.features)[0] for x, s in pairs]
        frames = self._decode(torch.stack(list(inputs)), gather([s.features for s in states]))
        return [frames[i] for i in range(len(states))]

    def _decoder(self) -> Callable[..., Any]:
        autoencoder = self._model.autoencoder
        return autoencoder.run_decoder if self._per_frame else autoencoder.decode_layers

    @property
    def _device(self) -> torch.device:
        return self._model.motion_scale.device


def _composite(
    state: SessionState, frames: Tensor | DecodedLayers, eye_closures: Sequence[float]
) -> np.ndarray:
    """Composite the frames of one session into its portrait: `(n, H, W, 3)` uint8."""
    if isinstance(frames, Tensor):
        return state.compositor.compose(frames)  # such a model generates blinks itself
    return state.compositor.compose_layers(frames, eye_closures, state.mouths)


def _results_in_order(jobs: "Sequence[Future[np.ndarray]]") -> Generator[np.ndarray, None, None]:
    """Yield the results of jobs in order; when closed or failed, wait until all have ended."""
    try:
        for job in jobs:
            yield job.result()
    finally:
        wait(jobs)
