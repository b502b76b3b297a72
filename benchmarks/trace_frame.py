"""Counts what eight frames of an utterance pass on their way: files, classes and functions.

    python benchmarks/trace_frame.py            counts, as JSON
    python benchmarks/trace_frame.py --list     and the names, by file

A session of the embedded model, in this process, is open and idle; a second of speech is pushed,
and what any thread calls in `letstalk_rt` until eight frames with speech were read is counted.
Every machine counts the same. `tests/benchmarks/test_trace_frame.py` holds the bounds: a reader
must be able to follow a frame from end to end.
"""

import argparse
import asyncio
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

import letstalk_rt
from letstalk_rt import Avatar
from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.session.portraits import prepare_any
from letstalk_rt.types import SAMPLE_RATE, AVFrame

FRAMES = 8
_RAW = argparse.RawDescriptionHelpFormatter
ROOT = Path(letstalk_rt.__file__).parent


class CallRecorder:
    """Records which functions are called, in this thread and in those that start later.

    Create it before the threads of the model start, with `installed`.

    Attributes:
        is_on: whether calls are recorded now.
        called: the code of all functions that were called meanwhile.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.called: set[CodeType] = set()

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record a call; a function for `sys.setprofile`."""
        if self.is_on and event == "call":
            self.called.add(frame.f_code)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch all calls within the block, to be able to record some of them."""
        threading.setprofile(self.note)
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]  # typeshed knows no end of it


def names_by_file(called: set[CodeType]) -> dict[str, set[str]]:
    """Return the qualified names of functions of the package, by file below it."""
    names: dict[str, set[str]] = defaultdict(set)
    for code in called:
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT):
            outer = code.co_qualname.split(".<locals>")[0]
            if "<" not in outer:  # a module, a comprehension, or what has no name
                names[path.relative_to(ROOT).as_posix()].add(outer)
    return dict(names)


def counts(names: Mapping[str, set[str]]) -> dict[str, int]:
    """Return how many files, classes and functions there are."""
    functions = [(file, name) for file, found in names.items() for name in found]
    classes = {(file, name.rpartition(".")[0]) for file, name in functions if "." in name}
    return {"files": len(names), "classes": len(classes), "functions": len(functions)}


async def record_frames(recorder: CallRecorder, avatar: Avatar, frames: int = FRAMES) -> None:
    """Record what is called from the push of speech until so many frames with speech are read."""
    async with avatar.session(degradation_preference="disabled") as session:
        reader = aiter(session)
        for _ in range(frames):
            await anext(reader)
        recorder.is_on = True
        await session.push_audio(speech(), SAMPLE_RATE)
        spoken = 0
        while spoken < frames:
            item = await anext(reader)
            spoken += isinstance(item, AVFrame) and item.spoken > 0
        recorder.is_on = False


def speech() -> np.ndarray:
    """Return a second of noise with the rhythm of syllables, `(16000,)` float32."""
    rhythm = np.sin(np.pi * 4 * np.arange(SAMPLE_RATE) / SAMPLE_RATE) ** 2
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    return (0.1 * noise * rhythm).astype(np.float32)


def trace() -> dict[str, set[str]]:
    """Return the names of all functions that the frames pass, by file."""
    recorder = CallRecorder()
    portrait = next(iter(list_avatars()))
    with recorder.installed():
        pipeline = AvatarPipeline.load()
        prepared = prepare_any(portrait, pipeline, 512)
        with Avatar.from_pipeline(pipeline, prepared) as avatar:
            asyncio.run(record_frames(recorder, avatar))
    return names_by_file(recorder.called)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trace the frames and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_RAW)
    parser.add_argument("--list", action="store_true", help="print the names, too")
    args = parser.parse_args(arguments)
    names = trace()
    if args.list:
        for file, found in sorted(names.items()):
            print(file, *sorted(found), sep="\n    ")
    print(json.dumps(counts(names)))


if __name__ == "__main__":
    main()
