"""The page of one's own tokens: make one, whose secret is shown once, and revoke them."""

from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from services.api.administration import token_routes
from services.api.errors import RequestError
from services.api.schemas import Problem
from services.api.web import Form, Visit, Visited, frame, rendered
from services.store.records import SCOPES

router = APIRouter(include_in_schema=False)


@router.get("/tokens")
def token_page(visited: Visited) -> Response:
    """One's own tokens, and the form for a new one."""
    return _page(visited)


@router.post("/tokens")
def make_token(visited: Visited, fields: Form) -> Response:
    """Make a token, and show its secret: in the answer to this very form, and never again."""
    given = {name: fields.get(name, "").strip() for name in ("name", "scope", "expires_days")}
    try:
        _, secret = token_routes.make(visited.shared, visited.caller, token_routes.wanted_token(dict(given)))
    except RequestError as error:
        return _page(visited, error.status, problem=error.problem, given=given)
    answer = _page(visited, secret=secret)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.post("/tokens/{token}/revoke")
def revoke_token(visited: Visited, token: int, fields: Form) -> Response:
    """Revoke one of one's tokens."""
    token_routes.revoke(visited.shared, visited.caller, token)
    return RedirectResponse("/tokens", 303)


def _page(
    visited: Visit,
    status: int = 200,
    *,
    problem: Problem | None = None,
    secret: str | None = None,
    given: dict[str, str] | None = None,
) -> Response:
    widest = token_routes.may_make(visited.shared, visited.caller)
    now = datetime.now(UTC)
    rows = [
        (each, "revoked" if each.revoked_at else "expired" if each.expires_at and each.expires_at <= now else "valid")
        for each in reversed(token_routes.own_tokens(visited.shared, visited.caller))
    ]
    return rendered(
        "tokens",
        status,
        here="tokens",
        rows=rows,
        scopes=[] if widest is None else SCOPES[: SCOPES.index(widest) + 1],
        most_days=token_routes.MOST_DAYS,
        problem=problem,
        secret=secret,
        form={"name": "", "scope": "read", "expires_days": "90", **(given or {})},
        **frame(visited),
    )
