"""Clips whose files are damaged: they are left out of training and listed, and the rest goes on."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from zipfile import BadZipFile

import av

from letstalk_rt.errors import InputError


class ClipError(InputError):
    """A file of one clip is missing or damaged; training can go on without that clip."""


_UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile, av.FFmpegError)
"""What decoders and numpy raise for damaged files."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Tell a damaged file of a clip from one that is whole but of no use.

    Raises:
        ClipError: A file is missing or damaged.
    """
    try:
        yield
    except InputError:
        raise
    except _UNREADABLE as error:
        kind = type(error).__name__
        raise ClipError(f"clip {name!r} cannot be read ({kind}: {error})") from error


def report_damaged(reasons: Sequence[str]) -> None:
    """List clips that are left out on stderr."""
    if reasons:
        print(f"{len(reasons)} clips are left out:", *reasons, sep="\n  ", file=sys.stderr)
