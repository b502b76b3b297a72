"""What a thread opens is closed, even if nobody waits for it any more."""

import asyncio

import pytest
from support.slow_opening import SlowOpening
from support.virtual_time import run_real

from letstalk_rt.errors import DependencyError
from letstalk_rt.opening import open_in_thread


def test_what_is_opened_stays_open() -> None:
    log: list[str] = []
    run_real(open_in_thread(lambda: log.append("opened"), lambda: log.append("closed")))
    assert log == ["opened"]


def test_what_is_opened_for_a_task_that_was_cancelled_is_closed() -> None:
    slow = SlowOpening()
    run_real(slow.cancel(open_in_thread(slow.open, slow.close)))
    assert slow.log == ["opened", "closed"]


def test_what_is_opened_for_a_task_that_was_cancelled_twice_is_closed() -> None:
    slow = SlowOpening()

    async def body() -> None:
        await slow.cancel(open_in_thread(slow.open, slow.close), times=2)
        assert await asyncio.to_thread(slow.closed.wait, 20)

    run_real(body())
    assert slow.log == ["opened", "closed"]


def test_an_error_of_opening_is_raised() -> None:
    def fail() -> None:
        raise DependencyError("busy")

    with pytest.raises(DependencyError, match="busy"):
        run_real(open_in_thread(fail, lambda: None))


def test_an_error_of_opening_for_a_task_that_was_cancelled_is_not_told() -> None:
    slow, told = SlowOpening(), []

    def fail() -> None:
        slow.open()
        raise DependencyError("busy")

    async def body() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: told.append(context))
        await slow.cancel(open_in_thread(fail, slow.close))

    run_real(body())
    assert slow.log == ["opened", "closed"] and told == []
