"""What a session computes for each frame, and how much of it can be left out.

A pipeline declares its quality levels: the first is full quality, and each further one costs less.
The session chooses the level; see `letstalk_rt.session.adaptive_quality`. The size of the frames,
their number and their audio are the same at every level. Nothing here imports torch.
"""

from dataclasses import dataclass

from letstalk_rt.types import FPS


@dataclass(frozen=True, slots=True)
class Quality:
    """What is computed for the frames of a session.

    Attributes:
        full_size: whether faces are composited at the size of the canvas. If not, they are
            composited at the size at which the model generates them, and enlarged.
        decode_every: decode every n-th frame. The frames between follow their own landmarks, with
            the flow correction and the inpainting of the one before.
        fps: how many different images there are per second; the other frames repeat the image
            before them.
        cost: duration of a step relative to full quality, roughly.
    """

    full_size: bool = True
    decode_every: int = 1
    fps: int = FPS
    cost: float = 1.0


FULL_QUALITY = Quality()


def new_images(first: int, count: int, fps: int) -> list[bool]:
    """Return which of `count` frames, from number `first` on, have an image of their own.

    The others repeat the image of the frame before. Frame 0 has its own.
    """
    images = [((number + 1) * fps - 1) // FPS for number in range(first - 1, first + count)]
    return [here > before for before, here in zip(images, images[1:], strict=False)]


def plan_window(quality: Quality, first: int, count: int) -> list[int | None]:
    """Return for each frame of a window which frame is decoded for it.

    That is its own number in the window, an earlier one (see `Quality.decode_every`), or None if it
    repeats the image before it.

    Args:
        quality: what is computed.
        first: number of the window's first frame since this quality was set.
        count: frames of the window.
    """
    plan: list[int | None] = []
    decoded, uses = 0, quality.decode_every
    for number, is_new in enumerate(new_images(first, count, quality.fps)):
        if is_new and uses >= quality.decode_every:
            decoded, uses = number, 0
        uses += is_new
        plan.append(decoded if is_new else None)
    return plan
