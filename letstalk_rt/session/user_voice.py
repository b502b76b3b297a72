"""Tells a session that its user speaks, where only the begin and the end of that are known."""

import asyncio
from typing import Protocol

_EVERY_S = 0.05


class ListeningAvatar(Protocol):
    """Who listens, such as `AvatarSession`."""

    def push_listened(self, speaking: bool, pitch_hz: float | None = None) -> None:
        """Tell whether the user speaks now."""
        ...


class UserVoice:
    """The voice of the user, whom an avatar listens to.

    Args:
        avatar: who listens.
    """

    def __init__(self, avatar: ListeningAvatar) -> None:
        self._avatar = avatar
        self._next: asyncio.TimerHandle | None = None

    def set_speaking(self, speaking: bool) -> None:
        """Note on the event loop that the user begins to speak, or has stopped."""
        self.close()
        if speaking:
            self._tell()
        else:
            self._avatar.push_listened(False)

    def close(self) -> None:
        """Tell no more; may be called twice."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _tell(self) -> None:
        self._avatar.push_listened(True)
        self._next = asyncio.get_running_loop().call_later(_EVERY_S, self._tell)
