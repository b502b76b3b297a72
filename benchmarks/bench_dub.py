"""Measures dubbing: a film of two minutes, 512 px, from file to file.

The film is made first: an avatar of the package speaks for some seconds, which go back and forth.
Without `--film` and `--speech` nothing else is needed. Processor time tells more than time on a
machine that is busy with other things.

    python benchmarks/bench_dub.py                     # two minutes
    python benchmarks/bench_dub.py --seconds 20 --output benchmarks/results/bench_dub.json

The last line is JSON.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from card import commit, processor_name
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.avatars import list_avatars
from letstalk_rt.dubbing.dub_film import DubResult, Speech, dub_film
from letstalk_rt.dubbing.extension import back_and_forth
from letstalk_rt.dubbing.film import Film
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import FPS, SAMPLE_RATE

MADE_S = 6.0


def voice(seconds: float) -> np.ndarray:
    """Return noise in syllables, which lips follow, `(n,)` float32 at 16 kHz."""
    time_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    swell = np.clip(np.sin(2 * np.pi * 3 * time_s), 0, 1)
    noise = np.random.default_rng(0).normal(size=len(time_s))
    return (0.1 * swell * noise).astype(np.float32)


def make_film(pipeline: AvatarPipeline, path: Path, seconds: float, size: int) -> None:
    """Write a film of an avatar."""
    portrait = prepare_portrait(list_avatars()["mira"], pipeline.finder, size=size)
    with Avatar.from_pipeline(pipeline, portrait) as avatar:
        frames = [frame.rgb for frame in avatar.render(voice(min(seconds, MADE_S)))]
    count = round(seconds * FPS)
    order = chain(range(len(frames)), back_and_forth(len(frames)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, index in enumerate(islice(order, count)):
            frame = av.VideoFrame.from_ndarray(frames[index], "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def measure(
    pipeline: AvatarPipeline,
    film: Path,
    speech: str | np.ndarray,
    output: Path,
    figures: dict[str, Any],
) -> None:
    """Dub a film and add what it took; while it is dubbed, how many frames are done."""
    opened, voiced = Film(film), Speech(speech, SAMPLE_RATE)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()

    def took_s() -> tuple[float, float]:
        return time.perf_counter() - began_s, time.process_time() - began_cpu_s

    def count() -> None:
        figures["frames"] = figures.get("frames", 0) + 1
        figures["wall_s"], figures["cpu_s"] = (round(one, 2) for one in took_s())

    figures |= summary(dub_film(pipeline, opened, voiced, output, on_frame=count), *took_s())


def summary(result: DubResult, wall_s: float, cpu_s: float) -> dict[str, Any]:
    """Return the figures of one film."""
    return {
        "film_s": round(result.seconds, 2),
        "frames": result.frames,
        "untouched": result.frames - result.changed,
        "width": result.width,
        "height": result.height,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "wall_over_film": round(wall_s / result.seconds, 3),
        "cpu_ms_per_frame": round(1000 * cpu_s / result.frames, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the result as JSON, and write it to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="of the film (%(default)s)")
    parser.add_argument("--size", type=int, default=512, help="longer side, px (%(default)s)")
    parser.add_argument("--film", type=Path, help="dub this film instead")
    parser.add_argument("--speech", help="with this sound file")
    parser.add_argument("--threads", type=int, help="CPU threads of the model")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write it here")
    add_limit(parser)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(argv)
    pipeline = AvatarPipeline.load(threads=options.threads)
    figures: dict[str, Any] = {}
    with (
        time_limit(limit_s(options, 4 * options.seconds), figures),
        tempfile.TemporaryDirectory() as folder,
    ):
        film = options.film or Path(folder) / "film.mp4"
        if options.film is None:
            make_film(pipeline, film, options.seconds, options.size)
        speech = options.speech or voice(options.seconds)
        measure(pipeline, film, speech, Path(folder) / "dubbed.mp4", figures)
    result = {
        "benchmark": "bench_dub",
        "version": __version__,
        "commit": commit(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "format": pipeline.variant.dtype,
        "most_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **figures,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not options.json:
        for name, value in figures.items():
            print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
