"""The queue for a place on a full server: asked again and again, answered when there is news."""

import asyncio
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from letstalk_server.errors import BadRequestError
from letstalk_server.http.request_reading import (
    MAX_NAME_CHARS,
    AppContext,
    json_response,
    read_json,
    text_field,
)

MAX_KNOWN = 8
"""Sessions that one request may name."""

ANSWER_S, LOOK_S = 5.0, 0.2
"""An answer without news comes after the first; the second is the time between two looks."""


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [Route("/v1/queue", wait, methods=["POST"])]


async def wait(request: Request) -> Response:
    """Wait for a place: answer when the standing of the caller's ticket has changed.

    A timer of a hidden page runs once a minute. A request that is held needs none, so that such a
    page keeps its place in the queue.
    """
    context = AppContext(request)
    caller = context.authorize("sessions")
    caller.require_unbound()
    request.app.state.queue_limiter.check(caller)
    fields = await read_json(request, may_be_empty=True)
    name, known = text_field(fields, "ticket"), _known(fields.get("sessions", []))
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + ANSWER_S
    while True:
        standing, is_news = context.sessions.wait_in_queue(caller, name, known)
        if is_news or standing.ready or loop.time() > ends_s:
            return json_response(asdict(standing))
        name = standing.ticket
        await asyncio.sleep(LOOK_S)


def _known(names: object) -> list[str]:
    """Return the ids of sessions that a request names.

    Raises:
        BadRequestError: It is no short list of short strings.
    """
    if (
        not isinstance(names, list)
        or len(names) > MAX_KNOWN
        or not all(isinstance(name, str) and len(name) <= MAX_NAME_CHARS for name in names)
    ):
        raise BadRequestError(f'"sessions" must be a list of at most {MAX_KNOWN} ids.')
    return names
