"""Authentication of requests: by bearer token, or, for requests that change nothing, by a session of the web page."""

import math
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from services.api.caches.token_cache import Caller, Key
from services.api.errors import RequestError
from services.api.sessions import COOKIE, SessionKey
from services.api.state import Service, service_of

SAFE = frozenset({"GET", "HEAD"})
_bearer = HTTPBearer(
    auto_error=False, scheme_name="token", description="A token created by `nas-blockout token create --owner NAME`."
)


async def reader(
    request: Request,
    described: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> Caller:
    """Return the authenticated caller of a request.

    Args:
        request: Carries the token in a header, or the session in a cookie.
        described: Only declares the scheme in OpenAPI; the header is read here.

    Raises:
        RequestError: The token or session is missing or invalid, or sends too many requests.
    """
    service = service_of(request)
    caller = await _caller(service, request)
    if caller is None:  # counted by address, so that secrets cannot be guessed at any speed
        count(service, ("address", request.client.host if request.client else ""))
        raise RequestError(
            401,
            "unauthorized",
            "a valid token is required",
            key="Authorization",
            remedy="send `Authorization: Bearer TOKEN`; `nas-blockout token create --owner NAME` creates one",
            headers={"WWW-Authenticate": "Bearer"},
        )
    count(service, ("token", caller.token))
    return caller


async def writer(caller: Annotated[Caller, Depends(reader)]) -> Caller:
    """Return the caller of a request that changes something.

    Raises:
        RequestError: The token is read-only.
    """
    require_write(caller)
    return caller


async def administrator(caller: Annotated[Caller, Depends(reader)]) -> Caller:
    """Return the caller of a request that is for administrators.

    Raises:
        RequestError: The token is none of an administrator.
    """
    if not caller.administers:
        raise RequestError(
            403,
            "not_administrator",
            "this is for administrators",
            key="Authorization",
            value=caller.scope,
            remedy="use a token created with --scope admin",
        )
    return caller


def require_write(caller: Caller) -> None:
    """Raise if a token is read-only."""
    if not caller.writes:
        raise RequestError(
            403,
            "read_only",
            "this token is read-only",
            key="Authorization",
            value=caller.scope,
            remedy="use a token created with --scope write",
        )


async def _caller(service: Service, request: Request) -> Caller | None:
    """Return the caller of a request; for one that changes something, cached tokens are not trusted."""
    key: Key
    header, safe = request.headers.get("authorization"), request.method in SAFE
    if header is not None:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer":  # a header that is there decides, whatever cookie comes with it
            return None
        key = secret.strip()
    else:
        # A session alone changes nothing: the forms of the page also prove that they were not sent by another site.
        session = session_of(request) if safe else None
        if session is None:
            return None
        key = session
    cached = service.callers.recent(key) if safe else None
    return cached if cached is not None else await run_in_threadpool(service.callers.ask, key)


def session_of(request: Request) -> SessionKey | None:
    """Return the session of the web page that a request names, which may have ended, or None."""
    return service_of(request).sessions.key(request.cookies.get(COOKIE, ""))


def count(service: Service, client: tuple[str, str | int]) -> None:
    """Count a request against the rate limit of a client.

    Raises:
        RequestError: The limit is exceeded.
    """
    if (wait := service.buckets.wait(client)) > 0:
        seconds = math.ceil(wait)
        raise RequestError(
            429,
            "too_many_requests",
            f"the limit is {service.settings.api_rate} requests per second",
            remedy=f"wait {seconds} s",
            headers={"Retry-After": str(seconds)},
        )


Reader = Annotated[Caller, Depends(reader)]
Writer = Annotated[Caller, Depends(writer)]
Administrator = Annotated[Caller, Depends(administrator)]
