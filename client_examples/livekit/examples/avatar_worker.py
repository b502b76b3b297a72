"""A process that shows avatars for agents elsewhere, which start `RemoteAvatarSession`.

python avatar_worker.py start
"""

import os

from livekit.agents import cli
from livekit.plugins import letstalk

from letstalk_rt import Avatar
from letstalk_rt.avatars import list_avatars

if __name__ == "__main__":
    portrait = os.environ.get("LETSTALK_PORTRAIT", list_avatars()["mira"])
    capacity = int(os.environ.get("LETSTALK_CAPACITY", "1"))
    with Avatar.load(portrait) as avatar:
        cli.run_app(letstalk.avatar_server(avatar, capacity=capacity))
