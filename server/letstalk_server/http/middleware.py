"""Refuses requests of foreign origins, answers CORS and adds the security headers."""

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from letstalk_server.http.problem_details import ForeignOriginError, problem_details
from letstalk_server.settings import Settings, is_loopback

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(self), geolocation=()",
}
HSTS = {"strict-transport-security": "max-age=31536000"}
"""With TLS only: the page of a year later must not be asked for in the clear."""

OWN_OPTIONS = ("/v1/whip", "/v1/whep")
"""Paths that answer `OPTIONS` themselves."""

_METHODS = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"
_HEADERS = "authorization, content-type, if-match"
_EXPOSED = "location, etag, link, accept-patch, accept-post, retry-after"
_PREFLIGHT_S = "600"


class SecurityMiddleware:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        settings: the allowed origins.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._security = _encoded(SECURITY_HEADERS | (HSTS if settings.tls_cert else {}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        added = [*self._security, *self._cors(request)]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                held = message.get("headers", [])
                names = {name for name, _ in held}
                message["headers"] = [*held, *(one for one in added if one[0] not in names)]
            await send(message)

        refusal = refusal_of(request, self._settings)
        if refusal is not None:
            await problem_details(refusal).response()(scope, receive, send_guarded)
        elif request.method == "OPTIONS" and request.url.path not in OWN_OPTIONS:
            await Response(status_code=204, headers={"allow": _METHODS})(
                scope, receive, send_guarded
            )
        else:
            await self._app(scope, receive, send_guarded)

    def _cors(self, request: Request) -> list[tuple[bytes, bytes]]:
        origin = request.headers.get("origin")
        if origin is None or not is_named(origin, self._settings):
            return []
        headers = {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": _EXPOSED,
            "vary": "origin",
        }
        if request.method == "OPTIONS":
            headers |= {
                "access-control-allow-methods": _METHODS,
                "access-control-allow-headers": _HEADERS,
                "access-control-max-age": _PREFLIGHT_S,
            }
        return _encoded(headers)


def refusal_of(connection: HTTPConnection, settings: Settings) -> ForeignOriginError | None:
    """Return the error with which a request must be refused, or None.

    Reading is harmless: without CORS headers browsers hide the response from the page. WebSockets
    have no such protection.
    """
    host = connection.headers.get("host", "")
    if not settings.auth_required and is_loopback(settings.host) and not is_local(host):
        # A foreign page may resolve its own host name to this machine (DNS rebinding).
        return ForeignOriginError(
            "This server is for this machine only: open it as localhost, or require tokens."
        )
    method = connection.scope.get("method", "GET")
    is_read = connection.scope["type"] == "http" and method in ("GET", "HEAD")
    if is_read or not is_foreign(connection, settings):
        return None
    return ForeignOriginError(
        "Open the page of this server itself, or ask its operator to allow your site's origin."
    )


def is_foreign(connection: HTTPConnection, settings: Settings) -> bool:
    """Return whether a browser made this request for a page of another site."""
    origin = connection.headers.get("origin")
    if origin is None or is_named(origin, settings):
        return False
    return urlsplit(origin).netloc != connection.headers.get("host")


def is_named(origin: str, settings: Settings) -> bool:
    """Return whether the operator allows an origin."""
    return origin in settings.allow_origins or "*" in settings.allow_origins


def is_local(host: str) -> bool:
    """Return whether a Host header names this machine."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return is_loopback(name.strip("[]"))


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
