"""Routes by which people who sign in make, list and revoke tokens of their own."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.api.auth import Reader, Writer
from services.api.caches.token_cache import Caller
from services.api.errors import RequestError, not_found
from services.api.requests import request_body
from services.api.state import Service
from services.api.studies import Shared, error_responses
from services.store import TokenLimit, TokenRow, acting
from services.store.checked_values import MAX_INTEGER
from services.store.records import SCOPES

MOST_TOKENS = 20  # of an owner that are valid at one time
MOST_DAYS = 365

Scope = Literal["read", "write", "admin"]
TokenID = Annotated[int, InPath(ge=1, le=MAX_INTEGER, description="ID of the token.")]
Body = Annotated[bytes, Depends(request_body.body)]
_TOKEN = {
    "id": 7,
    "name": "laptop",
    "scope": "read",
    "created_at": "2026-01-31T09:00:00Z",
    "expires_at": "2026-05-01T09:00:00Z",
    "revoked_at": None,
}


def _example(document: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [document]})


class NewToken(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "laptop", "scope": "read"}]})

    name: str = Field(min_length=1, max_length=100, pattern=r"\S", description="What it is for.")
    scope: Scope = Field("read", description="What it may do; no more than who makes it.")
    expires_days: int = Field(90, ge=1, le=MOST_DAYS, description="Days after which it expires.")


class TokenView(BaseModel):
    """A token, without its secret."""

    model_config = _example(_TOKEN)

    id: int
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class TokenPage(BaseModel):
    """The tokens of an owner, in order of creation; expired and revoked ones are included."""

    model_config = _example({"tokens": [_TOKEN]})

    tokens: list[TokenView]


class MadeToken(TokenView):
    """A token that was made, with its secret, which is shown once."""

    model_config = _example({**_TOKEN, "secret": "nas_7_0123456789abcdef"})

    secret: str


_SCHEMA = NewToken.model_json_schema()
router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


def own_tokens(shared: Service, caller: Caller) -> list[TokenView]:
    """Return the tokens of a caller's owner, without the one that stands for signing in."""
    signing_in = {person.token for person in shared.store.people()}
    return [TokenView(**_shown(row)) for row in shared.store.tokens(caller.owner) if row.id not in signing_in]


def may_make(shared: Service, caller: Caller) -> str | None:
    """Return the widest scope of a token that a caller may make, or None if the owner is nobody who signs in.

    It is what the person might do when signing in for the last time, and no more than the caller may. Owners without a
    person get their tokens from an operator, who can ask them what for.
    """
    person = next((each for each in shared.store.people() if each.owner == caller.owner), None)
    if person is None or person.disabled_at is not None:
        return None
    return min(person.scope, caller.scope, key=SCOPES.index)


def make(shared: Service, caller: Caller, wanted: NewToken) -> tuple[TokenRow, str]:
    """Make a token of a caller's owner; return it with its secret.

    Raises:
        RequestError: The caller may not, the scope is wider than the caller's, or there are too many.
    """
    widest = may_make(shared, caller)
    if widest is None:
        raise RequestError(
            403,
            "no_person",
            "tokens are made here by people who sign in with an identity provider",
            remedy=f"ask an operator: `nas-blockout token create --owner {caller.owner}`",
        )
    if SCOPES.index(wanted.scope) > SCOPES.index(widest):
        raise RequestError(
            403,
            "scope_too_wide",
            f"a token of yours may be of scope {widest}, not wider",
            key="scope",
            value=wanted.scope,
            remedy=f"choose {widest}",
        )
    expires_at = datetime.now(UTC) + timedelta(days=wanted.expires_days)
    if (parent := shared.store.valid_token(caller.token)) is not None and parent.expires_at is not None:
        expires_at = min(expires_at, parent.expires_at)  # no token outlives the one that made it
    try:
        with acting(caller.actor):
            return shared.store.create_token(
                wanted.name.strip(), owner=caller.owner, scope=wanted.scope, expires_at=expires_at, most=MOST_TOKENS
            )
    except TokenLimit as error:
        raise RequestError(409, "too_many_tokens", str(error), remedy="revoke one that is not used") from None
    except ValueError as error:
        raise RequestError(422, "invalid_token", str(error), key="name") from None


def revoke(shared: Service, caller: Caller, token: int) -> TokenRow:
    """Revoke a token of a caller's owner; it does nothing if it is revoked already.

    Raises:
        RequestError: The owner has no such token, or it is the one that stands for signing in.
    """
    if token not in {row.id for row in own_tokens(shared, caller)}:
        raise not_found("token of yours of that ID")
    with acting(caller.actor):
        return shared.store.revoke_token(token)


def wanted_token(fields: dict[str, Any]) -> NewToken:
    """Read what is asked for.

    Raises:
        RequestError: A value breaks its rule.
    """
    try:
        return NewToken.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise RequestError(422, "invalid_token", f"{key}: {first['msg']}", key=key) from None


@router.get("", summary="List your tokens", responses=error_responses())
def list_tokens(shared: Shared, caller: Reader) -> TokenPage:
    """List the tokens of the owner of the token that is sent, without secrets."""
    return TokenPage(tokens=own_tokens(shared, caller))


@router.post(
    "",
    summary="Make a token",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}},
    responses=error_responses(403, 408, 409, 413, 415),
)
def make_token(request: Request, shared: Shared, caller: Reader, content: Body) -> MadeToken:
    """Make a token, as somebody who signs in; its scope and its end are within those of the token that is sent."""
    document = request_body.document(content, request_body.media_type(request))
    row, secret = make(shared, caller, wanted_token(document))
    return MadeToken(**_shown(row), secret=secret)


@router.delete("/{token}", summary="Revoke a token", responses=error_responses(403, 404))
def revoke_token(shared: Shared, caller: Writer, token: TokenID) -> TokenView:
    """Revoke a token of the owner, from now on."""
    return TokenView(**_shown(revoke(shared, caller, token)))


def _shown(row: TokenRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in TokenView.model_fields}
