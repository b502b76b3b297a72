"""How sessions end: why, what is said then, and what the log is told of failures."""

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
    EndReason.TIME_OVER: (SessionOverError, "The time is over. Start a new session."),
    EndReason.IDLE: (SessionOverError, "Nobody spoke for long. Start a new session."),
    EndReason.FAILED: (EngineFailedError, "The avatar stopped. Start it again."),
    EndReason.STOPPING: (NotReadyError, "The server stops now. Try again in a minute."),
}
WARNINGS = {
    "ends-soon": "This session ends in {} seconds.",
    "idle-soon": "Nobody has spoken for long: this session ends in {} seconds.",
}


def closing_error(reason: EndReason) -> ServerError | None:
    """Return what connections are told of an end; None where it is in order."""
    if reason not in _CLOSING_ERRORS:
        return None
    error, detail = _CLOSING_ERRORS[reason]
    return error(detail)


def end_reason_of(overs: BaseExceptionGroup) -> EndReason:
    """Give the reason of the first `SessionEnded` in a group."""
    first = _leaves(overs)[0]
    assert isinstance(first, SessionEnded), type(first)
    return first.reason


def log_failures(failures: BaseExceptionGroup) -> None:
    """Log what a session failed of."""
    # Only types: the text of an error may hold what a user said or sent.
    names = sorted({type(error).__name__ for error in _leaves(failures)})
    log.error("session failed: %s", ", ".join(names))


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:
    """Give the errors inside, and what caused them."""
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _leaves(error)
        else:
            found += [error] if error.__cause__ is None else [error, error.__cause__]
    return found
