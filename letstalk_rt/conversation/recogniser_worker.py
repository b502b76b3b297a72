"""The process of a recogniser: PCM from standard input, words as lines of JSON to standard output.

    python -m letstalk_rt.conversation.recogniser_worker pocketsphinx
    python -m letstalk_rt.conversation.recogniser_worker whisper FOLDER [LANGUAGE]

Each chunk of 16-bit PCM at 16 kHz follows its length in bytes; the length 0 ends the utterance.
"""

import json
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

SAMPLE_RATE = 16_000
_PARTIAL_BYTES = 2 * SAMPLE_RATE // 3
"""Audio between two texts of an utterance that goes on: a third of a second."""

_LENGTH = struct.Struct("<I")


class Engine(Protocol):
    """A recogniser that blocks."""

    def begin(self) -> None:
        """Begin an utterance."""
        ...

    def push(self, pcm: bytes) -> None:
        """Take more of it."""
        ...

    def words(self) -> str:
        """Return what was understood so far."""
        ...

    def end(self) -> str:
        """End the utterance; return its words."""
        ...


class Sphinx:
    """CMU PocketSphinx: a last resort. It is small, knows English only and mishears much."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder: Any = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def begin(self) -> None:
        """See `Engine`."""
        self._decoder.start_utt()

    def push(self, pcm: bytes) -> None:
        """See `Engine`."""
        self._decoder.process_raw(pcm)

    def words(self) -> str:
        """See `Engine`."""
        best = self._decoder.hyp()
        return best.hypstr if best is not None else ""

    def end(self) -> str:
        """See `Engine`. Its last pass sometimes loses what the first has understood."""
        first = self.words()
        self._decoder.end_utt()
        return self.words() or first


class Whisper:
    """faster-whisper with a model in a local folder, in 8-bit integers on a CPU.

    Args:
        folder: the model, as CTranslate2 stores it.
        language: ISO 639 code; None lets the model find out.
    """

    def __init__(self, folder: str, language: str | None = None) -> None:
        from faster_whisper import WhisperModel

        self._model: Any = WhisperModel(folder, compute_type="default", local_files_only=True)
        self._language = language
        self._pcm: list[bytes] = []

    def begin(self) -> None:
        """See `Engine`."""
        self._pcm = []

    def push(self, pcm: bytes) -> None:
        """See `Engine`."""
        self._pcm.append(pcm)

    def words(self) -> str:
        """See `Engine`; it understands whole utterances only."""
        return ""

    def end(self) -> str:
        """See `Engine`."""
        audio = np.frombuffer(b"".join(self._pcm), "<i2").astype(np.float32) / 32_768
        segments, _ = self._model.transcribe(
            audio, language=self._language, beam_size=1, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


def open_engine(words: Sequence[str]) -> Engine:
    """Return the recogniser that the arguments name.

    Raises:
        ValueError: there is none of that name, or its model is not there.
        ImportError: its package is not installed.
    """
    name, *rest = words
    if name == "pocketsphinx":
        return Sphinx()
    if name == "whisper":
        if not Path(rest[0]).is_dir():
            raise ValueError(f"there is no folder {rest[0]!r} with a model")
        return Whisper(*rest)
    raise ValueError(f"there is no recogniser {name!r}")


def serve(engine: Engine, source: IO[bytes], answer: "Answer") -> None:
    """Transcribe utterances until the source ends."""
    number = 0
    for utterance in _utterances(source):
        number += 1
        engine.begin()
        unheard, last = 0, ""
        for pcm in utterance:
            engine.push(pcm)
            unheard += len(pcm)
            if unheard >= _PARTIAL_BYTES:
                unheard = 0
                if (words := engine.words()) != last:
                    last = words
                    answer(utterance=number, text=words, final=False)
        answer(utterance=number, text=engine.end(), final=True)


class Answer:
    """Writes one line of JSON for each call."""

    def __init__(self, target: IO[str]) -> None:
        self._target = target

    def __call__(self, **fields: object) -> None:
        """Write the fields."""
        self._target.write(json.dumps(fields) + "\n")
        self._target.flush()


def _utterances(source: IO[bytes]) -> Iterator[Iterator[bytes]]:
    """Yield the chunks of each utterance, as they come."""
    while header := source.read(_LENGTH.size):
        yield _chunks(source, header)


def _chunks(source: IO[bytes], header: bytes) -> Iterator[bytes]:
    while len(header) == _LENGTH.size and (length := _LENGTH.unpack(header)[0]):
        yield source.read(length)
        header = source.read(_LENGTH.size)


def main(words: Sequence[str]) -> int:
    """Load the recogniser, say so, and serve."""
    answer = Answer(sys.stdout)
    try:
        engine = open_engine(words)
    except Exception as error:  # whatever a library raises is the reason
        answer(error=f"{error}")
        return 1
    answer(ready=True)
    serve(engine, sys.stdin.buffer, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
