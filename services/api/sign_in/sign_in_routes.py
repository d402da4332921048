"""Routes of the page that lead to the identity provider, and back from it."""

import logging
import re
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from services.api import web
from services.api.caches.token_cache import ROOT_OWNER
from services.api.errors import RequestError
from services.api.sessions import COOKIE, SECONDS
from services.api.sign_in.attempts import ATTEMPT_COOKIE, ATTEMPT_SECONDS, Attempt
from services.api.sign_in.id_tokens import InvalidTokenError
from services.api.sign_in.persons import identity_of, new_owner, refusal, require_allowed, scope_of, teams_of
from services.api.sign_in.provider import CodeRefusedError, Provider
from services.api.sign_in.provider_requests import ProviderError
from services.api.state import Service
from services.api.studies import Shared
from services.store import Actor, NotFound, SignInRefused, TokenRow, acting
from services.store.accounts.sign_ins import REFUSER

START = "/login/oidc"
CALLBACK = "/login/oidc/callback"
RETRY_SECONDS = 30
# Whom the audit log names so is not an owner.
RESERVED = frozenset({ROOT_OWNER, REFUSER, "worker", "retention", "operator"})
_LOG = logging.getLogger("nas_blockout.api")
_WORD = re.compile(r"[a-z_]{1,40}")

router = APIRouter(include_in_schema=False)


@router.get(START)
async def start(request: Request, shared: Shared) -> Response:
    """Send the browser to the identity provider.

    By GET, since browsers apply `form-action` of the policy to where a form is redirected as well. Another site can
    lead people here; they then sign in as themselves.
    """
    provider = _provider(shared)
    cookie, attempt = await run_in_threadpool(shared.attempts.begin)
    try:
        url = await provider.authorization_url(attempt, _redirect_url(request, provider))
    except ProviderError as error:
        raise _unavailable(provider, error) from None
    answer = RedirectResponse(url, 303)
    # Lax, unlike that of the session: it has to come back with a browser that another site sends.
    secure = web.is_secure(request)
    answer.set_cookie(ATTEMPT_COOKIE, cookie, ATTEMPT_SECONDS, path=START, httponly=True, samesite="lax", secure=secure)
    return answer


@router.get(CALLBACK)
async def callback(request: Request, shared: Shared) -> Response:
    """Open a session for who comes back from the identity provider; nothing in the request says where to go next."""
    provider = _provider(shared)
    given = request.query_params
    attempt = await run_in_threadpool(
        shared.attempts.use, request.cookies.get(ATTEMPT_COOKIE, ""), given.get("state", "")
    )
    if attempt is None:
        raise RequestError(
            400,
            "unknown_sign_in",
            "this sign-in was begun in another browser, was used already, or took longer than ten minutes",
            remedy="sign in again",
        )
    claims = await _claims(request, provider, attempt)
    token = await run_in_threadpool(_enter, shared, claims)
    with acting(Actor(token.owner, token.id)):
        cookie = await run_in_threadpool(shared.sessions.open, token.id, provider=provider.settings.issuer)
    _LOG.info("%s signed in by token %d", token.owner, token.id)
    answer = web.onward("/", "You are signed in.")
    answer.set_cookie(COOKIE, cookie, SECONDS, httponly=True, samesite="strict", secure=web.is_secure(request))
    answer.delete_cookie(ATTEMPT_COOKIE, path=START, httponly=True, samesite="lax", secure=web.is_secure(request))
    return answer


async def _claims(request: Request, provider: Provider, attempt: Attempt) -> dict[str, Any]:
    """Return the claims that the provider vouches for."""
    given, name = request.query_params, provider.settings.name
    if (told := given.get("error")) is not None:
        _LOG.warning("a sign-in was refused by the provider: %s", _word(told))
        raise RequestError(403, "refused_by_provider", f"{name} did not sign you in: {_word(told)}")
    try:
        return await provider.claims(
            attempt, _redirect_url(request, provider), code=given.get("code", ""), issuer=given.get("iss")
        )
    except ProviderError as error:
        raise _unavailable(provider, error) from None
    except CodeRefusedError as error:
        _LOG.warning("a sign-in failed: the provider does not take the code: %s", _word(str(error)))
        raise RequestError(
            403, "code_refused", f"{name} takes this sign-in no longer", remedy="sign in again"
        ) from None
    except InvalidTokenError as error:
        _LOG.warning("a sign-in failed: invalid ID token: %s", error)
        raise RequestError(
            403, "invalid_id_token", f"what {name} says of you is not valid here", remedy="see the log of the service"
        ) from None


def _enter(shared: Service, claims: dict[str, Any]) -> TokenRow:
    """Return the token of who has signed in, with scope and teams as the provider says; records who is refused."""
    identity = identity_of(claims)
    try:
        token = _admitted(shared, claims)
    except RequestError as error:
        shared.store.note_refusal(identity, reason=error.problem.code)
        _LOG.warning("a sign-in was refused: %s", error.problem.code)
        raise
    with acting(Actor(token.owner, token.id)):
        _follow_groups(shared, token.owner, teams_of(claims, _provider(shared).settings))
    return token


def _admitted(shared: Service, claims: dict[str, Any]) -> TokenRow:
    settings, identity = _provider(shared).settings, identity_of(claims)
    require_allowed(claims, settings)
    scope = scope_of(claims, settings)
    try:
        token = shared.store.sign_in(identity, scope=scope)
        if token is None:
            reserved = RESERVED | shared.settings.named_owners
            owner = new_owner(claims, settings)
            token = shared.store.sign_in_as_new(identity, owner=owner, scope=scope, reserved=reserved)
    except SignInRefused as error:
        raise refusal({"taken": "owner_taken", "disabled": "disabled"}[error.reason], str(error)) from None
    return token


def _follow_groups(shared: Service, owner: str, teams: dict[str, bool]) -> None:
    """Let an owner join and leave the teams that follow groups."""
    present = set(shared.store.teams(owner)) if teams else set()
    for team, belongs in teams.items():
        if belongs and team not in present:
            shared.store.add_member(team, owner)
        elif not belongs and team in present:
            try:
                shared.store.remove_member(team, owner)
            except NotFound:  # another sign-in was faster
                continue


def _provider(shared: Service) -> Provider:
    if shared.provider is None:
        raise RequestError(404, "not_found", "there is nothing at this path", remedy="log in with a token")
    return shared.provider


def _redirect_url(request: Request, provider: Provider) -> str:
    """Return where the provider sends browsers back, which it compares with what is registered there."""
    return provider.settings.redirect_url or web.own_url(request, CALLBACK)


def _word(text: str) -> str:
    """Return a code of an error; what comes with the browser may be anything, and is not shown or logged as it is."""
    return text if _WORD.fullmatch(text) else "unknown error"


def _unavailable(provider: Provider, error: ProviderError) -> RequestError:
    _LOG.error("the identity provider failed: %s", error)
    name = provider.settings.name
    if error.unreachable:
        return RequestError(
            503,
            "provider_unreachable",
            f"{name} does not answer",
            remedy="try again, or log in with a token",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )
    remedy = "log in with a token; the log of the service says what is wrong"
    return RequestError(502, "provider_failed", f"{name} does not answer as it must", remedy=remedy)
