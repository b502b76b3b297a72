"""Reasons for the end of a session, the errors and warnings that clients get, and the log."""

import logging

from letstalk_server.errors import EngineFailedError, NotReadyError, ServerError, SessionOverError
from letstalk_server.session.connection import EndReason

log = logging.getLogger(__name__)


class SessionEnded(Exception):
    """Ends a session's task group."""

    def __init__(self, reason: EndReason) -> None:
        super().__init__(reason)
        self.reason = reason


_CLOSING_ERRORS: dict[EndReason, tuple[type[ServerError], str]] = {
    EndReason.TIME_OVER: (
        SessionOverError,
        "The session's time limit was reached. Start a new session.",
    ),
    EndReason.IDLE: (SessionOverError, "The session was idle for too long. Start a new session."),
    EndReason.FAILED: (EngineFailedError, "The avatar stopped. Start it again."),
    EndReason.MODEL_LOST: (
        EngineFailedError,
        "The model stopped and did not come back in time. Start a new session in a minute.",
    ),
    EndReason.STOPPING: (NotReadyError, "The server is stopping. Try again in a minute."),
}
WARNINGS = {
    "ends-soon": "This session ends in {} seconds.",
    "idle-soon": "The session is idle and ends in {} seconds.",
}


def closing_error(reason: EndReason) -> ServerError | None:
    """Return the error that connections are closed with; None for a regular end."""
    if reason not in _CLOSING_ERRORS:
        return None
    error, detail = _CLOSING_ERRORS[reason]
    return error(detail)


def end_reason_of(ended: BaseExceptionGroup) -> EndReason:
    """Return the reason of the first `SessionEnded` in a group."""
    first = _leaves(ended)[0]
    assert isinstance(first, SessionEnded), type(first)
    return first.reason


def log_failures(failures: BaseExceptionGroup) -> None:
    """Log why a session failed."""
    # Only the types: the message of an error may contain user data.
    names = sorted({type(error).__name__ for error in _leaves(failures)})
    log.error("session failed: %s", ", ".join(names))


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:
    """Return the errors inside a group, with their causes."""
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _leaves(error)
        else:
            found += [error] if error.__cause__ is None else [error, error.__cause__]
    return found
