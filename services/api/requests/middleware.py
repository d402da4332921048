"""The outermost layer of every request: limits, security headers, metrics, and a response to unexpected errors."""

import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.responses import Response

from nas_blockout.plugins.choices import allowing
from services.api import auth, errors
from services.api.state import Service

MAX_REQUESTS = 1000  # at once, event streams and downloads included
ALIVE = "/healthz"  # answered whatever else is refused: who gets no answer from it restarts the service
_API = "/v1/"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_SECURITY_HEADERS = [
    (name.encode(), value.encode())
    for name, value in {**_HEADERS, "content-security-policy": POLICY, "cache-control": "no-store"}.items()
]
_LOG = logging.getLogger("nas_blockout.api")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Explain = Callable[[Request, Exception], Response]


class Guard:
    """The outermost layer of the application.

    Args:
        app: The application inside.
        service: Counts requests, and limits them by client.
        explain: Returns the response for an error.
        max_requests: How many requests are served at once.
    """

    def __init__(self, app: Application, service: Service, explain: Explain, max_requests: int = MAX_REQUESTS) -> None:
        self._app, self._service, self._explain = app, service, explain
        self._max_requests, self._served = max_requests, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request: limit it, add headers to the response, count it, and respond if the application fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_security_headers(list(message["headers"]))
                # The template, such as /v1/studies/{name}: a path would let clients create time series without limit.
                route = getattr(scope.get("route"), "path", "other")
                self._service.metrics.count(_method(scope), route, status, time.monotonic() - began)
            await send(message)

        request = Request(scope)
        self._served += 1
        try:
            self._require_room(request)
            self._count(request)
            with allowing(self._service.settings.allows_origin):  # whatever a route reads, such as studies of others
                await self._app(scope, receive, answer)
        except Exception as error:  # noqa: BLE001  # last resort; neither log nor client gets the message, which may hold secrets
            if not isinstance(error, errors.RequestError):
                _LOG.error("%s %s failed: %s", scope["method"], scope["path"][:200], _place(error))
            if status:  # headers have been sent, and cannot be taken back: only closing the connection tells the client
                raise errors.RequestError(500, "internal", "the response was interrupted") from None
            await self._explain(request, error)(scope, receive, answer)
        finally:
            self._served -= 1

    def _require_room(self, request: Request) -> None:
        if self._served > self._max_requests and request.scope["path"] != ALIVE:
            raise errors.RequestError(
                503,
                "busy",
                f"{self._max_requests} requests are being served already",
                remedy="wait 1 s",
                headers={"Retry-After": "1", "Connection": "close"},
            )

    def _count(self, request: Request) -> None:
        """Count a request of the page, of a health check or of metrics; those of the API are counted with their token.

        A session counts as its token, so that many users of the page behind one address do not share a limit.
        """
        path = request.scope["path"]
        if path == ALIVE or path.startswith(_API):
            return
        session = auth.session_of(request)
        # Cookies that were never validated count as the address: anybody can make them up.
        caller = self._service.callers.remembered(session) if session else None
        host = request.client.host if request.client else ""
        auth.count(self._service, ("token", caller.token) if caller else ("address", host))


def _with_security_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    # A route may set its own, as those of files do, which may be cached.
    present = {name.lower() for name, _ in headers}
    return headers + [header for header in _SECURITY_HEADERS if header[0] not in present]


def _method(scope: Scope) -> str:
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    return scope["method"] if scope["method"] in known else "other"


def _place(error: BaseException) -> str:
    """Return the type of an error and where it was raised, without its message, which may hold secrets."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "services" in Path(frame.filename).parts] or list(frames)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-4:]))
    return f"{type(error).__name__} at {where}"
