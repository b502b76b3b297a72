"""Draining: a worker that is to stop admits no new sessions and waits for those that live."""

import asyncio
import contextlib
import logging

from letstalk_server.session.registry import SessionRegistry

log = logging.getLogger(__name__)

NOTICE_S = 2.0
"""Time in which every proxy has asked at least once and knows that the worker drains."""


async def drain(sessions: SessionRegistry, limit_s: float, notice_s: float = NOTICE_S) -> None:
    """Admit no new sessions, and wait until all have ended.

    Args:
        sessions: the sessions of the worker.
        limit_s: how long to wait, s; those that live then are ended by the shutdown, and their
            pages resume on another worker.
        notice_s: how long to wait at least, s.
    """
    sessions.drain()
    log.warning("draining: %d sessions live", len(sessions))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(limit_s, notice_s)):
            await asyncio.gather(asyncio.sleep(notice_s), sessions.wait_empty())
    log.warning("drained: %d sessions are left", len(sessions))
