"""The performance of one session: its mood, its gestures, and how it listens.

The settings are those of the session, so that they outlive its connections. What comes before the
engine session is open waits for it.
"""

from collections import deque
from dataclasses import replace
from typing import Any

from letstalk_rt.inference.protocol import NOT_DIRECTABLE
from letstalk_rt.performance import json_fields
from letstalk_rt.performance.gestures import Gesture
from letstalk_rt.performance.listening import Listening
from letstalk_rt.performance.moods import Style
from letstalk_rt.performance.moods import mood as check_mood
from letstalk_rt.session.avatar import AvatarSession
from letstalk_server.errors import NotDirectableError
from letstalk_server.protocol import server_messages
from letstalk_server.session.announcer import Announcer
from letstalk_server.session.connection import ServedSessionOptions

MAX_WAITING = 8
"""Gestures that wait until the engine session is open."""


class Performance:
    """Directs the avatar of one session; it is `Directed`, as the engine session is.

    Args:
        options: options of the session.
        is_directable: whether the model has moods, gestures and listening.
        announcer: tells all clients when a setting has changed.

    Raises:
        NotDirectableError: the options ask for what the model does not have.
    """

    def __init__(
        self, options: ServedSessionOptions, is_directable: bool, announcer: Announcer
    ) -> None:
        self.is_directable = is_directable
        self._options, self._announcer = options, announcer
        self._avatar: AvatarSession | None = None
        self._waiting: deque[Gesture] = deque(maxlen=MAX_WAITING)
        if (options.mood, options.listening) != ("neutral", "off"):
            self._check()

    @property
    def options(self) -> ServedSessionOptions:
        """The options of the session, with the settings of now."""
        return self._options

    def as_json(self) -> dict[str, Any]:
        """Return the settings as `session.ready` tells them."""
        fields = server_messages.fields_of(self._message())
        return {key: value for key, value in fields.items() if value is not None}

    def begin(self, avatar: AvatarSession) -> None:
        """Direct the engine session, which is open now and was made with earlier `options`."""
        self._avatar = avatar
        if not self.is_directable:
            return
        avatar.set_mood(self._options.mood, self._options.mood_strength)
        avatar.set_listening(self._options.listening)
        for gesture in self._waiting:
            avatar.gesture(gesture.name, gesture.amount)
        self._waiting.clear()

    def set_mood(
        self, mood: str | Style, strength: float = 1.0, *, at: float | None = None
    ) -> None:
        """Change the mood; see `AvatarSession.set_mood`.

        Raises:
            NotDirectableError: the model has no moods.
            ConfigError: there is no such mood, or the strength is out of range.
        """
        self._check()
        check_mood(mood, strength)
        self._options = replace(self._options, mood=mood, mood_strength=strength)
        if self._avatar is not None and not self._avatar.closed:
            self._avatar.set_mood(mood, strength, at=at)
        self._announcer.broadcast(self._message())

    def interrupt(self) -> None:
        """Show the mood that clients were told, also if its cue was just dropped with its text."""
        if self.is_directable and self._avatar is not None and not self._avatar.closed:
            self._avatar.set_mood(self._options.mood, self._options.mood_strength)

    def gesture(self, name: str, amount: float = 1.0, *, at: float | None = None) -> None:
        """Make a gesture; see `AvatarSession.gesture`.

        Raises:
            NotDirectableError: the model has no gestures.
            ConfigError: there is no such gesture, or a number is out of range.
        """
        self._check()
        if self._avatar is None:
            self._waiting.append(Gesture(name, amount))
        elif not self._avatar.closed:
            self._avatar.gesture(name, amount, at=at)

    def set_listening(self, mode: Listening) -> None:
        """Change how the avatar listens; see `AvatarSession.set_listening`.

        Raises:
            NotDirectableError: the model does not listen.
        """
        self._check()
        self._options = replace(self._options, listening=mode)
        if self._avatar is not None and not self._avatar.closed:
            self._avatar.set_listening(mode)
        self._announcer.broadcast(self._message())

    def _message(self) -> server_messages.PerformanceUpdated:
        options = self._options
        mood = json_fields.as_json(options.mood)
        return server_messages.PerformanceUpdated(options.mood_strength, options.listening, **mood)

    def _check(self) -> None:
        if not self.is_directable:
            detail = NOT_DIRECTABLE
            raise NotDirectableError(f"{detail[:1].upper()}{detail[1:]}.")
