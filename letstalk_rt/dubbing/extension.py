"""Films shorter than the new speech: the last frame stays, or the end goes back and forth."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import StrEnum

from letstalk_rt.dubbing.film import FilmFacts, FilmFrame
from letstalk_rt.errors import ConfigError

LOOP_BYTES = 384 * 2**20
"""Memory of the end of a film that goes back and forth."""


class Longer(StrEnum):
    """What a film shows while the speech is longer: it stays, goes back and forth, or ends."""

    HOLD = "hold"
    LOOP = "loop"
    CUT = "cut"


def longer_from(name: str) -> Longer:
    """Return the member of this name.

    Raises:
        ConfigError: there is none.
    """
    try:
        return Longer(name)
    except ValueError as error:
        known = ", ".join(Longer)
        raise ConfigError(f"longer must be one of {known}, got {name!r}") from error


def extended(
    frames: Iterable[FilmFrame],
    facts: FilmFacts,
    longer: Longer,
    is_over: Callable[[float], bool],
    *,
    trim: bool = False,
) -> Iterator[FilmFrame]:
    """Yield the frames of a film, and more while the speech goes on.

    Args:
        frames: the film.
        facts: what it is like.
        longer: what is shown when the film is over.
        is_over: tells whether the speech is over at a time in seconds.
        trim: end with the speech, even if the film is longer.
    """
    kept: deque[FilmFrame] = deque()
    size = 0
    for frame in frames:
        if trim and is_over(float(frame.time * facts.time_base)):
            return
        yield frame
        kept.append(frame)
        size += _bytes(frame)
        while len(kept) > 1 and (longer is not Longer.LOOP or size > LOOP_BYTES):
            size -= _bytes(kept.popleft())
    if longer is Longer.CUT or not kept:
        return
    step = max(1, round(1 / (facts.rate * facts.time_base)))
    time, places = kept[-1].time + step, back_and_forth(len(kept))
    while not is_over(float(time * facts.time_base)):
        yield replace(kept[next(places)], time=time)
        time += step


def back_and_forth(count: int) -> Iterator[int]:
    """Yield places in a list, from the one before the last back to the first, forth, and so on."""
    if count == 1:
        while True:
            yield 0
    while True:
        yield from range(count - 2, -1, -1)
        yield from range(1, count)


def _bytes(frame: FilmFrame) -> int:
    return frame.rgb.nbytes + sum(plane.nbytes for plane in frame.planes)
