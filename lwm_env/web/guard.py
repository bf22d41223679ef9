"""What stands before the app: exact Hosts and Origins, an access token, sizes, rates, security headers."""

import secrets
from collections.abc import Callable
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lwm_env.web.metrics import Metrics
from lwm_env.web.pictures import MAX_PICTURE_BYTES
from lwm_env.web.settings import Settings, is_loopback

UNGUARDED = ("/healthz", "/readyz")  # an orchestrator asks by address; they tell nothing
MAX_BODY_BYTES = 1 << 16
LARGE_BODIES = {"/prompt": MAX_PICTURE_BYTES, "/restore": 1 << 26}  # by the end of the path
INGRESS_HEADER = "x-lwm-ingress"  # from an ingress to its hosts
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Allowed:
    """The exact Host and Origin values of a server that listens on a port."""

    def __init__(self, settings: Settings, port: int) -> None:
        names = ["127.0.0.1", "localhost", "[::1]"] if is_loopback(settings.host) else [settings.host]
        own = [f"{name}:{port}" for name in names] + (names if port == 80 else [])
        self.hosts = frozenset([*own, *settings.hosts])
        self.origins = frozenset([*(f"http://{host}" for host in own), *settings.origins])


class Guard:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, settings: Settings, allowed: Callable[[], Allowed], metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._allowed = allowed
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(settings.requests_per_minute)
        self._rooms = RateLimitItemPerMinute(settings.rooms_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in UNGUARDED:
            await self.app(scope, receive, send)
            return
        refusal = self._refuse(scope)
        if refusal is None:
            limit = next((size for end, size in LARGE_BODIES.items() if scope["path"].endswith(end)), MAX_BODY_BYTES)
            await self.app(scope, _with_limit(receive, limit), _with_headers(send))
            return
        status, reason, told = refusal
        self.metrics.rejected.labels(reason).inc()
        headers = {"Retry-After": "10"} if status == 429 else {}
        response = JSONResponse({"detail": told}, status, headers)
        await response(scope, receive, _with_headers(send))

    def _refuse(self, scope: Scope) -> tuple[int, str, str] | None:
        """Status, reason for the metrics and text; None lets it pass."""
        headers, allowed = Headers(scope=scope), self._allowed()
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0] not in allowed.hosts:
            return 421, "host", "this server does not answer to that Host. Add it to `hosts` in the settings."
        if len(origins) > 1 or (origins and origins[0] not in allowed.origins):
            return 403, "origin", "requests from that Origin are not taken. Add it to `origins` in the settings."
        unsafe = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        if unsafe and not origins and "cookie" in headers:
            return 403, "origin", "a browser's request without Origin is not taken."
        address = scope["client"][0] if scope["client"] else ""
        if not scope["path"].endswith("/preview") and not self._limiter.hit(self._requests, "requests", address):
            return 429, "rate", f"more than {self.settings.requests_per_minute} requests a minute. Wait."
        if scope["type"] == "http":
            if scope["path"].startswith("/api") and not self._has_access(headers):
                return 401, "access", "this server asks for its access token: Authorization: Bearer TOKEN."
            creates = scope["method"] == "POST" and (scope["path"] == "/api/rooms" or scope["path"].endswith("/fork"))
            if creates and not self._limiter.hit(self._rooms, "rooms", address):
                return 429, "rate", f"more than {self.settings.rooms_per_minute} new rooms a minute. Wait."
        return None

    def _has_access(self, headers: Headers) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ")
        return grants_access(self.settings, given)


class IngressOnly:
    """ASGI middleware of a host: nobody is answered who does not send the ingress's secret."""

    def __init__(self, app: ASGIApp, secret: str) -> None:
        self.app, self._secret = app, secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            given = Headers(scope=scope).get(INGRESS_HEADER, "").encode()
            if not secrets.compare_digest(given, self._secret):
                refusal = JSONResponse({"detail": "this host answers to its ingress alone. Ask that one."}, 403)
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def grants_access(settings: Settings, token: str | None) -> bool:
    """Whether the server asks for no access token, or this is it."""
    wanted = settings.access_token
    return wanted is None or secrets.compare_digest((token or "").encode(), wanted.encode())


def _with_limit(receive: Receive, limit: int) -> Receive:
    """Bodies of at most `limit` bytes; WebSocket messages have a limit of their own."""
    count = 0

    async def receive_counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > limit:
            raise HTTPException(413, f"a body of more than {limit} bytes came.")
        return message

    return receive_counted


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers: Any = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_with_headers
