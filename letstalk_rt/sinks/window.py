"""Shows a session in a Tk window."""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from letstalk_rt.errors import DependencyError
from letstalk_rt.portrait.watermark import with_badge
from letstalk_rt.types import AVFrame

T = TypeVar("T")

_POLL_MS = 10


class PreviewWindow:
    """A window that shows the frames of a session.

    Most systems require windows to run on the main thread: call `run_beside` there with what plays
    the session, or `run` and run the session in another thread. `show` may be called from any
    thread.

    Args:
        title: title of the window.
        badge: draw the badge "AI avatar" into the frames.
    """

    latency_s = 0.0

    def __init__(self, title: str = "letstalk", *, badge: bool = True) -> None:
        self._title, self._badge = title, badge
        self._lock = threading.Lock()
        self._newest: np.ndarray | None = None
        self._ended = threading.Event()

    def open(self, width: int, height: int) -> None:
        """Do nothing: the window opens with the first frame."""

    def show(self, frame: AVFrame) -> None:
        """Store the newest image, which the window polls for."""
        with self._lock:
            self._newest = frame.rgb

    def repeat(self, frame: AVFrame) -> None:
        """Do nothing: the window keeps its image."""

    def flush(self) -> None:
        """Do nothing: the window has no audio."""

    def close(self) -> None:
        """Make `run` return. May be called twice, from any thread."""
        self._ended.set()

    def run(self, on_close: Callable[[], None]) -> None:
        """Show the window until `close`. Call this on the main thread.

        Args:
            on_close: called when the user closes the window.

        Raises:
            DependencyError: Tk or a display is missing.
        """
        root, make_photo = _open_tk(self._title)
        label = _add_label(root)
        closed_by_user = threading.Event()
        root.protocol("WM_DELETE_WINDOW", closed_by_user.set)
        root.bind("<Escape>", lambda event: closed_by_user.set())

        def poll() -> None:
            if closed_by_user.is_set() or self._ended.is_set():
                root.quit()
                return
            with self._lock:
                rgb, self._newest = self._newest, None
            if rgb is not None:
                label.image = make_photo(self._to_image(rgb))  # keeps a reference
                label.configure(image=label.image)
            root.after(_POLL_MS, poll)

        root.after(0, poll)
        try:
            root.mainloop()
        finally:
            root.destroy()
        if closed_by_user.is_set():
            on_close()

    def run_beside(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Show the window on this thread while `work` runs on an event loop of another thread.

        Args:
            work: plays a session in this window. It is cancelled when the user closes the window.

        Returns:
            Its result; None if it was cancelled.

        Raises:
            DependencyError: Tk or a display is missing.
            Exception: `work` failed.
        """
        results: list[T] = []
        failures: list[BaseException] = []
        loop = asyncio.new_event_loop()
        task = loop.create_task(work)

        def run_work() -> None:
            try:
                results.append(loop.run_until_complete(task))
            except BaseException as error:  # raised in the main thread
                failures.append(error)
            finally:
                loop.close()
                self.close()

        def stop() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)

        thread = threading.Thread(target=run_work, name="session")
        thread.start()
        try:
            self.run(stop)
        finally:
            stop()
            thread.join()
        if failures and not isinstance(failures[0], asyncio.CancelledError):
            raise failures[0]
        return results[0] if results else None

    def _to_image(self, rgb: np.ndarray) -> Image.Image:
        return Image.fromarray(with_badge(rgb) if self._badge else np.ascontiguousarray(rgb))


def _open_tk(title: str) -> tuple[Any, Callable[[Image.Image], Any]]:
    try:
        import tkinter

        from PIL import ImageTk
    except ImportError as error:
        raise DependencyError(
            "A preview window needs Tk, which this Python lacks. Install it with: "
            f"{_tk_package()}; or use --camera or --output instead."
        ) from error
    try:
        root = tkinter.Tk(className="letstalk")
    except tkinter.TclError as error:
        raise DependencyError(
            "There is no display for a preview window. Run this on a desktop, or use --camera or "
            "--output instead."
        ) from error
    root.title(title)
    root.resizable(False, False)
    return root, ImageTk.PhotoImage


def _add_label(root: Any) -> Any:
    import tkinter

    label = tkinter.Label(root, borderwidth=0, background="black")
    label.pack()
    return label


def _tk_package() -> str:
    return {"darwin": "brew install python-tk", "win32": "the Python installer (Tcl/Tk)"}.get(
        sys.platform, "apt install python3-tk"
    )
