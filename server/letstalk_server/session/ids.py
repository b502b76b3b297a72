"""Identifiers of sessions and uploads, which cannot be guessed."""

import re
import secrets

from letstalk_server.settings import Settings


def new_id(settings: Settings) -> str:
    """Return a new identifier; in a cluster it begins with the worker's name and a dot."""
    name = secrets.token_urlsafe(16)
    return name if settings.worker_name is None else f"{settings.worker_name}.{name}"


def is_id(text: str) -> bool:
    """Return whether a text has the form of the identifiers that `new_id` returns."""
    return _ID.fullmatch(text) is not None


_ID = re.compile(r"(?:[a-z0-9-]{1,63}\.)?[A-Za-z0-9_-]{22}")
