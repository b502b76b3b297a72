"""Identifiers of sessions and uploads, which cannot be guessed."""

import secrets

from letstalk_server.settings import Settings


def new_id(settings: Settings) -> str:
    """Return a new identifier; in a cluster it begins with the worker's name and a dot."""
    name = secrets.token_urlsafe(16)
    return name if settings.worker_name is None else f"{settings.worker_name}.{name}"
