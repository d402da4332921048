"""Who sends a request: by a bearer token, or, where nothing is changed, by a session of the page."""

import hmac
import math
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.api.refusals import Refused
from services.api.service import Service, service_of
from services.api.sessions import COOKIE, Session

ROOT_OWNER = "admin"
ROOT_TOKEN = 0
SAFE = frozenset({"GET", "HEAD"})
_bearer = HTTPBearer(
    auto_error=False, scheme_name="token", description="A token made by `nas-blockout token create --owner NAME`."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Args:
        token: Identity of the token; 0 stands for the secret of the service.
        owner: Whose studies are seen and changed.
        scope: ``read`` or ``write``.
    """

    token: int
    owner: str
    scope: str

    @property
    def writes(self) -> bool:
        """Whether studies may be given, cancelled, resumed and extended."""
        return self.scope == "write"


def reader(
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
    header = request.headers.get("authorization")
    if header is not None:
        scheme, _, secret = header.partition(" ")
        caller = by_secret(service, secret.strip()) if scheme.lower() == "bearer" else None
    else:
        session = session_of(request) if request.method in SAFE else None
        caller = by_token(service, session.token) if session else None
    if caller is None:
        count(service, ("address", request.client.host if request.client else ""))
        raise Refused(
            401,
            "unauthorised",
            "this needs a token that is valid",
            key="Authorization",
            remedy="send `Authorization: Bearer TOKEN`; `nas-blockout token create --owner NAME` makes one",
            headers={"WWW-Authenticate": "Bearer"},
        )
    count(service, ("token", caller.token))
    return caller


def writer(caller: Annotated[Caller, Depends(reader)]) -> Caller:
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


def by_secret(service: Service, secret: str) -> Caller | None:
    """Return who has a secret, or None; the secret of the service is compared in constant time."""
    root = (service.settings.api_token or "").encode()
    if root and hmac.compare_digest(root, secret.encode("utf-8", "replace")):
        return Caller(ROOT_TOKEN, ROOT_OWNER, "write")
    row = service.store.token(secret)
    return None if row is None else Caller(row.id, row.owner, row.scope)


def by_token(service: Service, token: int) -> Caller | None:
    """Return who has a token, by its identity, or None if it has ended or was revoked."""
    if token == ROOT_TOKEN:
        return Caller(ROOT_TOKEN, ROOT_OWNER, "write")
    row = service.store.valid_token(token)
    return None if row is None else Caller(row.id, row.owner, row.scope)


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
