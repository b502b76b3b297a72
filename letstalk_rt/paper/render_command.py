"""`letstalk render --preset faithful-s`: the published model, which is not live."""

import argparse
from collections.abc import Iterator

import numpy as np
import soxr
from tqdm import tqdm

from letstalk_rt.models.loading import load_face_finder
from letstalk_rt.paper.rendering import FaithfulRenderer, FaithfulSampling
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.portrait.library import AvatarLibrary
from letstalk_rt.types import FPS, SAMPLE_RATE


def render_faithful(
    options: argparse.Namespace, samples: np.ndarray, rate: int, size: list[int]
) -> Iterator[np.ndarray]:
    """Yield the frames of a whole utterance; write width and height into `size`.

    Raises:
        InputError: The audio is empty.
    """
    renderer = FaithfulRenderer.load(
        options.preset,
        options.weights,
        options.autoencoder,
        options.wav2vec,
        options.device,
    )
    library = AvatarLibrary()
    finder = load_face_finder(crop_px=renderer.image_size)
    portrait = library.prepare(library.find(options.portrait), finder, size=options.size)
    height, width = portrait.canvas.shape[:2]
    size += [width, height]
    mono = samples if samples.ndim == 1 else samples.mean(1, dtype=np.float32)
    pcm = soxr.resample(mono.astype(np.float32), rate, SAMPLE_RATE)
    sampling = FaithfulSampling(
        options.steps, options.sampler == "ddim", options.guidance, options.seed
    )
    compositor = Compositor(portrait)
    total = -(-len(pcm) * FPS // SAMPLE_RATE)
    rendered = renderer.render(portrait.crop, pcm, sampling)
    for face in tqdm(rendered, total=total, unit="frame", disable=None, leave=False):
        yield compositor.compose(face[None])[0]
