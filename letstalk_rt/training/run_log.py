"""The log of a training run: `log.jsonl`, and the same for TensorBoard in `board/`."""

import json
import time
from pathlib import Path
from typing import Any, Protocol


class _Board(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """Writes figures by step. TensorBoard's file is opened with the first line and stays open.

    Args:
        folder: The run's folder.
        first: The step of the first line; what a run that was killed has logged from there on is
            not shown by TensorBoard.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self._folder, self._first = folder, first
        self._board: _Board | None = None

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Write the figures of a step."""
        self._board = self._board or _open_board(self._folder, self._first)
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        line = {"step": step, "time_s": round(time.time()), **figures}
        with (self._folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close TensorBoard's file; a later line opens another one."""
        if self._board is not None:
            self._board.close()
        self._board = None


def _open_board(folder: Path, first: int) -> _Board:
    """Open TensorBoard's log of a run; without TensorBoard, a writer of nothing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return _NoBoard()
    board: Any = SummaryWriter(str(folder / "board"), purge_step=first)
    return board  # type: ignore[no-any-return]


class _NoBoard:
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Do nothing: `log.jsonl` holds the same."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
