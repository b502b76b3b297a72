"""Messages between client and server, as they are on the wire."""
