"""Short-lived TURN credentials for one session, which need no database.

The scheme is coturn's `use-auth-secret` (draft-uberti-behave-turn-rest): the user name contains
the expiry time, and the password is its HMAC with a secret that both servers share. What follows
the time is the same for all credentials of a subject and session, because coturn counts its
`user-quota` for that: with another name each time, one subject could take all relays.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from typing import Any

from letstalk_server.auth import Caller
from letstalk_server.settings import IceServer, Settings


def ice_servers(
    settings: Settings, caller: Caller, now_s: float | None = None
) -> tuple[IceServer, ...]:
    """Return the STUN and TURN servers for a caller, with new credentials.

    Args:
        settings: the servers and the shared secret.
        caller: who will use them; an operator has another name each time.
        now_s: Unix time; the current time if `None`.
    """
    if settings.turn_secret is None:
        return settings.ice_servers
    end_s = int(time.time() if now_s is None else now_s) + settings.turn_ttl_s
    username = f"{end_s}:{_pseudonym(settings.turn_secret, caller)}"
    password = turn_password(settings.turn_secret, username)
    made = (IceServer(url, username, password) for url in settings.turn_urls)
    return (*settings.ice_servers, *made)


def _pseudonym(secret: str, caller: Caller) -> str:
    """Return a name that TURN's log may hold: it does not tell the subject."""
    if caller.is_operator:
        return secrets.token_urlsafe(6)
    who = f"{caller.subject}\0{caller.session or ''}"
    digest = hmac.new(secret.encode(), who.encode(errors="surrogatepass"), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest[:12]).decode()


def turn_password(secret: str, username: str) -> str:
    """Return the TURN password for a user name."""
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return base64.b64encode(digest).decode()


def as_json(servers: Iterable[IceServer]) -> list[dict[str, Any]]:
    """Return the servers as `RTCIceServer` dictionaries of a browser's `RTCPeerConnection`."""
    found = []
    for server in servers:
        entry: dict[str, Any] = {"urls": [server.url]}
        if server.username is not None:
            entry |= {"username": server.username, "credential": server.credential}
        found.append(entry)
    return found


def as_links(servers: Iterable[IceServer]) -> list[str]:
    """Return the servers as values of `Link` headers, as in WHIP and WHEP."""
    found = []
    for server in servers:
        link = f'<{server.url}>; rel="ice-server"'
        if server.username is not None:
            link += f'; username="{server.username}"; credential="{server.credential}"'
            link += '; credential-type="password"'
        found.append(link)
    return found
