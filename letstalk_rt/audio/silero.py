"""The Silero network for voice activity, run by ONNX Runtime.

The network is in the wheel of the package `silero-vad`, whose own code is not imported: it would
load torch and change the number of its threads. A block of 32 ms takes about 0.1 ms.

Source: Silero VAD 6, https://github.com/snakers4/silero-vad
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from letstalk_rt.errors import DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.types import SAMPLE_RATE

BLOCK = 512
"""Samples for which the network gives one probability: 32 ms."""

_CONTEXT = 64
"""Samples of the block before that it also sees."""

_FILE = "data/silero_vad_16k_op15.onnx"


class SileroNetwork:
    """The network with its state, for one audio stream.

    Raises:
        DependencyError: `silero-vad` or `onnxruntime` is not installed.
    """

    def __init__(self) -> None:
        self._network = _load()
        self.reset()

    def reset(self) -> None:
        """Return to the initial state."""
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
        self._remainder = np.zeros(0, np.float32)

    def push(self, pcm: np.ndarray) -> list[float]:
        """Return the probability of voice, from 0 to 1, for each block that is complete now.

        Args:
            pcm: `(n,)` float32 in [-1, 1] at 16 kHz, of any length.
        """
        audio = np.concatenate([self._remainder, pcm])
        end = len(audio) // BLOCK * BLOCK
        self._remainder = audio[end:]
        return [self._classify(block) for block in audio[:end].reshape(-1, BLOCK)]

    def _classify(self, block: np.ndarray) -> float:
        seen = np.concatenate([self._context, block])
        self._context = block[-_CONTEXT:]
        inputs = {"input": seen[None], "state": self._state, "sr": np.array(SAMPLE_RATE, np.int64)}
        probability, self._state = self._network.run(None, inputs)
        return float(probability[0, 0])


@cache
def _load() -> Any:
    """Return the network without its state, so that all streams share it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime") from error
    package = find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise _missing("silero-vad")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # others would only wait
    path = Path(package.submodule_search_locations[0]) / _FILE
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _missing(package: str) -> DependencyError:
    return DependencyError(
        f"Voice activity by the Silero network needs the package {package!r}; "
        f"install it with: {pip_install('vad')}"
    )
