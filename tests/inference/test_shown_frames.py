"""The number format that a processor takes does not show, on any default avatar."""

import numpy as np
import pytest
from support.small_model import make_speech

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.models.layers import int8
from letstalk_rt.models.loading import load_model
from letstalk_rt.portrait.image import prepare_portrait

LEAST_MOUTH_DB = 50.0
WINDOWS = 6


@pytest.fixture(scope="module")
def pipelines():
    """The embedded model in float32, and in 8 bits where this processor has them."""
    return {
        dtype: AvatarPipeline.on(load_model("tiny"), dtype=dtype, compiled=False)
        for dtype in ("float32", "int8")
    }


def shown(pipeline, portrait):
    state = pipeline.init_state(portrait)
    pcm = make_speech(WINDOWS * pipeline.hop / 16_000).reshape(WINDOWS, 1, -1)
    windows = [pipeline.step(hop, [state])[0] for hop in pcm]
    return np.concatenate(windows).astype(np.float64)


def mouth(portrait, frames):
    left, top, side = portrait.box
    rows = slice(int(top + 0.5 * side), int(top + 0.85 * side))
    columns = slice(int(left + 0.3 * side), int(left + 0.7 * side))
    return frames[:, rows, columns]


@pytest.mark.skipif(not int8.is_supported(), reason="no oneDNN here")
@pytest.mark.parametrize("name", sorted(list_avatars()))
def test_mouths_in_8_bits_look_as_in_float32(pipelines, name):
    portrait = prepare_portrait(list_avatars()[name], pipelines["float32"].finder)
    exact, rough = (mouth(portrait, shown(p, portrait)) for p in pipelines.values())
    assert exact.std(0).max() > 10, "the mouth moves"
    error = ((exact - rough) ** 2).mean()
    assert 0 < error < 255**2 / 10 ** (LEAST_MOUTH_DB / 10)
