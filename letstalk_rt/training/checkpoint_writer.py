"""Writes checkpoints in a thread, so that training goes on while a disk is slow."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor


class CheckpointWriter:
    """Writes one file after another from snapshots; a file appears under its name when whole.

    A snapshot is in main memory: while it is written, a checkpoint takes its size there.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a file is being written."""
        return self._writing is not None and not self._writing.done()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until what was begun is written."""
        self.wait()

    def write(
        self, path: Path, state: dict[str, Any], then: Callable[[], None] | None = None
    ) -> None:
        """Take a snapshot and begin to write it, after the file before it.

        Args:
            path: The file.
            state: What is written; it may change as soon as this returns.
            then: Called in the thread when the file is whole.

        Raises:
            Exception: What made the file before fail.
        """
        self.wait()
        self._writing = self._pool.submit(_write, path, snapshot(state), then)

    def wait(self) -> None:
        """Wait until what was begun is written.

        Raises:
            Exception: What made it fail, such as a full disk.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def snapshot(value: Any) -> Any:
    """Return a copy of a state in main memory, which later steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        parts = copy(value)  # a module's state has its versions as an attribute
        parts.update({key: snapshot(part) for key, part in value.items()})
        return parts
    if isinstance(value, list | tuple):
        return type(value)(snapshot(part) for part in value)
    return value


def keep_newest(newest: Path, step: int, count: int) -> None:
    """Keep a checkpoint as `step-N.pt` beside the `count - 1` before it, and delete older ones.

    The file is linked, so that the newest one is on disk once only; where a file system has no
    links, it is copied.
    """
    if count > 1:
        partial = newest.with_name(newest.name + ".kept")
        partial.unlink(missing_ok=True)
        try:
            os.link(newest, partial)
        except OSError:
            shutil.copyfile(newest, partial)
        partial.replace(newest.with_name(f"step-{step:08d}.pt"))
    kept = sorted(newest.parent.glob("step-*.pt"), key=lambda path: path.stat().st_mtime_ns)
    for old in kept[: -count if count > 1 else None]:
        old.unlink()


def _write(path: Path, state: dict[str, Any], then: Callable[[], None] | None) -> None:
    partial = path.with_name(path.name + ".part")
    torch.save(state, partial)
    partial.replace(path)
    if then is not None:
        then()
