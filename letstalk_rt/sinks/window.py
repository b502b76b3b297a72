"""Shows a session in a window of its own, by Tk."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from letstalk_rt.errors import DependencyError
from letstalk_rt.portrait.watermark import with_badge
from letstalk_rt.types import AVFrame

_POLL_MS = 10


class PreviewWindow:
    """The pictures of a session in a window.

    Windows belong to the main thread on most systems: call `run` there, and drive the session in
    another thread. `show` may be called from any.

    Args:
        title: of the window.
        badge: draw the badge "AI avatar" into the pictures.
    """

    latency_s = 0.0

    def __init__(self, title: str = "letstalk", *, badge: bool = True) -> None:
        self._title, self._badge = title, badge
        self._lock = threading.Lock()
        self._newest: np.ndarray | None = None
        self._size = (0, 0)
        self._opened = threading.Event()
        self._ended = threading.Event()
        self.shown = 0

    def open(self, width: int, height: int) -> None:
        """Say how large the pictures are; the window appears with the first one."""
        self._size = width, height
        self._opened.set()

    def show(self, frame: AVFrame) -> None:
        """Take the newest picture; the window fetches it."""
        with self._lock:
            self._newest = frame.rgb

    def repeat(self, frame: AVFrame) -> None:
        """Nothing to do: a window keeps its picture."""

    def flush(self) -> None:
        """Nothing to do: a window has no sound."""

    def close(self) -> None:
        """Let `run` return. Safe to call twice, from any thread."""
        self._ended.set()

    def run(self, on_close: Callable[[], None]) -> None:
        """Show the window until `close`, in the main thread.

        Args:
            on_close: called when the user closes the window.

        Raises:
            DependencyError: Tk or a screen is missing.
        """
        root, photo_of = _tk(self._title)
        label = _label(root)
        closed_by_user = threading.Event()
        root.protocol("WM_DELETE_WINDOW", closed_by_user.set)
        root.bind("<Escape>", lambda event: closed_by_user.set())

        def poll() -> None:
            if closed_by_user.is_set() or self._ended.is_set():
                root.quit()
                return
            with self._lock:
                picture, self._newest = self._newest, None
            if picture is not None:
                label.image = photo_of(self._drawn(picture))  # keeps it alive
                label.configure(image=label.image)
                self.shown += 1
            root.after(_POLL_MS, poll)

        root.after(0, poll)
        try:
            root.mainloop()
        finally:
            root.destroy()
        if closed_by_user.is_set():
            on_close()

    def _drawn(self, rgb: np.ndarray) -> Image.Image:
        return Image.fromarray(with_badge(rgb) if self._badge else np.ascontiguousarray(rgb))


def _tk(title: str) -> tuple[Any, Callable[[Image.Image], Any]]:
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
            "There is no screen for a preview window. Run this on a desktop, or use --camera or "
            "--output instead."
        ) from error
    root.title(title)
    root.resizable(False, False)
    return root, ImageTk.PhotoImage


def _label(root: Any) -> Any:
    import tkinter

    label = tkinter.Label(root, borderwidth=0, background="black")
    label.pack()
    return label


def _tk_package() -> str:
    return {"darwin": "brew install python-tk", "win32": "the Python installer (Tcl/Tk)"}.get(
        sys.platform, "apt install python3-tk"
    )
