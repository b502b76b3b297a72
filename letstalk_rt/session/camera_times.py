"""Which moments of a camera the frames of a session show. Arithmetic only."""

from dataclasses import dataclass

from letstalk_rt.types import FPS

FASTEST = 0.25
"""While what is wanted changes, motion is shown by at most this share faster or slower."""

JUMP_S = 0.3
"""A change beyond this, as after a stall, is made at once."""


@dataclass(slots=True)
class CameraTimes:
    """Gives each step the capture times of its frames, 1/25 s apart, without a jump.

    While somebody speaks into a microphone, frames show what was captured together with their
    sound. Without a live microphone there is nothing to fit, and they show what was captured
    last. The change from one to the other takes some frames.
    """

    _next_s: float | None = None

    def window(self, wanted_s: float, frames: int) -> list[float]:
        """Return the capture times of the frames of a step.

        Args:
            wanted_s: that of the first frame, if it had to fit nothing before it.
            frames: of the step.
        """
        step_s = frames / FPS
        expected_s = wanted_s if self._next_s is None else self._next_s
        change_s, most_s = wanted_s - expected_s, FASTEST * step_s
        if abs(change_s) > JUMP_S:
            change_s, expected_s = 0.0, wanted_s
        change_s = min(most_s, max(-most_s, change_s))
        self._next_s = expected_s + change_s + step_s
        each_s = (step_s + change_s) / frames
        first_s = expected_s + (each_s - 1 / FPS)
        return [first_s + number * each_s for number in range(frames)]
