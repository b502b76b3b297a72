"""Errors of this plugin, beside those of letstalk_rt."""

from letstalk_rt import AtCapacity, LetsTalkError


class AvatarUnavailable(AtCapacity):
    """No avatar worker has joined in time: none runs, or all are full."""


class LiveKitError(LetsTalkError):
    """The LiveKit server cannot be reached, or refuses the API key."""
