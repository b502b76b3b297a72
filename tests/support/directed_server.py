"""A server with a painted avatar that can be directed.

`python -m support.directed_server [PORT]` in tests/.
"""

import sys

from letstalk_server.main import serve
from letstalk_server.settings import Settings
from support.server_fakes import DirectedPainter, model_of

SIZE = 256
"""Side of the video, px: small, so that it is quick to paint, encode and inspect."""


def main(arguments):
    """Serve until interrupted."""
    settings = Settings(
        port=int(arguments[0]) if arguments else 8080,
        max_sessions=16,
        size=SIZE,
        chat_url="http://127.0.0.1:9/v1",
        chat_model="none",
    )
    return serve(settings, model_of(DirectedPainter()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
