"""What the clients of one session are told: encoded, numbered, and sent."""

from letstalk_server.protocol import server_messages
from letstalk_server.session.connection import Connection
from letstalk_server.session.connections import Connections


class Announcer:
    """Tells the clients of one session.

    Args:
        session: the session's id.
        connections: who is told.

    Attributes:
        segment_id: the segment on the screen, which messages are about unless said otherwise.
    """

    def __init__(self, session: str, connections: Connections) -> None:
        self.segment_id = 0
        self._connections = connections
        self._encode = server_messages.ServerMessageEncoder(session)

    def broadcast(
        self, message: server_messages.ServerMessage, segment_id: int | None = None
    ) -> None:
        """Send a message to all connections."""
        about = self.segment_id if segment_id is None else segment_id
        self._connections.broadcast(self._encode(message, about))

    def send(
        self, connection: Connection, message: server_messages.ServerMessage, re: str | None = None
    ) -> None:
        """Send a message to one connection; `re` is the `event_id` it answers."""
        connection.send(self._encode(message, self.segment_id, re))
