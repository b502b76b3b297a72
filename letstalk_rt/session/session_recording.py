"""Recording what a live session shows, while its reader goes on."""

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from letstalk_rt.errors import LetsTalkError
from letstalk_rt.opening import open_in_thread
from letstalk_rt.types import AVFrame

if TYPE_CHECKING:
    from letstalk_rt.recording.file import Recording


class SessionRecording:
    """Records the frames of a session while its block lasts; see `AvatarSession.record`.

    A failure, such as a full disk, ends the recording and not the session; the end of the block
    raises it.

    Args:
        recording: writes the file; not opened yet.
        size: width and height of the file's frames.
        recordings: those that the session shows its frames; this one is among them in its block.
        on_failure: called when the recording has failed.
    """

    def __init__(
        self,
        recording: "Recording",
        size: tuple[int, int],
        recordings: "set[SessionRecording]",
        on_failure: Callable[[], None],
    ) -> None:
        self._recording, self._size = recording, size
        self._recordings, self._on_failure = recordings, on_failure
        self._failure: LetsTalkError | None = None

    @property
    def skipped(self) -> int:
        """Number of images that are missing in the file, because the machine was too slow."""
        return self._recording.skipped

    async def __aenter__(self) -> Self:
        """Create the file.

        Raises:
            ConfigError: the file cannot be written.
            DependencyError: this FFmpeg lacks an encoder.
        """
        await open_in_thread(partial(self._recording.open, *self._size), self._recording.close)
        self._recordings.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file, also after an error.

        Raises:
            LetsTalkError: it could not be written to its end.
        """
        self._recordings.discard(self)
        await asyncio.to_thread(self._recording.close)
        if self._failure is not None and error is None:
            raise self._failure

    def show(self, frame: AVFrame) -> None:
        """Record a frame that is shown now; called by the session."""
        if self._failure is not None:
            return
        try:
            self._recording.show(frame)
        except LetsTalkError as error:
            self._failure = error
            self._on_failure()
