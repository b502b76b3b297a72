"""A server with a painted avatar.

`python -m support.flash_server [PORT [SETTING=VALUE ...]]` in tests/.

Its mouth opens with the level of the audio, and very loud audio, such as a beep, makes the whole
frame white.
"""

import sys

import numpy as np

from letstalk_server.main import serve
from letstalk_server.settings import Settings
from support.server_fakes import Painter, model_of

FLASH_LEVEL = 0.33
MAX_SESSIONS = 16
SIZE = 256
"""Side of the video, px: small, so that it is quick to paint, encode and inspect."""


class FlashPainter(Painter):
    """Paints white frames while the audio is very loud."""

    def paint_window(self, pcm, state):
        audio = np.concatenate([state["past"], pcm])
        frames = super().paint_window(pcm, state)
        levels = np.sqrt(np.square(audio[: 4 * 640].reshape(4, 640)).mean(1))
        frames[levels > FLASH_LEVEL] = 255
        return frames


def main(arguments):
    """Serve until interrupted."""
    options = {"port": int(arguments[0]) if arguments else 8080}
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        options[key] = tuple(value.split(",")) if key == "allow_origins" else value
    settings = Settings(max_sessions=MAX_SESSIONS, size=SIZE, **options)
    return serve(settings, model_of(FlashPainter()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
