"""Shows a session as a virtual camera for other programs."""

import sys
from typing import Any

import numpy as np

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.portrait.watermark import with_badge
from letstalk_rt.recording.letterbox import fit
from letstalk_rt.recording.threaded_sink import ThreadedSink
from letstalk_rt.types import FPS, AVFrame

INSTALL = {
    "linux": (
        "load the v4l2loopback module: apt install v4l2loopback-dkms, then "
        'modprobe v4l2loopback devices=1 exclusive_caps=1 card_label="letstalk"'
    ),
    "darwin": "install OBS Studio 30 or newer, start its virtual camera once and stop it again",
    "win32": "install OBS Studio, whose virtual camera is then used",
}


class VirtualCamera(ThreadedSink):
    """A virtual camera that shows the frames of a session, whatever their sample rate.

    Args:
        device: a device such as `/dev/video2`; None for the first free one.
        size: width and height of the camera; frames are scaled to fit, on black. None for the size
            of the frames.
        badge: draw the badge "AI avatar" into the frames.
    """

    latency_s = 0.0

    def __init__(
        self,
        device: str | None = None,
        *,
        size: tuple[int, int] | None = None,
        badge: bool = True,
    ) -> None:
        super().__init__("virtual camera", max_video_frames=3, sample_rate=None)
        if size is not None and not all(64 <= side <= 4096 and side % 2 == 0 for side in size):
            raise ConfigError(
                f"The camera size is {size[0]}x{size[1]}; expected even numbers from 64 to 4096."
            )
        self._device, self._size, self._badge = device, size, badge
        self._camera: Any = None

    @property
    def device(self) -> str:
        """Name of the camera; empty until it is open."""
        return "" if self._camera is None else str(self._camera.device)

    def repeat(self, frame: AVFrame) -> None:
        """Send the image again; some programs treat a camera without new frames as disconnected."""
        self.show(frame)

    def _open(self, width: int, height: int) -> None:
        pyvirtualcam = load_pyvirtualcam()
        self._size = self._size or (width, height)
        try:
            self._camera = pyvirtualcam.Camera(
                *self._size, FPS, device=self._device, fmt=pyvirtualcam.PixelFormat.RGB
            )
        except RuntimeError as error:
            camera = "a virtual camera" if self._device is None else f"the camera {self._device}"
            raise DependencyError(
                f"Cannot open {camera} ({_last_line(error)}). To set one up, "
                f"{_setup_instruction()}."
            ) from error

    def _write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        if rgb is not None:
            assert self._size is not None
            image = fit(rgb, self._size)
            self._camera.send(with_badge(image) if self._badge else image)

    def _close(self) -> None:
        if self._camera is not None:
            self._camera.close()


def load_pyvirtualcam() -> Any:
    """Import `pyvirtualcam`.

    Raises:
        DependencyError: the package is not installed.
    """
    try:
        import pyvirtualcam
    except ImportError as error:
        raise DependencyError(
            "A virtual camera needs the package 'pyvirtualcam'; install it with: "
            f"{pip_install('camera')}."
        ) from error
    return pyvirtualcam


def _setup_instruction() -> str:
    return INSTALL.get(sys.platform, INSTALL["linux"])


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
