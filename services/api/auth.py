"""Who sends a request: by a bearer token, or, where nothing is changed, by a session of the page."""

import math
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from services.api.caches.token_cache import Caller
from services.api.errors import Refused
from services.api.sessions import COOKIE, Session
from services.api.state import Service, service_of

SAFE = frozenset({"GET", "HEAD"})
_bearer = HTTPBearer(
    auto_error=False, scheme_name="token", description="A token made by `nas-blockout token create --owner NAME`."
)


async def reader(
    request: Request,
    described: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> Caller:
    """Return who sends a request.

    Args:
        request: Its header or its cookie says who.
        described: How OpenAPI describes it; not used.

    Raises:
        Refused: Nobody known does, or too often.
    """
    service = service_of(request)
    caller = await _caller(service, request)
    if caller is None:
        count(service, ("address", request.client.host if request.client else ""))
        raise Refused(
            401,
            "unauthorized",
            "this needs a token that is valid",
            key="Authorization",
            remedy="send `Authorization: Bearer TOKEN`; `nas-blockout token create --owner NAME` makes one",
            headers={"WWW-Authenticate": "Bearer"},
        )
    count(service, ("token", caller.token))
    return caller


async def writer(caller: Annotated[Caller, Depends(reader)]) -> Caller:
    """Return who sends a request that changes something.

    Raises:
        Refused: The token may only read.
    """
    require_write(caller)
    return caller


def require_write(caller: Caller) -> None:
    """Refuse a token that may only read."""
    if not caller.writes:
        raise Refused(
            403,
            "read_only",
            "this token may only read",
            key="Authorization",
            value=caller.scope,
            remedy="use a token that was made with --scope write",
        )


async def _caller(service: Service, request: Request) -> Caller | None:
    """Return who sends a request; of one that changes something the store is asked, whoever was known just now."""
    key: str | int
    header, safe = request.headers.get("authorization"), request.method in SAFE
    if header is not None:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer":
            return None
        key = secret.strip()
    else:
        session = session_of(request) if safe else None
        if session is None:
            return None
        key = session.token
    known = service.callers.recent(key) if safe else None
    return known if known is not None else await run_in_threadpool(service.callers.ask, key)


def session_of(request: Request) -> Session | None:
    """Return the session of the page that a request belongs to, or None."""
    cookie = request.cookies.get(COOKIE)
    return service_of(request).signer.read(cookie) if cookie else None


def count(service: Service, client: tuple[str, str | int]) -> None:
    """Count a request of a client.

    Raises:
        Refused: It sends too many.
    """
    if (wait := service.buckets.wait(client)) > 0:
        seconds = math.ceil(wait)
        raise Refused(
            429,
            "too_many_requests",
            f"more than {service.settings.api_rate} requests a second",
            remedy=f"wait {seconds} s",
            headers={"Retry-After": str(seconds)},
        )


Reader = Annotated[Caller, Depends(reader)]
Writer = Annotated[Caller, Depends(writer)]
