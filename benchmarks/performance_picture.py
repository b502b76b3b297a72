"""Makes the pictures of docs/performance-direction.md: default avatars in all moods and gestures.

    python benchmarks/performance_picture.py     # writes docs/moods.jpg and docs/gestures.jpg

Faces are silent and have the same seed, so that a mood or a gesture is all that differs.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.performance import GESTURES, MOODS, Gesture, Performer
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.training.evaluation.generation import generate_frames
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME, Portrait

ROOT = Path(__file__).parents[1]
AVATARS = ("mira", "leon", "ruth")
SETTLED = 7
"""Frames after which a silent face shows a mood that it had from the start."""

_CROP = 1.0  # side of the picture of a face, over that of its crop
_LABEL_PX = 18


def shown_frame(
    pipeline: AvatarPipeline, portrait: Portrait, performer: Performer, number: int
) -> np.ndarray:
    """Return a frame of a silent portrait, `(H, W, 3)` uint8."""
    silence = np.zeros((1, (number + 1) * SAMPLES_PER_FRAME), np.float32)
    frames = generate_frames(pipeline, [portrait], silence, seed=5, performers=[performer])
    return list(frames)[number][0]


def face_of(portrait: Portrait, frame: np.ndarray, side: int) -> Image.Image:
    """Return the face of a frame at this side in pixels."""
    left, top, size = portrait.box
    margin = (_CROP - 1) / 2 * size
    box = (left - margin, top - margin, left + size + margin, top + size + margin)
    return Image.fromarray(frame).crop(tuple(round(v) for v in box)).resize((side, side))


def labelled(image: Image.Image, text: str) -> Image.Image:
    """Return an image with a line of text above it."""
    made = Image.new("RGB", (image.width, image.height + _LABEL_PX), "white")
    made.paste(image, (0, _LABEL_PX))
    ImageDraw.Draw(made).text((4, 3), text, fill="black")
    return made


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Return rows of images as one."""
    lines = [np.concatenate([np.asarray(one) for one in row], 1) for row in rows]
    return Image.fromarray(np.concatenate(lines))


def moods(pipeline: AvatarPipeline, portraits: list[Portrait], side: int) -> Image.Image:
    """Return a row for each portrait, with a column for each mood."""
    rows = []
    for portrait in portraits:
        frames = [shown_frame(pipeline, portrait, Performer(mood), SETTLED) for mood in MOODS]
        faces = [face_of(portrait, frame, side) for frame in frames]
        rows.append([labelled(face, mood) for face, mood in zip(faces, MOODS, strict=True)])
    return grid(rows)


def gestures(pipeline: AvatarPipeline, portrait: Portrait, side: int) -> Image.Image:
    """Return two rows: each gesture at its moment."""
    made = []
    for name in GESTURES:
        performer = Performer()
        performer.gesture(name)
        moment = round(Gesture(name).lead_s * FPS) - pipeline.lookahead_frames
        frame = shown_frame(pipeline, portrait, performer, moment)
        made.append(labelled(face_of(portrait, frame, side), name))
    half = -(-len(made) // 2)
    blank = [Image.new("RGB", made[0].size, "white")] * (2 * half - len(made))
    return grid([made[:half], made[half:] + blank])


def main() -> None:
    """Make both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="longer side of the frames")
    parser.add_argument("--side", type=int, default=176, help="side of each face in the pictures")
    parser.add_argument("--only", choices=("moods", "gestures"))
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    pipeline = AvatarPipeline.load("tiny", "cpu")
    portraits = [
        prepare_portrait(list_avatars()[name], pipeline.finder, size=args.size) for name in AVATARS
    ]
    if args.only != "gestures":
        moods(pipeline, portraits, args.side).save(args.folder / "moods.jpg", quality=85)
    if args.only != "moods":
        sheet = gestures(pipeline, portraits[0], args.side)
        sheet.save(args.folder / "gestures.jpg", quality=85)


if __name__ == "__main__":
    main()
