"""A server under attack: its event loop in a thread, its log, and what it must never do."""

import asyncio
import faulthandler
import gc
import logging
import re
import signal
from contextlib import asynccontextmanager

from support import aiortc_internals
from support.server_fakes import Peer, serving
from support.transport_stage import staged

from letstalk_server.main import quieten_libraries
from letstalk_server.session.transport import PeerRole, PeerState
from letstalk_server.settings import Settings

TIMEOUT_S = 60
BUSY_S = 10
"""Processor time after which a loop without an await counts as hung; it may take memory as well."""

SECRETS = ("SENTINEL", "192.0.2.")
"""Parts of the corpus that no log may contain: the seeds have them where speech, SDP and addresses
would be."""

API_KEY = "an operator is not limited in the number of requests"


class Broken(AssertionError):
    """The server did what it must never do; the message tells what was expected."""


class Hung(Exception):
    """The server was busy for too long. Not one of the errors that malformed packets raise."""


class Watch(logging.Handler):
    """Collects what must not be in a log: warnings, failures of tasks, secrets.

    Attributes:
        found: what was collected since the last check.
        records: how many records of our own code were looked at.
        dropped: how many of them say that a packet was dropped.
    """

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.found = []
        self.records = self.dropped = 0

    def emit(self, record):
        text = self.format(record)
        self.records += 1
        self.dropped += "was dropped" in text
        if record.levelno >= logging.WARNING:
            self.found.append(f"{record.name} {record.levelname}: {text}")
        elif any(secret in text for secret in SECRETS):
            self.found.append(f"a secret in the log of {record.name}: {text}")

    def on_loop(self, loop, context):
        """Collect an exception that nobody caught."""
        error = context.get("exception")
        self.found.append(f"nobody caught: {context['message']} {type(error).__name__}: {error}")

    def check(self):
        """Raise if something was collected."""
        found, self.found = self.found, []
        if found:
            raise Broken("expected nothing in the log, got: " + " | ".join(found))


class World:
    """Runs a server, whenever something is asked of it. Use it as a context manager.

    Args:
        opening: an asynchronous context manager; what it yields is `self.inside`.
    """

    def __init__(self, opening):
        self.watch = Watch()
        self._opening = opening
        self._loop = asyncio.new_event_loop()
        self._stack = None
        self._runs = 0
        self.inside = None

    def __enter__(self):
        quieten_libraries()
        logging.getLogger().addHandler(self.watch)
        logging.getLogger("letstalk_server").setLevel(logging.DEBUG)
        signal.signal(signal.SIGVTALRM, self._give_up)
        self._loop.set_exception_handler(self.watch.on_loop)
        aiortc_internals.keep_consent()
        self.open()
        return self

    def __exit__(self, *failure):
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        logging.getLogger("letstalk_server").setLevel(logging.NOTSET)
        self.close()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        logging.getLogger().removeHandler(self.watch)

    def open(self):
        """Open the server."""
        self._stack = self._opening()
        self.inside = self._loop.run_until_complete(self._stack.__aenter__())

    def close(self):
        """Close the server."""
        self._loop.run_until_complete(self._stack.__aexit__(None, None, None))

    def reopen(self):
        """Open another server, after the input has broken this one or its connection."""
        self.close()
        # Tasks of the other end, which is in this process, may have failed while it was closed.
        gc.collect()
        self.watch.found.clear()
        self.open()

    def run(self, work):
        """Run a coroutine in the server's loop; one that hangs is a failure."""

        async def bounded():
            async with asyncio.timeout(TIMEOUT_S):
                return await work

        signal.setitimer(signal.ITIMER_VIRTUAL, BUSY_S)  # for loops without an await
        if self._runs % 100 == 0:  # and for those of libraries in C
            faulthandler.dump_traceback_later(10 * TIMEOUT_S, exit=True)
        self._runs += 1
        try:
            return self._loop.run_until_complete(bounded())
        except TimeoutError:
            raise Broken(f"expected an answer within {TIMEOUT_S} s, got none") from None
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _give_up(self, number, frame):
        self.watch.found.append(f"a loop that takes more than {BUSY_S} s")  # if `Hung` is caught
        raise Hung(f"expected an answer within {BUSY_S} s of processor time, got none")


class Application:
    """The whole server: `app`, an HTTP client, and a connected peer if there is one."""

    def __init__(self, app, client, peer=None):
        self.app, self.client, self.peer = app, client, peer

    @property
    def session(self):
        """The peer's session; None if it has ended."""
        return next((s for s in self.app.state.sessions if s.id == self.peer.session), None)

    @property
    def ufrag(self):
        """The peer's ICE user name fragment."""
        return re.search(r"a=ice-ufrag:(\S+)", self.peer.pc.localDescription.sdp).group(1)


@asynccontextmanager
async def application():
    """Run the server."""
    settings = Settings(
        size=256,
        api_key=API_KEY,
        auth="on",
        heartbeat_timeout_s=600,
        report_timeout_s=600,
        max_message_rate=100_000,
        max_upload_pixels=1_000_000,
        max_sessions=64,
    )
    async with serving(settings) as (app, client):
        client.headers["authorization"] = f"Bearer {API_KEY}"
        yield Application(app, client)


@asynccontextmanager
async def conversation():
    """Run the server with a connected peer."""
    async with application() as inside:
        inside.peer = await Peer().join(inside.client)
        yield inside
        await inside.peer.close()


class Connection:
    """A connected peer of the transport, seen from inside: where its packets arrive."""

    def __init__(self, peer, pc, guest, messages):
        self.peer, self.pc, self.guest, self.messages = peer, pc, guest, messages
        self.packets = aiortc_internals.Arrivals(pc)

    @property
    def is_connected(self):
        """Whether the connection still stands."""
        return self.peer.state is PeerState.CONNECTED


@asynccontextmanager
async def connection():
    """Connect a peer, with a data channel."""
    async with staged(side=64) as stage:
        guest = stage.guest()
        channel = guest.pc.createDataChannel("control")
        opened, messages = asyncio.Event(), []
        channel.on("open", opened.set)
        peer = await stage.connect(guest, PeerRole.TALKER, message=messages.append)
        await guest.until(lambda: len(guest.video) > 2)
        await asyncio.wait_for(opened.wait(), 20)
        aiortc_internals.Arrivals(guest.pc).harden()
        channel.send("{}")
        await guest.until(lambda: messages)
        yield Connection(peer, stage.connections[-1], guest, messages)
