"""An event loop whose time jumps to the next timer, so that tests do not really wait.

Only for tests without threads: a loop that waits for a thread has no timer to jump to.
"""

import asyncio
import selectors


class _JumpingSelector(selectors.DefaultSelector):
    """Never blocks: moves the clock instead."""

    now_s = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "every task waits, and no timer is set"
            self.now_s += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self):
        return self._jumping.now_s

    def run_in_executor(self, executor, func, *args):
        """Run calls of `asyncio.to_thread` at once, in this thread."""
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def _run(body, loop_factory, limit_s):
    async def guarded():
        async with asyncio.timeout(limit_s):
            result = await body
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is left"
        return result

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(guarded())


def run(body, limit_s=600):
    """Run a test in virtual time; fail it if it hangs or leaves a task behind."""
    return _run(body, VirtualTimeLoop, limit_s)


def run_real(body, limit_s=20):
    """Run a test that uses threads; fail it if it hangs or leaves a task behind."""
    return _run(body, None, limit_s)
