"""ICE restarts (RFC 8445, 9) of aioice's connections, which have none of their own.

A restart gives both ends new credentials. The sockets stay, and so does what DTLS, SRTP and SCTP
have agreed on: media goes on to the old address until the peer has nominated a new one, which
aioice allows at any time.
"""

import re
from dataclasses import dataclass
from typing import Any

from aioice.utils import random_string

_OWN_LINE = re.compile(r"a=(?:group:BUNDLE |mid:|candidate:|end-of-candidates)|m=")


@dataclass(frozen=True, slots=True)
class IceCredentials:
    """The credentials of one end of a connection.

    Attributes:
        ufrag: user name fragment.
        password: of the connectivity checks to this end.
    """

    ufrag: str
    password: str


def restart_ice(connection: Any, theirs: IceCredentials) -> IceCredentials:
    """Change the credentials of a connection, and return its own; old ones are refused.

    Args:
        connection: aioice's connection.
        theirs: new credentials of the peer.
    """
    ours = IceCredentials(random_string(8), random_string(22))
    connection._local_username, connection._local_password = ours.ufrag, ours.password
    connection.remote_username, connection.remote_password = theirs.ufrag, theirs.password
    return ours


def write_fragment(description: str, ours: IceCredentials) -> str:
    """Return the answer to a restart: an SDP fragment (RFC 8840) with all candidates.

    Args:
        description: SDP of this end, whose media sections share one transport.
        ours: new credentials of this end.
    """
    session, *sections = re.split(r"(?m)^(?=m=)", description.replace("\r\n", "\n"))
    lines = [line for line in (session + sections[0]).split("\n") if _OWN_LINE.match(line)]
    after_mid = next(at for at, line in enumerate(lines) if line.startswith("a=mid:")) + 1
    lines[after_mid:after_mid] = [f"a=ice-ufrag:{ours.ufrag}", f"a=ice-pwd:{ours.password}"]
    return "\r\n".join([*lines, ""])
