"""`letstalk render --preset faithful-s`: the published model, which is not live."""

import argparse
from collections.abc import Iterator

import numpy as np

from letstalk_rt.errors import InputError
from letstalk_rt.types import FPS, SAMPLE_RATE

_PREFIX = "faithful-"


def add_faithful_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only the presets `faithful-*` have."""
    group = parser.add_argument_group(
        "presets faithful-s, -b, -l, -xl and faithful-v1-s-2 to -xl-8 (the published model)"
    )
    add = group.add_argument
    add("--autoencoder", metavar="PLACE", help="folder or hub id of DC-AE f32c32; v1: SD-VAE")
    add("--wav2vec", metavar="PLACE", help="folder or hub id of wav2vec2-base")
    add("--sampler", choices=("ddpm", "ddim"), default="ddpm", help="(%(default)s, as published)")
    add("--guidance", type=float, default=1.0, help="weight of the speech (%(default)s)")


def is_faithful(options: argparse.Namespace) -> bool:
    """Return whether the options name a preset of the published model."""
    return str(options.preset).startswith(_PREFIX)


def check_given(options: argparse.Namespace) -> None:
    """Check that the options name weights, autoencoder and speech model.

    Raises:
        InputError: One is missing.
    """
    for name in ("weights", "autoencoder", "wav2vec"):
        if getattr(options, name) is None:
            raise InputError(f"preset {options.preset!r} needs --{name}; see docs/paper.md")


def render_faithful(
    options: argparse.Namespace, samples: np.ndarray, rate: int, size: list[int]
) -> Iterator[np.ndarray]:
    """Yield the frames of a whole utterance; write width and height into `size`.

    Raises:
        InputError: An option is missing, or the audio is empty.
    """
    import soxr
    from tqdm import tqdm

    from letstalk_rt.inference.faithful import FaithfulRenderer, FaithfulSampling
    from letstalk_rt.models.loading import load_face_finder
    from letstalk_rt.portrait.compositor import Compositor
    from letstalk_rt.portrait.library import AvatarLibrary

    check_given(options)
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
