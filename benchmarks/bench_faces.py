"""How many of the faces of a picture are found, and whether the largest is taken.

The pictures are made of single portraits, so what they show is known: pairs and rows of three side
by side, 512 px each; the same scaled down until the smallest face is 40 px high or more; and
pictures of 4000 px in which two or three faces of 40 px to 1000 px stand about.

    python benchmarks/bench_faces.py --data DATA --scenes 300 --output RESULT.json

The bars: all faces of 98 % of the pictures, and the largest first in as many. Two faces whose
heights differ by less than 5 % may come in either order. The exit status is 1 if a bar is missed.
The last line is JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from card import commit, processor_name
from PIL import Image
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.metrics import percentiles
from letstalk_rt.models.loading import load_face_finder
from letstalk_rt.portrait.image import Finder, read_image
from letstalk_rt.training.data.dataset import read_index
from letstalk_rt.types import Face

BAR = 0.98
TILE_PX = 512
WIDE_PX = (4000, 2600)
SMALLEST_PX, LARGEST_PX = 40.0, 1000.0
"""Bounds of the height of a face's landmarks."""

_SAME_PLACE, _SAME_SIZE = 0.25, 0.2
"""How far a found face may be from a true one, over its height, and how much larger or smaller."""

_TIE = 0.95
EXPECTED_S = 1.5
"""What a picture takes."""


@dataclass(frozen=True, slots=True)
class Head:
    """A face at a known place.

    Attributes:
        x: x coordinate of the centre of its landmarks, px.
        y: y coordinate.
        height: height of its landmarks, px.
    """

    x: float
    y: float
    height: float

    def moved(self, scale: float, left: float, top: float) -> "Head":
        """Return where it is after its picture was scaled and then moved."""
        return Head(self.x * scale + left, self.y * scale + top, self.height * scale)


@dataclass(frozen=True, slots=True)
class Single:
    """A portrait of one person, `TILE_PX` square, with where the face is."""

    name: str
    image: Image.Image
    head: Head


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture with the faces in it.

    Attributes:
        kind: how it was made.
        rgb: `(H, W, 3)` uint8.
        heads: its faces.
    """

    kind: str
    rgb: np.ndarray
    heads: tuple[Head, ...]


def head_of(face: Face) -> Head:
    """Return where a found face is."""
    low, high = face.landmarks.min(0), face.landmarks.max(0)
    x, y = ((low + high) / 2).tolist()
    return Head(x, y, float(high[1] - low[1]))


def read_singles(root: Path, finder: Finder, split: str) -> list[Single]:
    """Return the portraits of a split in which alone exactly one face is found."""
    singles = []
    for row in read_index(root, "portraits.jsonl"):
        if row["split"] == split:
            rgb = read_image(root / "portraits" / str(row["file"]))
            side = min(rgb.shape[:2])
            image = Image.fromarray(rgb).crop((0, 0, side, side)).resize((TILE_PX, TILE_PX))
            faces = finder.find_faces(np.asarray(image))
            if len(faces) == 1:
                singles.append(Single(str(row["file"]), image, head_of(faces[0])))
    return singles


def row_of(singles: Sequence[Single], kind: str, scale: float = 1.0) -> Scene:
    """Return portraits side by side."""
    canvas = Image.new("RGB", (TILE_PX * len(singles), TILE_PX))
    for place, single in enumerate(singles):
        canvas.paste(single.image, (TILE_PX * place, 0))
    if scale != 1:
        canvas = canvas.resize((round(canvas.width * scale), round(canvas.height * scale)))
    across, down = canvas.width / (TILE_PX * len(singles)), canvas.height / TILE_PX
    heads = [single.head.moved(1, TILE_PX * i, 0) for i, single in enumerate(singles)]
    scaled = tuple(Head(h.x * across, h.y * down, h.height * down) for h in heads)
    return Scene(kind, np.asarray(canvas), scaled)


def small_row_of(singles: Sequence[Single], rng: np.random.Generator) -> Scene:
    """Return portraits side by side, so small that the smallest face is just large enough or so."""
    least = SMALLEST_PX / min(single.head.height for single in singles)
    return row_of(singles, "small", float(np.exp(rng.uniform(np.log(least), 0))))


def crowd_of(singles: Sequence[Single], rng: np.random.Generator) -> Scene:
    """Return a picture of `WIDE_PX` in which portraits of any size stand on a plain ground."""
    width, height = WIDE_PX
    ground = rng.integers(40, 200, (2, 2, 3)).astype(np.uint8)
    canvas = Image.fromarray(ground).resize(WIDE_PX, Image.Resampling.BILINEAR)
    heads, strip = [], width / len(singles)
    for place, single in enumerate(singles):
        most = min(LARGEST_PX, strip / TILE_PX * single.head.height)
        wanted = np.exp(rng.uniform(np.log(SMALLEST_PX), np.log(most)))
        side = int(np.ceil(TILE_PX * wanted / single.head.height))
        left = int(strip * place + rng.uniform(0, max(0, strip - side)))
        top = int(rng.uniform(0, max(1, height - side)))
        canvas.paste(single.image.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        heads.append(single.head.moved(side / TILE_PX, left, top))
    return Scene("crowd", np.asarray(canvas), tuple(heads))


def scenes(singles: Sequence[Single], count: int, seed: int) -> Iterator[Scene]:
    """Yield so many scenes of each kind, in turn."""
    rng = np.random.default_rng(seed)

    def some(number: int) -> list[Single]:
        return [singles[i] for i in rng.choice(len(singles), number, replace=False)]

    for number in range(count):
        yield row_of(some(2), "pair")
        yield row_of(some(3), "row")
        yield small_row_of(some(2 + number % 2), rng)
        yield crowd_of(some(2 + number % 2), rng)


def is_same(found: Head, true: Head) -> bool:
    """Return whether a found face is the true one."""
    distance = np.hypot(found.x - true.x, found.y - true.y)
    size = abs(np.log(found.height / true.height))
    return bool(distance < _SAME_PLACE * true.height and size < _SAME_SIZE)


def judge(scene: Scene, found: Sequence[Head]) -> dict[str, Any]:
    """Return what was found in a scene, largest first.

    Returns:
        `missed` (faces), `false` (found where there is none, or twice), `largest` (whether the
        largest came first).
    """
    missed = sum(not any(is_same(one, true) for one in found) for true in scene.heads)
    largest = max(true.height for true in scene.heads)
    first = [t for t in scene.heads if found and is_same(found[0], t)]
    return {
        "kind": scene.kind,
        "faces": len(scene.heads),
        "missed": missed,
        "false": len(found) - (len(scene.heads) - missed),
        "largest": bool(first) and first[0].height >= _TIE * largest,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of each kind of scene."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    return {kind: _figures([row for row in rows if row["kind"] == kind]) for kind in kinds}


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    spread = percentiles([row["ms"] for row in rows])
    return {
        "scenes": len(rows),
        "all_found": round(float(np.mean([not row["missed"] for row in rows])), 4),
        "largest_first": round(float(np.mean([row["largest"] for row in rows])), 4),
        "faces": sum(row["faces"] for row in rows),
        "missed": sum(row["missed"] for row in rows),
        "false": sum(row["false"] for row in rows),
        "ms_p50": round(spread.p50, 1),
        "ms_p95": round(spread.p95, 1),
    }


def measure(
    singles: Sequence[Single], finder: Finder, options: Any, result: dict[str, Any]
) -> None:
    """Find the faces of all scenes; the result has the figures as it goes."""
    rows = []
    for scene in scenes(singles, options.scenes, options.seed):
        began_s = time.perf_counter()
        faces = finder.find_faces(scene.rgb)
        took_ms = 1000 * (time.perf_counter() - began_s)
        row = judge(scene, [head_of(face) for face in faces]) | {"ms": took_ms}
        rows.append(row)
        result["kinds"] = summary(rows)
        if options.show is not None and (row["missed"] or not row["largest"]):
            options.show.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.rgb).save(options.show / f"{scene.kind}-{len(rows)}.jpg")


def is_good(result: dict[str, Any]) -> bool:
    """Return whether a whole result meets the bars."""
    kinds = result.get("kinds", {}).values()
    shares = [kind[name] for kind in kinds for name in ("all_found", "largest_first")]
    return "partial" not in result and bool(shares) and min(shares) >= BAR


def main(argv: Sequence[str] | None = None) -> int:
    """Print the result, last as JSON, and write it to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with portraits.jsonl")
    parser.add_argument("--split", default="eval", help="portraits to take (%(default)s)")
    parser.add_argument("--scenes", type=int, default=300, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=Path, metavar="FOLDER", help="write what fails here")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write it here")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    add_limit(parser)
    options = parser.parse_args(argv)
    finder = load_face_finder()
    singles = read_singles(options.data, finder, options.split)
    result: dict[str, Any] = {
        "benchmark": "bench_faces",
        "version": __version__,
        "commit": commit(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "portraits": len(singles),
        "kinds": {},
    }
    with time_limit(limit_s(options, EXPECTED_S * 4 * options.scenes), result):
        measure(singles, finder, options, result)
    result["good"] = is_good(result)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not options.json:
        for kind, figures in result["kinds"].items():
            print(f"{kind:8} {figures}")
    print(json.dumps(result))
    return 0 if result["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
