"""Encodes, numbers and sends messages to the clients of one session."""

from letstalk_server.protocol import server_messages
from letstalk_server.session.connection import Connection
from letstalk_server.session.connections import Connections


class Announcer:
    """Sends messages to the clients of one session.

    Args:
        session: id of the session.
        connections: the connections of the session.

    Attributes:
        segment_id: id of the segment that is being shown; messages carry it by default.
    """

    def __init__(self, session: str, connections: Connections) -> None:
        self.segment_id = 0
        self._connections = connections
        self._encode = server_messages.ServerMessageEncoder(session)

    def broadcast(
        self, message: server_messages.ServerMessage, segment_id: int | None = None
    ) -> None:
        """Send a message to all connections."""
        segment_id = self.segment_id if segment_id is None else segment_id
        self._connections.broadcast(self._encode(message, segment_id))

    def send(
        self, connection: Connection, message: server_messages.ServerMessage, re: str | None = None
    ) -> None:
        """Send a message to one connection; `re` is the `event_id` of the request."""
        connection.send(self._encode(message, self.segment_id, re))
