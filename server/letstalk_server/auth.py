"""Authentication and authorisation by short-lived signed tokens.

Tokens are JWTs signed with HMAC-SHA256. They are checked when a request or a connection is opened,
never logged, and never read from the query, because URLs end up in logs.
"""

import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jwt

from letstalk_server.errors import (
    NotAllowedError,
    TokenExpiredError,
    TokenInvalidError,
    TokenMissingError,
)
from letstalk_server.settings import Settings

SCOPES = ("sessions", "speak", "view", "avatars", "metrics")
MAX_TTL_S = 3600
MAX_LOGIN_S = 12 * 3600
"""Time for which a token may be renewed."""

MAX_SUBJECT_CHARS = 128
PROTOCOL = "letstalk.v1"
"""The WebSocket subprotocol; browsers send the token as a second one."""

_BEARER = "bearer."
_ISSUER = "letstalk"
_LEEWAY_S = 5


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller.

    Attributes:
        subject: owner of the portraits and sessions.
        scopes: scopes of the token.
        session: the only session that the token is valid for; `None` for all of the subject.
        login_s: when the first token of the chain of renewals was issued, Unix time.
        token_id: identifier of the token, which its renewals keep; empty without a token.
        is_operator: whether the caller sent the API key.
    """

    subject: str
    scopes: frozenset[str]
    session: str | None = None
    login_s: int = 0
    token_id: str = ""
    is_operator: bool = False

    def require(self, *scopes: str) -> None:
        """Check that the caller has at least one of these scopes.

        Raises:
            NotAllowedError: The caller has none of them.
        """
        if not self.scopes.intersection(scopes):
            names = " or ".join(scopes)
            raise NotAllowedError(f"This needs a token with the scope {names}; request one.")

    def require_unbound(self) -> None:
        """Check that the token is not valid for one session only.

        Raises:
            NotAllowedError: It is.
        """
        if self.session is not None:
            raise NotAllowedError("This token is for one session. Use one that is not.")


LOCAL = Caller("local", frozenset(SCOPES), is_operator=True)
"""Every caller of a server that requires no tokens."""

OPERATOR = Caller("operator", frozenset(SCOPES), is_operator=True)


class Auth:
    """Issues and checks tokens.

    Args:
        settings: secrets and lifetimes.
        now: returns the Unix time, s.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self.required = settings.auth_required
        self._key = settings.secret or secrets.token_hex(32)
        self._api_key = settings.api_key
        self._ttl_s = settings.token_ttl_s
        self._now = now

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller of a request with these headers.

        Raises:
            AuthenticationError: The token is missing, invalid or expired.
        """
        if not self.required:
            return LOCAL
        token = _token_of(headers)
        if token is None:
            raise TokenMissingError(
                "Send a token in the header 'Authorization: Bearer TOKEN'; on a WebSocket of a "
                f"browser, name the subprotocols {PROTOCOL} and bearer.TOKEN."
            )
        if self._api_key is not None and hmac.compare_digest(
            token.encode(errors="replace"), self._api_key.encode()
        ):
            return OPERATOR
        return self._read(token)

    def issue(
        self,
        subject: str,
        scopes: Iterable[str],
        *,
        ttl_s: float | None = None,
        session: str | None = None,
        login_s: float | None = None,
        token_id: str | None = None,
    ) -> tuple[str, int]:
        """Return a new token and its lifetime, s.

        Args:
            subject: see `Caller`, like `session` and `login_s`.
            scopes: scopes of the token.
            ttl_s: wanted lifetime, s.
            session: the only session that it is valid for.
            login_s: when the chain of renewals began; now if `None`.
            token_id: id of the token that it renews; a new one if `None`.
        """
        now = int(self._now())
        login = now if login_s is None else int(login_s)
        ttl = int(min(ttl_s or self._ttl_s, MAX_TTL_S, login + MAX_LOGIN_S - now))
        claims = {
            "iss": _ISSUER,
            "sub": subject,
            "jti": token_id or secrets.token_urlsafe(12),
            "iat": now,
            "exp": now + ttl,
            "login": login,
            "scope": " ".join(sorted(scopes)),
        }
        if session is not None:
            claims["sid"] = session
        return jwt.encode(claims, self._key, algorithm="HS256"), ttl

    def renew(self, caller: Caller, ttl_s: float | None = None) -> tuple[str, int]:
        """Return a token for the caller with a new expiry time, and its lifetime, s.

        Raises:
            TokenExpiredError: The token was renewed for `MAX_LOGIN_S`.
        """
        if self._now() >= caller.login_s + MAX_LOGIN_S:
            raise TokenExpiredError("A token can be renewed for 12 hours. Request a new one.")
        return self.issue(
            caller.subject,
            caller.scopes,
            ttl_s=ttl_s,
            session=caller.session,
            login_s=caller.login_s,
            token_id=caller.token_id,
        )

    def _read(self, token: str) -> Caller:
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                issuer=_ISSUER,
                leeway=_LEEWAY_S,
                options={
                    "require": ["exp", "sub", "iat"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            end_s, login_s = float(claims["exp"]), int(claims["login"])
            scopes, token_id = frozenset(str(claims["scope"]).split()), str(claims["jti"])
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError):
            detail = "The token was not issued by this server, or is damaged. Request a new one."
            raise TokenInvalidError(detail) from None
        if self._now() > end_s + _LEEWAY_S:
            raise TokenExpiredError("The token has expired. Request a new one.")
        return Caller(str(claims["sub"]), scopes, claims.get("sid"), login_s, token_id)


def subprotocol(headers: Mapping[str, str]) -> str | None:
    """Return the WebSocket subprotocol to accept, or None if it was not offered."""
    return PROTOCOL if PROTOCOL in _protocols(headers) else None


def _token_of(headers: Mapping[str, str]) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    for name in _protocols(headers):
        if name.startswith(_BEARER):
            return name.removeprefix(_BEARER)
    return None


def _protocols(headers: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
