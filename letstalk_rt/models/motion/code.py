"""The motion code: how a face differs from the same face at rest, in 24 numbers that fit any face.

One code describes one frame. What speech decides almost alone, the lips, comes first; the rest is
what a face does besides. The numbers hold no proportions, so the motion of one person can move the
portrait of another.
"""

from letstalk_rt.models.face.lip_values import LIP_VALUES

LIP_NAMES = (*LIP_VALUES, "pucker")
"""The lip values, and how far the lips are pushed forward, which landmarks in an image do not
show."""

HEAD_NAMES = ("yaw", "pitch", "roll", "x", "y", "scale")
"""Angles in radians as in `head_pose`, the position in face sizes, and the logarithm of the
scale."""

FACE_NAMES = (
    "brow_inner",
    "brow_outer",
    "brow_down",
    "gaze_x",
    "gaze_y",
    "shut",
    "squint",
    "smile",
    "frown",
)
"""Blendshapes relative to the face at rest, from -1 to 1; but gaze is the offset of the irises from
the middle of the eyes' corners in face sizes, and `shut` is 0 for open eyes and 1 for closed
ones."""

MOTION_NAMES = LIP_NAMES + HEAD_NAMES + FACE_NAMES
NUM_LIPS, NUM_HEAD, NUM_MOTION = len(LIP_NAMES), len(HEAD_NAMES), len(MOTION_NAMES)
NUM_REST = NUM_MOTION - NUM_LIPS

LIPS = slice(0, NUM_LIPS)
REST = slice(NUM_LIPS, NUM_MOTION)
HEAD = slice(NUM_LIPS, NUM_LIPS + NUM_HEAD)
FACE = slice(NUM_LIPS + NUM_HEAD, NUM_MOTION)


def channel(name: str) -> int:
    """Return the place of a named number in the code."""
    return MOTION_NAMES.index(name)


BROWS = slice(channel("brow_inner"), channel("brow_down") + 1)
GAZE = slice(channel("gaze_x"), channel("gaze_y") + 1)
SHUT = channel("shut")

MIRRORED = tuple(-1.0 if n in ("yaw", "roll", "x", "gaze_x") else 1.0 for n in MOTION_NAMES)
"""Factors that turn the code of a face into that of its mirror image."""

STYLE_NAMES = ("smile", "brows", "head_energy", "brow_energy", "opening", "blink_rate")
"""The style of a person: mean smile and brow raise, how lively head and brows are, how far the
mouth opens, and how often the eyes blink; in deviations between people, 0 for the mean person."""

NUM_STYLE = len(STYLE_NAMES)
