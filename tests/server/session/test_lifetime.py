"""How long a session lasts, and who is on it: by a clock that the test sets."""

import json
from dataclasses import dataclass, field

import pytest

from letstalk_server.errors import AtCapacityError, NotFoundError
from letstalk_server.protocol import server_messages
from letstalk_server.protocol.client_messages import ConnectionConfig
from letstalk_server.session.announcer import Announcer
from letstalk_server.session.connection import ConnectionKind, EndReason
from letstalk_server.session.connections import Connections
from letstalk_server.session.lifetime import END_WARNING_S, Lifetime
from letstalk_server.settings import Settings

SETTINGS = Settings(max_session_s=1000, max_idle_s=300, grace_s=15, connect_timeout_s=10)


@dataclass
class FakeConnection:
    id: str
    kind: ConnectionKind = ConnectionKind.PLAY
    config: ConnectionConfig = field(default_factory=ConnectionConfig)
    lost_s: float = 1e9
    may_speak: bool = True
    sent: list = field(default_factory=list)

    def send(self, text):
        self.sent.append(json.loads(text))

    def is_lost(self, now_s):
        return now_s > self.lost_s


class Stage:
    """A session's connections and limits, with nobody there."""

    def __init__(self, settings=SETTINGS, most=3):
        self.now_s = 100.0
        self.connections = Connections(most, lambda: self.now_s)
        self.lifetime = Lifetime(settings, self.connections, lambda: self.now_s)
        self.received = []

    def join(self, name, **options):
        connection = FakeConnection(name, **options)
        return connection, self.connections.add(connection, self.received.append)

    def warned(self):
        return [(warning.code, warning.ends_in_s) for warning in self.lifetime.warnings()]


def test_a_session_nobody_comes_to_is_lost_after_both_waits_and_a_left_one_after_its_grace_time():
    stage = Stage()
    stage.now_s += 25
    assert stage.lifetime.end() is None
    stage.now_s += 0.1
    assert stage.lifetime.end() is EndReason.LOST
    connection, _ = stage.join("a")
    assert stage.lifetime.end() is None
    assert stage.connections.remove(connection) and not stage.connections.remove(connection)
    stage.now_s += 15
    assert stage.lifetime.end() is None
    stage.now_s += 0.1
    assert stage.lifetime.end() is EndReason.LOST


def test_silence_is_warned_of_and_ends_a_session_unless_it_is_used():
    stage = Stage()
    stage.join("a")
    stage.now_s += 300 - END_WARNING_S
    assert stage.warned() == []
    stage.now_s += 30
    assert stage.warned() == [("idle-soon", 30)]
    assert stage.warned() == [], "once is enough"
    stage.lifetime.touch()
    assert stage.warned() == []
    stage.now_s += 290
    assert stage.warned() == [("idle-soon", 10)], "anew"
    stage.now_s += 10
    assert stage.lifetime.end() is None
    stage.now_s += 0.1
    assert stage.lifetime.end() is EndReason.IDLE


def test_the_longest_time_ends_a_session_however_busy_it_is():
    stage = Stage(Settings(max_session_s=1000, max_idle_s=0))
    stage.join("a")
    stage.now_s += 960
    stage.lifetime.touch()
    assert stage.warned() == [("ends-soon", 40)]
    assert stage.lifetime.ends_in_s == 40
    stage.now_s += 41
    assert stage.lifetime.end() is EndReason.TIME_OVER and stage.lifetime.ends_in_s == 0


@pytest.mark.parametrize(
    "settings", [Settings(kiosk=True), Settings(max_session_s=0, max_idle_s=0)]
)
def test_a_kiosk_has_no_time_limits_but_loses_a_peer_that_is_gone(settings):
    stage = Stage(settings)
    connection, _ = stage.join("a")
    for _ in range(10):
        stage.now_s += 86_400
        assert stage.warned() == []
        assert stage.lifetime.end() is None
    assert stage.lifetime.ends_in_s is None
    stage.connections.remove(connection)
    stage.now_s += settings.grace_s + 0.1
    assert stage.lifetime.end() is EndReason.LOST


@pytest.mark.parametrize(
    "kind, gives_way",
    [(ConnectionKind.TALK, True), (ConnectionKind.SPEAK, True), (ConnectionKind.PLAY, False)],
)
def test_of_some_roles_there_is_one_and_the_older_gives_way(kind, gives_way):
    stage = Stage()
    old, _ = stage.join("old", kind=kind)
    stage.join("socket", kind=ConnectionKind.SOCKET)
    _, older = stage.join("new", kind=kind)
    assert older == ([old] if gives_way else [])


def test_there_are_at_most_so_many_connections():
    stage = Stage(most=1)
    stage.join("a")
    with pytest.raises(AtCapacityError, match="1 connections"):
        stage.join("b")


def test_a_connection_is_found_heard_and_timed_while_it_is_there():
    stage = Stage()
    connection, _ = stage.join("a")
    assert stage.connections.find("a") is connection
    assert stage.connections.with_times() == [(connection, 100.0)]
    stage.connections.receive(connection, "hello")
    assert stage.connections.clear() == [connection] and not stage.connections
    stage.connections.receive(connection, "too late")
    assert stage.received == ["hello"]
    with pytest.raises(NotFoundError):
        stage.connections.find("a")


def test_lost_connections_and_those_that_want_statistics_are_told_apart():
    stage = Stage()
    lost, _ = stage.join("lost", lost_s=101.0)
    curious, _ = stage.join("curious", config=ConnectionConfig(stats_s=2))
    assert stage.connections.lost(102.0) == [lost]
    assert stage.connections.take_due_stats(102.0) == [curious]
    assert stage.connections.take_due_stats(103.9) == []
    assert stage.connections.take_due_stats(104.0) == [curious]


def test_messages_are_about_the_segment_on_the_screen_unless_said_otherwise():
    stage = Stage()
    (one, _), (other, _) = stage.join("one"), stage.join("other")
    announcer = Announcer("s", stage.connections)
    announcer.segment_id = 4
    announcer.broadcast(server_messages.Idle())
    announcer.broadcast(server_messages.Finished(80), 3)
    announcer.send(one, server_messages.Pong(), "p1")
    assert [message["segment_id"] for message in one.sent] == [4, 3, 4]
    assert one.sent[:2] == other.sent and one.sent[2]["re"] == "p1"
