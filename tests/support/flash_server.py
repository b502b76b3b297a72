"""Serves the page with a painted avatar.

`python -m support.flash_server [PORT [SETTING=VALUE ...]]` in tests/.

Its mouth is as wide open as the sound is loud, and a very loud sound, such as a beep, makes the
whole picture flash.
"""

import sys

import numpy as np

from letstalk_server.main import serve
from letstalk_server.settings import Settings
from support.server_fakes import Painter, model_of

FLASH_LEVEL = 0.33
PLACES = 16
SIZE = 256
"""Of the picture, px: smaller is quicker to draw, send and look at."""


class FlashPainter(Painter):
    """Paints the picture white while the sound is very loud."""

    def _window(self, pcm, state):
        heard = np.concatenate([state["past"], pcm])
        frames = super()._window(pcm, state)
        levels = np.sqrt(np.square(heard[: 4 * 640].reshape(4, 640)).mean(1))
        frames[levels > FLASH_LEVEL] = 255
        return frames


def main(arguments):
    """Serve until interrupted."""
    options = {"port": int(arguments[0]) if arguments else 8080}
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        options[key] = tuple(value.split(",")) if key == "allow_origins" else value
    settings = Settings(max_sessions=PLACES, size=SIZE, **options)
    return serve(settings, model_of(FlashPainter()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
