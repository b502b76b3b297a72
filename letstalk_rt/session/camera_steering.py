"""How a camera moves the face in the frames of one step: asked for as late as the frames allow."""

from collections.abc import Callable
from dataclasses import dataclass, field

from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.session.camera_input import CameraInput
from letstalk_rt.session.camera_times import CameraTimes
from letstalk_rt.types import FPS

_MARGIN_S = 0.02
"""A step that waits for motion ends by so much before the next one is due to begin."""


@dataclass(slots=True)
class CameraSteering:
    """The `Steering` of one step.

    While somebody speaks into a microphone, frames show what was captured together with their
    sound, which is older than what the camera has seen. Otherwise frames show the newest motion:
    the first ones what is known when they are rendered, and later ones, which are shown later, what
    is known then.

    Args:
        camera: what the camera has seen.
        times: gives the capture times of consecutive frames.
        frames: of the step.
        started_s: when the step began, in monotonic seconds.
        behind_s: how far the video is behind the sound.
        heard_s: when the sound of the step ended; None without a live microphone.
        now_s: returns monotonic seconds.
        pause: waits in the model thread until a time.

    Attributes:
        captured_s: what each frame that was asked for shows; see `captured_at`.
        waited_s: how long later frames have waited.
    """

    camera: CameraInput
    times: CameraTimes
    frames: int
    started_s: float
    behind_s: float
    heard_s: float | None
    now_s: Callable[[], float]
    pause: Callable[[float], None]
    captured_s: list[float | None] = field(default_factory=list)
    waited_s: float = 0.0
    _asked_s: tuple[float, float] = (0.0, 0.0)  # the first time, and the last one

    def __call__(self, first: int, count: int) -> DriveWindow | None:
        """Return how the camera moves the face in frames of the step; see `Steering`."""
        if first == 0:
            self.captured_s.clear()
            self._asked_s = self.now_s(), self.now_s()
        elif self.heard_s is None and self.captured_s[-1] is not None:
            self._wait(first, count)
        times_s = self.times.window(self._newest_s(first + count) - (count - 1) / FPS, count)
        window = self.camera.window(times_s)
        self.captured_s += [None] * count if window is None else times_s
        return window

    def captured_at(self, number: int) -> float | None:
        """Return when what a frame shows was captured; None if the camera did not move it."""
        return self.captured_s[number] if number < len(self.captured_s) else None

    def _newest_s(self, end: int) -> float:
        """Return the capture time that the last frame before number `end` should show."""
        if self.heard_s is not None:
            return self.heard_s - self.behind_s - (self.frames - end) / FPS
        now_s = self.now_s()
        return now_s - min(self.behind_s, self.camera.age_s(now_s))

    def _wait(self, first: int, count: int) -> None:
        """Wait as long as these frames are shown after the first ones, if they can be in time."""
        began_s, now_s = self._asked_s[0], self.now_s()
        rest = (self.frames - first) / count * (now_s - self._asked_s[1])
        end_s = self.started_s + self.frames / FPS - _MARGIN_S
        self.pause(min(began_s + first / FPS, end_s - rest))
        self._asked_s = began_s, self.now_s()
        self.waited_s += self._asked_s[1] - now_s
